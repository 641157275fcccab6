"""What KVM_RUN tells of an exit of the processor, and how its instruction is finished at the next KVM_RUN.

The offsets are those of struct kvm_run (linux/kvm.h); Documentation/virt/kvm/api.rst, section 5.
"""

from __future__ import annotations

from struct import Struct

from .contract import (
    EVENT_EXCEPTION,
    EXIT_ATTENTION,
    EXIT_DEBUG,
    EXIT_FAIL,
    EXIT_HALT,
    EXIT_MMIO,
    EXIT_MSR,
    EXIT_PIO,
    EXIT_SHUTDOWN,
    Event,
)  # fmt: skip
from .exceptions import Exit, Fault
from .paging import SUPERVISOR_AC, translate

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .vcpu import Vcpu

REQUEST_WINDOW, IMMEDIATE_EXIT, EXIT_REASON, READY, UNION = 0, 1, 8, 12, 32
DATA = 4096
WORD, LONG = Struct("<I"), Struct("<Q")
IO = Struct("<I20xBBHIQ")  # from EXIT_REASON
MMIO = Struct("<I20xQ8sIB")
MSR = Struct("<I20xB7xIIQ")
DEBUG = Struct("<I20xI4xQQQ")
INTERNAL = Struct("<I20xIIQB15s")
(
    UNKNOWN, _EXCEPTION, EXIT_IO, _HYPERCALL, DEBUG_EXIT, HLT, MMIO_EXIT, WINDOW, SHUTDOWN, _FAIL_ENTRY, INTR
) = range(11)  # fmt: skip
INTERNAL_ERROR, RDMSR, WRMSR = 17, 29, 30
HALTED = 3  # KVM_MP_STATE_HALTED
TF = 1 << 8
SINGLE_STEP = 3  # KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
BS = 0x4000


# Exits of the processor: True where user space is to see it.


def _halt(vcpu: Vcpu) -> bool:
    vcpu.halt_exits += 1
    if vcpu.lapic is None:
        WORD.pack_into(vcpu.page, EXIT_REASON, HLT)
        return True
    vcpu.mp_state = HALTED
    return False


def _port(vcpu: Vcpu) -> bool:
    cpu, page = vcpu.cpu, vcpu.page
    vcpu.io_exits += 1
    data = cpu.exit_data
    IO.pack_into(page, EXIT_REASON, EXIT_IO, not cpu.exit_in, cpu.exit_size, cpu.exit_port, cpu.exit_count, DATA)
    if cpu.exit_in:
        vcpu.completion = _finish_in
    else:
        page[DATA : DATA + len(data)] = data
        vcpu.completion = _finish_out
    return True


def _finish_in(vcpu: Vcpu) -> bool:
    cpu = vcpu.cpu
    flags = cpu.flags
    data = bytes(vcpu.page[DATA : DATA + cpu.exit_size * cpu.exit_count])
    try:
        cpu.complete_in(data)
    except Fault as fault:
        cpu.pending = Event(fault.vector, fault.error, EVENT_EXCEPTION)
    except Exit:
        pass  # INS into a device's memory: the data are lost
    return _stepped(vcpu, flags)


def _finish_out(vcpu: Vcpu) -> bool:
    flags = vcpu.cpu.flags
    vcpu.cpu.complete_out()
    return _stepped(vcpu, flags)


def _stepped(vcpu: Vcpu, flags: int) -> bool:
    """End an instruction that user space took part in; False where the host's debugger is to see that."""
    cpu = vcpu.cpu
    cpu.interrupt_shadow = False
    if cpu.debug_control & SINGLE_STEP == SINGLE_STEP:
        _write_debug(vcpu, 1, 0xFFFF_0FF0 | BS, cpu.linear_rip())
        return False
    if flags & TF:
        cpu.dr[6] |= BS
        cpu.pending = Event(1, None, EVENT_EXCEPTION)
    cpu.wake = 1
    return True


def _device(vcpu: Vcpu) -> bool:
    cpu = vcpu.cpu
    vcpu.mmio_exits += 1
    data = cpu.exit_data.ljust(8, b"\0")
    MMIO.pack_into(vcpu.page, EXIT_REASON, MMIO_EXIT, cpu.exit_address, data, cpu.exit_size, cpu.exit_write)
    vcpu.completion = _finish_device
    return True


def _finish_device(vcpu: Vcpu) -> bool:
    """Run the instruction again, now that its access is answered; False where it makes another one."""
    cpu = vcpu.cpu
    flags = cpu.flags
    cpu.complete_mmio(None if cpu.exit_write else bytes(vcpu.page[UNION + 8 : UNION + 8 + cpu.exit_size]))
    code = cpu.step()
    if code != EXIT_ATTENTION:
        return not EXITS[code](vcpu)
    return _stepped(vcpu, flags)


def shutdown(vcpu: Vcpu) -> bool:
    WORD.pack_into(vcpu.page, EXIT_REASON, SHUTDOWN)
    return True


def _debug(vcpu: Vcpu) -> bool:
    cpu = vcpu.cpu
    _write_debug(vcpu, cpu.exit_exception, cpu.exit_dr6, cpu.exit_pc)
    return True


def _write_debug(vcpu: Vcpu, exception: int, dr6: int, pc: int) -> None:
    dr7 = vcpu.cpu.debug_dr[7]
    DEBUG.pack_into(vcpu.page, EXIT_REASON, DEBUG_EXIT, exception, pc, dr6 if exception == 1 else 0, dr7)


def _fail(vcpu: Vcpu) -> bool:
    """Write KVM_INTERNAL_ERROR_EMULATION, with the bytes of the instruction where they can be read."""
    code = instruction_bytes(vcpu)
    INTERNAL.pack_into(vcpu.page, EXIT_REASON, INTERNAL_ERROR, 1, 4 if code else 0, 1 if code else 0, len(code), code)
    return True


def instruction_bytes(vcpu: Vcpu) -> bytes:
    """Return up to 15 bytes of memory from the next instruction on."""

    cpu = vcpu.cpu
    code, cr2 = b"", cpu.cr2
    while len(code) < 15:
        try:
            physical = translate(cpu, cpu.linear_rip() + len(code), False, SUPERVISOR_AC)
            page = cpu.memory.page(physical >> 12)
        except (Fault, OSError):
            break
        if page is None:
            break
        at = physical & 0xFFF
        code += bytes(page[at : at + 15 - len(code)])
    cpu.cr2 = cr2
    return code


def _msr(vcpu: Vcpu) -> bool:
    cpu = vcpu.cpu
    value = int.from_bytes(cpu.exit_data, "little") if cpu.exit_write else 0
    MSR.pack_into(vcpu.page, EXIT_REASON, WRMSR if cpu.exit_write else RDMSR, 0, vcpu.exit_value, cpu.exit_msr, value)
    vcpu.completion = _finish_msr
    return True


def _finish_msr(vcpu: Vcpu) -> bool:
    cpu = vcpu.cpu
    flags = cpu.flags
    _, error, _, _, value = MSR.unpack_from(vcpu.page, EXIT_REASON)
    cpu.complete_msr(None if error else value)
    return bool(error) or _stepped(vcpu, flags)


EXITS = {
    EXIT_HALT: _halt,
    EXIT_PIO: _port,
    EXIT_MMIO: _device,
    EXIT_SHUTDOWN: shutdown,
    EXIT_DEBUG: _debug,
    EXIT_FAIL: _fail,
    EXIT_MSR: _msr,
}
