"""INS and OUTS: strings of a port, a page at a time where user space answers."""

from __future__ import annotations

from .contract import EXIT_PIO
from .exceptions import Exit, Fault
from .interp import DF, M16, MASK, get_reg, set_reg
from .interp_ports import check_io
from .interp_string import again, move_index, step_of, window
from .mmu import load, store

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn

    Tlb = dict[int, memoryview]


# Ports.
def ins(cpu: Cpu, i: Insn) -> None:
    """INS and REP INS: a page's worth leaves to user space at once."""
    size = i.size
    port = cpu.regs[2] & M16
    check_io(cpu, port, size)
    if i.rep and not get_reg(cpu, 1, i.asize):
        return
    offset = cpu.regs[7] & i.amask
    cpu.probe_store(0, offset, size)
    answer = cpu.port_answer
    value = cpu.platform.port_read(port, size) if answer is None else int.from_bytes(answer[:size], "little")
    if value is None:
        count = 1
        if i.rep and not cpu.flags & DF and not cpu.single:
            target = window(cpu, i, 0, offset, get_reg(cpu, 1, i.asize), True)
            count = target[2] if target else 1
        leave_for_port(cpu, i, port, True, count, b"")
    assert value is not None
    store(cpu, 0, offset, size, value & MASK[size])
    cpu.port_answer = None
    ins_done(cpu, i, 1)
    if i.rep and get_reg(cpu, 1, i.asize):
        again(cpu, i)


def ins_done(cpu: Cpu, i: Insn, count: int) -> None:
    """Advance the registers of INS."""
    move_index(cpu, 7, i, step_of(cpu, i) * count)
    if i.rep:
        set_reg(cpu, 1, i.asize, get_reg(cpu, 1, i.asize) - count)


def outs(cpu: Cpu, i: Insn) -> None:
    """OUTS and REP OUTS: a page's worth leaves to user space at once."""
    size = i.size
    port = cpu.regs[2] & M16
    check_io(cpu, port, size)
    if i.rep and not get_reg(cpu, 1, i.asize):
        return
    offset = cpu.regs[6] & i.amask
    value = load(cpu, i.seg, offset, size)
    if not cpu.platform.port_write(port, size, value):
        data = value.to_bytes(size, "little")
        count = 1
        if i.rep and not cpu.flags & DF and not cpu.single:
            source = window(cpu, i, i.seg, offset, get_reg(cpu, 1, i.asize), False)
            if source:
                page, at, count = source
                data = bytes(page[at : at + count * size])
        leave_for_port(cpu, i, port, False, count, data)
    outs_done(cpu, i, 1)
    if i.rep and get_reg(cpu, 1, i.asize):
        again(cpu, i)


def outs_done(cpu: Cpu, i: Insn, count: int) -> None:
    """Advance the registers of OUTS."""
    move_index(cpu, 6, i, step_of(cpu, i) * count)
    if i.rep:
        set_reg(cpu, 1, i.asize, get_reg(cpu, 1, i.asize) - count)


def leave_for_port(cpu: Cpu, i: Insn, port: int, is_in: bool, count: int, data: bytes) -> None:
    """Exit to user space for a port."""
    cpu.exit_port, cpu.exit_size, cpu.exit_count = port, i.size, count
    cpu.exit_in, cpu.exit_data = is_in, data
    cpu.exit_insn = i
    raise Exit(EXIT_PIO)


def finish_in(cpu: Cpu, i: Insn, data: bytes) -> None:
    """Put the answer of an IN or INS where it belongs, and go on behind the instruction."""
    size = i.size
    if i.op not in (0x6C, 0x6D):
        cpu.rip = i.next
        set_reg(cpu, 0, size, int.from_bytes(data[:size], "little"))
        return
    data = data.ljust(size, b"\0")
    count = max(1, min(cpu.exit_count, len(data) // size))
    step = step_of(cpu, i)
    try:
        for at in range(count):
            offset = cpu.regs[7] + at * step & i.amask
            store(cpu, 0, offset, size, int.from_bytes(data[at * size : at * size + size], "little"))
    except (Exit, Fault):
        cpu.port_answer = data  # memory is a device's, or was taken away: the instruction is run again with the answer
        return
    cpu.rip = i.next
    ins_done(cpu, i, count)
    if i.rep and get_reg(cpu, 1, i.asize):
        again(cpu, i)


def finish_out(cpu: Cpu, i: Insn) -> None:
    """Go on behind an OUT or OUTS."""
    cpu.rip = i.next
    if i.op not in (0x6E, 0x6F):
        return
    outs_done(cpu, i, cpu.exit_count)
    if i.rep and get_reg(cpu, 1, i.asize):
        again(cpu, i)
