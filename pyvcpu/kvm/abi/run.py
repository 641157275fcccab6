"""struct kvm_run: the page that a vCPU and its thread share (linux/kvm.h, api.rst section 5)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from .base import Struct, Union
from .basic import kvm_regs, kvm_sregs

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0


class _hw(Struct):
    __slots__ = ()
    _fields_ = [("hardware_exit_reason", c_uint64)]


class _fail_entry(Struct):
    __slots__ = ()
    _fields_ = [("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32)]


class _ex(Struct):
    __slots__ = ()
    _fields_ = [("exception", c_uint32), ("error_code", c_uint32)]


class _io(Struct):
    __slots__ = ()
    _fields_ = [
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    ]


class kvm_debug_exit_arch(Struct):
    """What stopped the vCPU in a KVM_EXIT_DEBUG (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("exception", c_uint32),
        ("pad", c_uint32),
        ("pc", c_uint64),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
    ]


class _debug(Struct):
    __slots__ = ()
    _fields_ = [("arch", kvm_debug_exit_arch)]


class _mmio(Struct):
    __slots__ = ()
    _fields_ = [("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8)]


class _hypercall(Struct):
    __slots__ = ()
    _fields_ = [
        ("nr", c_uint64),
        ("args", c_uint64 * 6),
        ("ret", c_uint64),
        ("longmode", c_uint32),
        ("pad", c_uint32),
    ]


class _internal(Struct):
    __slots__ = ()
    _fields_ = [("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _emulation_failure(Struct):
    """The reading of _internal for KVM_INTERNAL_ERROR_EMULATION."""

    __slots__ = ()
    _fields_ = [
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    ]


class _system_event(Struct):
    __slots__ = ()
    _fields_ = [("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _msr(Struct):
    __slots__ = ()
    _fields_ = [
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    ]


class _exit(Union):
    """The member that belongs to exit_reason is the one that means something."""

    __slots__ = ()
    _fields_ = [
        ("hw", _hw),
        ("fail_entry", _fail_entry),
        ("ex", _ex),
        ("io", _io),
        ("debug", _debug),
        ("mmio", _mmio),
        ("hypercall", _hypercall),
        ("internal", _internal),
        ("emulation_failure", _emulation_failure),
        ("system_event", _system_event),
        ("msr", _msr),
        ("padding", c_uint8 * 256),
    ]


class kvm_sync_regs(Struct):
    """The registers that KVM_CAP_SYNC_REGS keeps in the page (asm/kvm.h); events are struct kvm_vcpu_events."""

    __slots__ = ()
    _fields_ = [("regs", kvm_regs), ("sregs", kvm_sregs), ("events", c_uint8 * 64)]


class _sync(Union):
    __slots__ = ()
    _fields_ = [("regs", kvm_sync_regs), ("padding", c_uint8 * 2048)]


class kvm_run(Struct):
    """The head of the mapping of a vCPU's fd."""

    __slots__ = ()
    _anonymous_ = ("exit",)
    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", _exit),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", _sync),
    ]


__all__ = [name for name in dir() if name.startswith(("KVM_", "kvm_"))]
