"""How each piece of a vCPU's state is got, set and reset: the functions of the table in state.py.

get(cpu) returns bytes, set(cpu, bytes) takes them, reset(cpu, machine_wide) returns the value after reset, or None
where reset leaves it as it is. `machine_wide`: all vCPUs of the machine are being reset.
"""

from __future__ import annotations

from struct import Struct, iter_unpack, pack

from ..errors import PyvcpuError
from ..kvm.abi import basic as abi
from ..kvm.abi.layout import IMMEDIATE_EXIT
from ..x86.cpuid import EAX, FEATURES
from ..x86.start import set_start
from .states import BEING_BORN, Command, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from ..kvm.abi.base import Ioctl
    from .core import Cpu

    Get = Callable[[Cpu], bytes]
    Set = Callable[[Cpu, bytes], None]

RESET_RIP, RESET_RFLAGS = 0xFFF0, 1 << 1  # SDM vol. 3A table 10-1
FINISH_TRIES = 64  # a page-crossing string instruction asks again for each piece
GUEST_DEBUG_SIZE = 72
KHZ, STATE = Struct("<Q"), Struct("<I")
CPUID_ENTRY = 40
XCR = "<QQ"  # number, value
NESTED_HEAD, NO_ADDRESS = 128, 0xFFFF_FFFF_FFFF_FFFF  # sizeof struct kvm_nested_state; KVM's "none"


class VcpuStateError(PyvcpuError, ValueError):
    """A piece of state that this vCPU cannot have, or data that is none."""


def finish_io(cpu: Cpu) -> None:
    """Let KVM complete the port, memory or MSR access that it last asked for, so that the registers are whole.

    Needed where cpu_exec was left by an exception; everywhere else the KVM_RUN that answers a kick has done it.
    Pieces of an access that are still to come get nothing (api.rst, KVM_EXIT_IO: the note on pending operations).
    """
    if not cpu.has_run:
        return  # KVM_RUN would begin its life: CPUID could not be set any more
    for _ in range(FINISH_TRIES):
        cpu.run[IMMEDIATE_EXIT] = 1
        if cpu.fd.kernel.ioctl(cpu.fd.fd, abi.KVM_RUN.number, 0):
            break
    with cpu.control.lock:
        cpu.run[IMMEDIATE_EXIT] = cpu.vcpu._kicked


def unchanged(cpu: Cpu, machine_wide: bool) -> None:
    """Leave the piece as it is at a reset."""


def pairs(what: str, data: bytes) -> list[tuple[int, int]]:
    """Return the pairs of 8-byte numbers that `data` consists of."""
    if len(data) % 16:
        raise VcpuStateError(f"a list of {what}s consists of pairs of 16 bytes, not of {len(data)} bytes")
    return list(iter_unpack("<QQ", data))


def structure(get: Ioctl, set: Ioctl) -> tuple[Get, Set]:
    """Return what gets and sets a piece that is one structure of KVM's."""
    kind: Any = get.argument

    def read(cpu: Cpu) -> bytes:
        value = kind()
        cpu.fd.ioctl(get, value)
        return bytes(value)

    def write(cpu: Cpu, data: bytes) -> None:
        cpu.fd.ioctl(set, kind.from_buffer_copy(data))

    return read, write


def rare(module: str, get: str, set: str) -> tuple[Get, Set]:
    """Return the same for a structure whose module of kvm.abi is loaded when it is first needed."""
    known: list[tuple[Get, Set]] = []

    def functions() -> tuple[Get, Set]:
        if not known:
            from importlib import import_module

            requests = import_module(f"pyvcpu.kvm.abi.{module}")
            known.append(structure(getattr(requests, get), getattr(requests, set)))
        return known[0]

    return lambda cpu: functions()[0](cpu), lambda cpu, data: functions()[1](cpu, data)


get_regs, set_regs = structure(abi.KVM_GET_REGS, abi.KVM_SET_REGS)
get_sregs, set_sregs = structure(abi.KVM_GET_SREGS, abi.KVM_SET_SREGS)
get_sregs2, set_sregs2 = rare("state", "KVM_GET_SREGS2", "KVM_SET_SREGS2")
get_fpu, set_fpu = rare("state", "KVM_GET_FPU", "KVM_SET_FPU")
get_lapic, set_lapic = rare("state", "KVM_GET_LAPIC", "KVM_SET_LAPIC")
get_debugregs, set_debugregs = rare("debug", "KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS")
get_events, _set_events = rare("events", "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS")


# What this project keeps itself, because KVM does not give it back.


def get_guest_debug(cpu: Cpu) -> bytes:
    """Return the struct kvm_guest_debug that was set last, zeros at first.

    What a debugger of this machine's has set is the host's, not the guest's: it is in no saved state.
    """
    if cpu.context.debugger is not None:
        return bytes(GUEST_DEBUG_SIZE)
    return cpu.fd.debug_control or bytes(GUEST_DEBUG_SIZE)


def set_guest_debug(cpu: Cpu, data: bytes) -> None:
    """Set single step and breakpoints of the host's (KVM_SET_GUEST_DEBUG); a debugger keeps its own."""
    if cpu.context.debugger is not None:
        data = cpu.context.debugger.control(cpu)
    if data == (cpu.fd.debug_control or bytes(GUEST_DEBUG_SIZE)):
        return
    from ..kvm.abi.debug import KVM_SET_GUEST_DEBUG, kvm_guest_debug

    cpu.fd.ioctl(KVM_SET_GUEST_DEBUG, kvm_guest_debug.from_buffer_copy(data))


def reset_guest_debug(cpu: Cpu, machine_wide: bool) -> bytes:
    """Debug nothing."""
    return bytes(GUEST_DEBUG_SIZE)


def get_halted(cpu: Cpu) -> bytes:
    """Return 1 where the vCPU executed HLT and waits for wake(), and KVM does not know of it."""
    return bytes([cpu.vcpu.state in (State.HALTED, State.PAUSED_HALTED)])


def set_halted(cpu: Cpu, data: bytes) -> None:
    """Put the vCPU behind a HLT, or let it go on. One that is being started is put there once it is created."""
    if cpu.vcpu.state not in BEING_BORN and data != get_halted(cpu):
        cpu.vcpu.take_step(Command.HALT if data[0] else Command.WAKE)


def reset_halted(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return 1 for a processor that waits for good: nothing in this machine can send it a SIPI."""
    return bytes([cpu.waits_for_sipi])


# What rules the rest: CPUID and the time-stamp counter's rate.


def get_tsc_khz(cpu: Cpu) -> bytes:
    """Return the rate in kHz, 8 bytes; 0 where the host's is not stable."""
    return KHZ.pack(cpu.tsc_khz)


def set_tsc_khz(cpu: Cpu, data: bytes) -> None:
    """Set the rate, unless it is that already."""
    (khz,) = KHZ.unpack(data)
    if khz and khz != cpu.tsc_khz:
        cpu.fd.set_tsc_khz(khz)
        cpu.tsc_khz = khz


def get_cpuid(cpu: Cpu) -> bytes:
    """Return the entries that KVM_SET_CPUID2 was given, 40 bytes each."""
    return bytes(cpu.cpuid)


def set_cpuid(cpu: Cpu, data: bytes) -> None:
    """Set what CPUID shows, unless it is that already; KVM takes another only before the first KVM_RUN."""
    if data == bytes(cpu.cpuid):
        return
    if len(data) % CPUID_ENTRY:
        raise VcpuStateError(f"a CPUID table consists of entries of {CPUID_ENTRY} bytes, not of {len(data)} bytes")
    from ..kvm.cpuid import CpuidTable

    table = CpuidTable.from_bytes(data)
    cpu.fd.set_cpuid2(table)
    cpu.cpuid = table


# Registers.


def reset_regs(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return the registers of the starting state, or those after reset for a processor that waits for a SIPI."""
    return _start(cpu)[0]


def reset_sregs(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return segments and control registers of the starting state."""
    return _start(cpu)[1]


def cpu_reset(cpu: Cpu) -> None:
    """Put a new vCPU into its starting state; KVM gives it all else as it is after reset (QEMU: cpu_reset).

    These are the pieces of the table that differ; state.reset() sets all.
    """
    regs, sregs = _start(cpu)
    set_sregs(cpu, sregs)
    set_regs(cpu, regs)
    if cpu.has_apic:
        set_mp_state(cpu, reset_mp_state(cpu, False))


def _start(cpu: Cpu) -> tuple[bytes, bytes]:
    regs, sregs = abi.kvm_regs(), abi.kvm_sregs.from_buffer_copy(cpu.reset_sregs)
    if cpu.vcpu.start is None:
        regs.rip, regs.rflags = RESET_RIP, RESET_RFLAGS
        regs.rdx = cpu.template.leaves.read(FEATURES, EAX)
    else:
        set_start(cpu.vcpu.start, regs, sregs)
    return bytes(regs), bytes(sregs)


def get_xcrs(cpu: Cpu) -> bytes:
    """Return the extended control registers, 16 bytes each: number, value."""
    return b"".join(pack(XCR, number, value) for number, value in cpu.fd.get_xcrs().items())


def set_xcrs(cpu: Cpu, data: bytes) -> None:
    """Set extended control registers."""
    cpu.fd.set_xcrs(dict(pairs("XCR", data)))


def reset_xcrs(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return XCR0 with x87 alone."""
    from ..x86 import reset

    return pack(XCR, 0, reset.XCR0)


def reset_fpu(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return x87 and SSE after reset: an XSAVE area in its initial state leaves old values where KVM_GET_FPU looks."""
    from ..kvm.abi.state import kvm_fpu
    from ..x86 import reset

    return bytes(kvm_fpu(fcw=reset.FCW, mxcsr=reset.MXCSR, ftwx=reset.FTWX))


def get_xsave(cpu: Cpu) -> bytes:
    """Return the XSAVE area, as large as this vCPU's is."""
    return cpu.fd.get_xsave2() if cpu.context.has(abi.KVM_CAP_XSAVE2) else cpu.fd.get_xsave()


def set_xsave(cpu: Cpu, data: bytes) -> None:
    """Set the XSAVE area."""
    try:
        cpu.fd.set_xsave(data)
    except ValueError as error:
        raise VcpuStateError(str(error)) from None


def reset_xsave(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return an area in which every component is in its initial state."""
    from ..x86 import reset

    return reset.xsave_area()


def reset_debugregs(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return the guest's debug registers after reset."""
    from ..kvm.abi.debug import kvm_debugregs
    from ..x86 import reset

    return bytes(kvm_debugregs(dr6=reset.DR6, dr7=reset.DR7))


def reset_lapic(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return the local APIC's registers after reset."""
    from ..x86 import reset

    version = int.from_bytes(cpu.fd.get_lapic()[reset.APIC_VERSION :][:4], "little")
    return reset.apic_page(cpu.apic_id, version, cpu.apic_id == 0)


# Events, and whether it runs.


def set_events(cpu: Cpu, data: bytes) -> None:
    """Set what is pending or being delivered, all parts of it."""
    from ..kvm.abi import events

    value = events.kvm_vcpu_events.from_buffer_copy(data)
    value.flags |= (
        events.KVM_VCPUEVENT_VALID_NMI_PENDING
        | events.KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | events.KVM_VCPUEVENT_VALID_SHADOW
    )
    if cpu.context.has(abi.KVM_CAP_X86_SMM):
        value.flags |= events.KVM_VCPUEVENT_VALID_SMM
    cpu.fd.ioctl(events.KVM_SET_VCPU_EVENTS, value)
    cpu.fd.events_set = False  # whether it is halted is a piece of its own


def reset_events(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return no event at all."""
    from ..kvm.abi.events import kvm_vcpu_events

    return bytes(kvm_vcpu_events())


def get_mp_state(cpu: Cpu) -> bytes:
    """Return the KVM_MP_STATE_*, 4 bytes."""
    return STATE.pack(cpu.fd.get_mp_state())


def set_mp_state(cpu: Cpu, data: bytes) -> None:
    """Set the KVM_MP_STATE_*."""
    cpu.fd.set_mp_state(*STATE.unpack(data))


def reset_mp_state(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return runnable, or waiting for INIT."""
    waits = cpu.vcpu.start is None
    return STATE.pack(abi.KVM_MP_STATE_UNINITIALIZED if waits else abi.KVM_MP_STATE_RUNNABLE)


def get_nested_state(cpu: Cpu) -> bytes:
    """Return the guest that the guest runs, as KVM_GET_NESTED_STATE gives it."""
    return cpu.fd.get_nested_state()


def set_nested_state(cpu: Cpu, data: bytes) -> None:
    """Set the guest that the guest runs."""
    try:
        cpu.fd.set_nested_state(data)
    except ValueError as error:
        raise VcpuStateError(str(error)) from None


def reset_nested_state(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return no guest of the guest's (api.rst 4.115)."""
    from ..kvm.abi import nested

    head = nested.kvm_nested_state.from_buffer_copy(cpu.fd.get_nested_state())
    none = nested.kvm_nested_state(format=head.format, size=NESTED_HEAD)
    if head.format == nested.KVM_STATE_NESTED_FORMAT_SVM:
        none.flags = nested.KVM_STATE_NESTED_GIF_SET
    else:
        none.hdr.vmx.vmxon_pa = none.hdr.vmx.vmcs12_pa = NO_ADDRESS
    return bytes(none)
