"""struct kvm_run: the page that a vCPU and its thread share (linux/kvm.h, api.rst section 5)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from .base import Struct, Union
from .basic import kvm_regs, kvm_sregs
from .events import kvm_vcpu_events

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1
KVM_EXIT_HYPERCALL_LONG_MODE = 1 << 0
KVM_EXIT_HYPERV_SYNIC = 1
KVM_EXIT_HYPERV_HCALL = 2
KVM_EXIT_HYPERV_SYNDBG = 3
KVM_EXIT_XEN_HCALL = 1

# InternalError and SystemEvent in abi.exits are the same numbers.
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0
KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3
KVM_SYSTEM_EVENT_WAKEUP = 4
KVM_SYSTEM_EVENT_SUSPEND = 5
KVM_SYSTEM_EVENT_SEV_TERM = 6
KVM_SYSTEM_EVENT_TDX_FATAL = 7

KVM_NOTIFY_CONTEXT_INVALID = 1 << 0
KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3

# kvm_run.flags
KVM_RUN_X86_SMM = 1 << 0
KVM_RUN_X86_BUS_LOCK = 1 << 1
KVM_RUN_X86_GUEST_MODE = 1 << 2

SYNC_REGS_SIZE_BYTES = 2048


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


class _longmode_or_flags(Union):
    __slots__ = ()
    _fields_ = [("longmode", c_uint32), ("flags", c_uint64)]


class _hypercall(Struct):
    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("nr", c_uint64), ("args", c_uint64 * 6), ("ret", c_uint64), ("u", _longmode_or_flags)]


class _tpr_access(Struct):
    __slots__ = ()
    _fields_ = [("rip", c_uint64), ("is_write", c_uint32), ("pad", c_uint32)]


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


class _flags_or_data(Union):
    __slots__ = ()
    _fields_ = [("flags", c_uint64), ("data", c_uint64 * 16)]


class _system_event(Struct):
    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("type", c_uint32), ("ndata", c_uint32), ("u", _flags_or_data)]


class _eoi(Struct):
    __slots__ = ()
    _fields_ = [("vector", c_uint8)]


class _msr(Struct):
    __slots__ = ()
    _fields_ = [
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    ]


class _synic(Struct):
    __slots__ = ()
    _fields_ = [
        ("msr", c_uint32),
        ("pad2", c_uint32),
        ("control", c_uint64),
        ("evt_page", c_uint64),
        ("msg_page", c_uint64),
    ]


class _hv_hcall(Struct):
    __slots__ = ()
    _fields_ = [("input", c_uint64), ("result", c_uint64), ("params", c_uint64 * 2)]


class _syndbg(Struct):
    __slots__ = ()
    _fields_ = [
        ("msr", c_uint32),
        ("pad2", c_uint32),
        ("control", c_uint64),
        ("status", c_uint64),
        ("send_page", c_uint64),
        ("recv_page", c_uint64),
        ("pending_page", c_uint64),
    ]


class _hyperv(Union):
    __slots__ = ()
    _fields_ = [("synic", _synic), ("hcall", _hv_hcall), ("syndbg", _syndbg)]


class kvm_hyperv_exit(Struct):
    """What a Hyper-V guest asks for in a KVM_EXIT_HYPERV."""

    __slots__ = ()
    _fields_ = [("type", c_uint32), ("pad1", c_uint32), ("u", _hyperv)]


class _xen_hcall(Struct):
    __slots__ = ()
    _fields_ = [
        ("longmode", c_uint32),
        ("cpl", c_uint32),
        ("input", c_uint64),
        ("result", c_uint64),
        ("params", c_uint64 * 6),
    ]


class _xen(Union):
    __slots__ = ()
    _fields_ = [("hcall", _xen_hcall)]


class kvm_xen_exit(Struct):
    """What a Xen guest asks for in a KVM_EXIT_XEN."""

    __slots__ = ()
    _fields_ = [("type", c_uint32), ("u", _xen)]


class kvm_exit_snp_req_certs(Struct):
    """An SEV-SNP guest wants `npages` of certificates at `gpa`; `ret` is our answer."""

    __slots__ = ()
    _fields_ = [("gpa", c_uint64), ("npages", c_uint64), ("ret", c_uint64)]


class _notify(Struct):
    __slots__ = ()
    _fields_ = [("flags", c_uint32)]


class _memory_fault(Struct):
    __slots__ = ()
    _fields_ = [("flags", c_uint64), ("gpa", c_uint64), ("size", c_uint64)]


class _tdx_unknown(Struct):
    __slots__ = ()
    _fields_ = [("ret", c_uint64), ("data", c_uint64 * 5)]


class _tdx_get_quote(Struct):
    __slots__ = ()
    _fields_ = [("ret", c_uint64), ("gpa", c_uint64), ("size", c_uint64)]


class _tdx_get_tdvmcall_info(Struct):
    __slots__ = ()
    _fields_ = [(name, c_uint64) for name in ("ret", "leaf", "r11", "r12", "r13", "r14")]


class _tdx_setup_event_notify(Struct):
    __slots__ = ()
    _fields_ = [("ret", c_uint64), ("vector", c_uint64)]


class _tdvmcall(Union):
    __slots__ = ()
    _fields_ = [
        ("unknown", _tdx_unknown),
        ("get_quote", _tdx_get_quote),
        ("get_tdvmcall_info", _tdx_get_tdvmcall_info),
        ("setup_event_notify", _tdx_setup_event_notify),
    ]


class _tdx(Struct):
    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("flags", c_uint64), ("nr", c_uint64), ("u", _tdvmcall)]


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
        ("tpr_access", _tpr_access),
        ("internal", _internal),
        ("emulation_failure", _emulation_failure),
        ("system_event", _system_event),
        ("eoi", _eoi),
        ("hyperv", kvm_hyperv_exit),
        ("msr", _msr),
        ("xen", kvm_xen_exit),
        ("notify", _notify),
        ("memory_fault", _memory_fault),
        ("tdx", _tdx),
        ("snp_req_certs", kvm_exit_snp_req_certs),
        ("padding", c_uint8 * 256),
    ]


class kvm_sync_regs(Struct):
    """The registers that KVM_CAP_SYNC_REGS keeps in the page (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [("regs", kvm_regs), ("sregs", kvm_sregs), ("events", kvm_vcpu_events)]


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
