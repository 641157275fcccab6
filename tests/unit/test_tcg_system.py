"""Modes, exceptions, paging, interrupts, debugging and devices: exact results of short programs."""

from __future__ import annotations

import pytest

from pyvcpu.tcg.cpu import (
    EXIT_ATTENTION,
    EXIT_DEBUG,
    EXIT_FAIL,
    EXIT_HALT,
    EXIT_MMIO,
    EXIT_PIO,
    EXIT_SHUTDOWN,
    Cpu,
)  # fmt: skip
from tests.tcg_machine import Machine

GDT, IDT, TSS, STUBS = 0x600, 0xA00, 0x500, 0x3000
CODE0, DATA0, CODE3, DATA3 = 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF
CODE64, CODE64_USER = 0x00AF9B000000FFFF, 0x00AFFB000000FFFF
BUDGET = 10_000


def gate(offset: int, kind: int = 14, dpl: int = 0, selector: int = 8) -> int:
    """Return a 32-bit gate; in long mode the lower half of one."""
    return offset & 0xFFFF | selector << 16 | (0x80 | dpl << 5 | kind) << 40 | offset >> 16 << 48


def protected(cpl: int = 0, sp: int = 0x8000) -> Machine:
    """Return a machine in flat 32-bit mode. Each exception ends in a HLT at STUBS + 16 * vector."""
    machine = Machine(1 << 20)
    cpu = machine.flat(32, sp=sp, cpl=cpl)
    machine.table(GDT, 0, CODE0, DATA0, CODE3, DATA3, TSS << 16 | 0x8B0000000067, 0x00CF13000000FFFF)
    machine.table(IDT, *(gate(STUBS + 16 * vector, dpl=3 if vector == 0x30 else 0) for vector in range(64)))
    machine.put(STUBS, (b"\xf4" + b"\x90" * 15) * 64)
    machine.put(TSS + 4, (0x7000).to_bytes(4, "little") + (16).to_bytes(4, "little"))
    machine.put(TSS + 102, (104).to_bytes(2, "little"))
    cpu.gdt_base, cpu.gdt_limit, cpu.idt_base, cpu.idt_limit = GDT, 0x3F, IDT, 0x1FF
    task = cpu.segs[7]
    task.base, task.limit, task.type, task.s, task.selector = TSS, 103, 11, 0, 0x28
    for number in (1, 2, 3):
        cpu.segs[number].selector = (0x18 if number == 1 else 0x20) | 3 if cpl else (8 if number == 1 else 16)
    return machine


def run(machine: Machine, code: str, ip: int = 0x1000) -> Cpu:
    """Run code to its HLT."""
    machine.put(ip, bytes.fromhex(code))
    machine.cpu.rip = ip
    assert machine.cpu.execute(BUDGET) == EXIT_HALT
    return machine.cpu


def vector_of(cpu: Cpu) -> int:
    """Return the vector whose handler ran to its HLT."""
    vector, rest = divmod(cpu.rip - STUBS - 1, 16)
    assert rest == 0, f"no handler ran: rip is {cpu.rip:#x}"
    return vector


def stack(machine: Machine, count: int, size: int = 4) -> list[int]:
    """Return what lies on top of the stack."""
    top = machine.cpu.regs[4]
    return [machine.get(top + at * size, size) for at in range(count)]


# Real mode.
def test_real_mode_interrupt_and_return() -> None:
    machine = Machine()
    cpu = machine.real()
    machine.put(0x21 * 4, (0x2000).to_bytes(4, "little"))
    machine.put(0x2000, bytes.fromhex("40cf"))  # inc ax; iret
    cpu.set_rflags(0x246)
    run(machine, "b83412cd21f4")  # mov ax,0x1234; int 0x21; hlt
    assert (cpu.rip, cpu.regs[0], cpu.regs[4], cpu.get_rflags()) == (0x1006, 0x1235, 0x8000, 0x246)
    assert [machine.get(at, 2) for at in (0x7FFA, 0x7FFC, 0x7FFE)] == [0x1005, 0, 0x246]


@pytest.mark.parametrize(
    ("code", "vector", "rip"),
    [
        ("31c9f7f1", 0, 0x1002),  # xor cx,cx; div cx
        ("a1ffff", 13, 0x1000),  # mov ax,[0xffff]
        ("0f0b", 6, 0x1000),  # ud2
        ("0f00c8", 6, 0x1000),  # str ax
        ("cc", 3, 0x1001),  # int3
    ],
)
def test_real_mode_exceptions(code: str, vector: int, rip: int) -> None:
    machine = Machine()
    cpu = machine.real()
    machine.put(vector * 4, (0x2000).to_bytes(4, "little"))
    machine.put(0x2000, b"\xf4")
    run(machine, code)
    assert (cpu.rip, cpu.regs[4], machine.get(0x7FFA, 2)) == (0x2001, 0x7FFA, rip)


def test_real_mode_without_a_vector_table_shuts_down() -> None:
    machine = Machine()
    cpu = machine.real()
    cpu.idt_limit = 3
    machine.put(0x1000, b"\x0f\x0b")
    assert cpu.execute(BUDGET) == EXIT_SHUTDOWN


# Protected mode.
@pytest.mark.parametrize(
    ("code", "eax", "vector", "error"),
    [
        ("8ed8", 0x38, 13, 0x38),  # mov ds,ax: empty descriptor
        ("8ed8", 0x44, 13, 0x44),  # no LDT
        ("8ed8", 0x20, 13, None),  # DPL 3 with RPL 0 is fine for a data segment at ring 0: HLT behind it
        ("8ed8", 0x30, 11, 0x30),  # not present
        ("8ed0", 0x20, 13, 0x20),  # mov ss,ax: wrong DPL
        ("8ed0", 0, 13, 0),
        ("9a000000003800", 0, 13, 0x38),  # call 0x38:0
        ("ea000000003000", 0, 13, 0x30),  # jmp 0x30:0: data
        ("0f00d8", 0x28, 13, 0x28),  # ltr ax: a TSS that is busy already
        ("0f00d0", 0x28, 13, 0x28),  # lldt ax: no LDT
        ("cd3f", 0, 63, None),
        ("cd40", 0, 13, 0x202),  # int 0x40: beyond the IDT
        ("0f20c8", 0, 6, None),  # mov eax,cr1
        ("0f22c0", 0x80000000, 13, 0),  # mov cr0,eax: PG without PE
        ("62c0", 0, 6, None),  # bound with a register
        ("f00fa3c8", 0, 6, None),  # lock bt
    ],
)
def test_protected_mode_exceptions(code: str, eax: int, vector: int, error: int | None) -> None:
    machine = protected()
    machine.cpu.regs[0] = eax
    cpu = run(machine, code + "f4")
    if vector == 13 and error is None:
        assert cpu.rip == 0x1003
        return
    assert vector_of(cpu) == vector
    if error is not None:
        assert stack(machine, 3) == [error, 0x1000, 8]
    else:
        assert stack(machine, 2) == [0x1000 if vector == 6 else 0x1002, 8]


def test_interrupt_from_ring_3_and_return() -> None:
    machine = protected(cpl=3)
    cpu = machine.cpu
    machine.put(STUBS + 0x30 * 16, b"\xcf")  # iret
    cpu.set_rflags(0x3202)
    run(machine, "cd30f4")  # int 0x30; hlt, which IOPL 3 does not allow
    assert vector_of(cpu) == 13
    assert stack(machine, 6) == [0, 0x1002, 0x1B, 0x13202, 0x8000, 0x23]
    assert cpu.cpl == 0
    assert cpu.segs[2].selector == 16


@pytest.mark.parametrize(
    ("code", "vector", "error"),
    [
        ("f4", 13, 0), ("fa", 13, 0), ("0f06", 13, 0), ("0f20c0", 13, 0), ("e460", 13, 0), ("0f30", 13, 0),
        ("cd31", 13, 0x18A), ("0f01f0", 13, 0), ("0f35", 13, 0),
    ],
)  # fmt: skip
def test_ring_3_may_not(code: str, vector: int, error: int) -> None:
    cpu = run(machine := protected(cpl=3), code)
    assert (vector_of(cpu), stack(machine, 2)) == (vector, [error, 0x1000])


def test_io_bitmap() -> None:
    machine = protected(cpl=3)
    cpu = machine.cpu
    cpu.segs[7].limit = 0x7F
    machine.put(TSS + 102, (104).to_bytes(2, "little") + bytes(12) + b"\xfe\xff")  # only port 0x60 is open
    machine.put(0x1000, bytes.fromhex("e460"))
    assert cpu.execute(BUDGET) == EXIT_PIO
    assert (cpu.exit_port, cpu.exit_size, cpu.exit_in) == (0x60, 1, True)
    cpu.complete_in(b"\x42")
    cpu = run(machine, "e461")
    assert vector_of(cpu) == 13


def test_double_and_triple_faults() -> None:
    machine = protected()
    machine.table(IDT + 13 * 8, 0)  # #GP has no gate
    cpu = machine.cpu
    cpu.regs[0] = 0x38
    run(machine, "8ed8")
    assert (vector_of(cpu), stack(machine, 2)) == (8, [0, 0x1000])
    machine.table(IDT + 8 * 8, 0)
    cpu.rip = 0x1000
    assert cpu.execute(BUDGET) == EXIT_SHUTDOWN


def test_task_switch_by_jump_and_back_by_iret() -> None:
    machine = protected()
    cpu = machine.cpu
    other = 0x580
    machine.table(GDT + 0x38, other << 16 | 0x890000000067)
    task = [0] * 26
    task[8], task[9], task[10], task[14] = 0x2000, 2, 0xAAAA, 0x6000
    for number, selector in zip(range(18, 24), (16, 8, 16, 16, 16, 16), strict=True):
        task[number] = selector
    machine.put(other, b"".join(word.to_bytes(4, "little") for word in task))
    machine.put(0x2000, bytes.fromhex("cf"))  # iret: back to the caller
    cpu.regs[0] = 0x1111
    run(machine, "9a000000003800f4")  # call 0x38:0; hlt
    assert (cpu.rip, cpu.regs[0], cpu.regs[4], cpu.segs[7].selector) == (0x1008, 0x1111, 0x8000, 0x28)
    assert cpu.cr0 & 8
    assert machine.get(other, 2) == 0x28  # the back link
    assert machine.get(GDT + 0x3D, 1) == 0x89  # not busy any more
    assert machine.get(other + 32, 4) == 0x2001  # where the other task goes on


def test_virtual_8086_mode_enters_and_leaves() -> None:
    machine = protected()
    cpu = machine.cpu
    frame = (0x100, 0x200, 0x23002, 0xF00, 0x300, 0x400, 0x500, 0x600, 0x700)  # ip cs flags sp ss es ds fs gs
    machine.put(0x7000, b"".join(word.to_bytes(4, "little") for word in frame))
    cpu.regs[4] = 0x7000
    machine.put(0x2100, bytes.fromhex("f4"))  # at 0200:0100: hlt is #GP there
    machine.put(TSS + 4, (0x6000).to_bytes(4, "little"))
    run(machine, "cf")
    assert vector_of(cpu) == 13
    assert stack(machine, 10) == [0, 0x100, 0x200, 0x33002, 0xF00, 0x300, 0x400, 0x500, 0x600, 0x700]
    assert [cpu.segs[number].selector for number in (0, 3, 4, 5)] == [0, 0, 0, 0]


# Paging.
def paged(pae: bool = False) -> Machine:
    """Return a machine with 32-bit paging: 4 MB one to one, page 0x400000 to be filled in at 0x20000 (PAE: 0x21000)."""
    machine = protected()
    cpu = machine.cpu
    if pae:
        machine.table(0x1F000, 0x20001, 0, 0, 0)
        machine.table(0x20000, 0x87, 0x200087, 0x21007)
        cpu.cr3, cpu.cr4 = 0x1F000, 0x20
    else:
        machine.put(0x1F000, (0x87).to_bytes(4, "little") + (0x20007).to_bytes(4, "little"))
        cpu.cr3, cpu.cr4 = 0x1F000, 0x10
    cpu.cr0 |= 0x80000000
    cpu.state_changed()
    return machine


LOAD, STORE, MODIFY, JUMP = "8b03f4", "8903f4", "830301f4", "ffe3"


@pytest.mark.parametrize("pae", [False, True])
@pytest.mark.parametrize(
    ("code", "entry", "wp", "error", "after"),
    [
        (LOAD, 0x30000, 0, 0, 0x30000),
        (STORE, 0x30000, 0, 2, 0x30000),
        (MODIFY, 0x30000, 0, 2, 0x30000),
        (LOAD, 0x30001, 0, None, 0x30021),
        (STORE, 0x30001, 0, None, 0x30061),
        (STORE, 0x30001, 1, 3, 0x30001),
        (MODIFY, 0x30001, 1, 3, 0x30001),
        (MODIFY, 0x30003, 1, None, 0x30063),
        (JUMP, 0x30000, 0, 0, 0x30000),
    ],
)
def test_page_faults(pae: bool, code: str, entry: int, wp: int, error: int | None, after: int) -> None:
    machine = paged(pae)
    cpu = machine.cpu
    place = 0x21000 if pae else 0x20000
    machine.put(place, entry.to_bytes(8, "little"))
    cpu.cr0 |= wp << 16
    cpu.state_changed()
    cpu.regs[3] = 0x400008
    run(machine, code)
    if error is None:
        assert cpu.rip == 0x1000 + len(code) // 2
    else:
        assert (vector_of(cpu), stack(machine, 2), cpu.cr2) == (
            14,
            [error, 0x400008 if code == JUMP else 0x1000],
            0x400008,
        )
    assert machine.get(place, 8) == after


def test_no_execute_and_reserved_bits() -> None:
    machine = paged(pae=True)
    cpu = machine.cpu
    machine.put(0x21000, (1 << 63 | 0x30003).to_bytes(8, "little"))
    cpu.regs[3] = 0x400000
    run(machine, JUMP)
    assert (vector_of(cpu), stack(machine, 1)) == (14, [9])  # without EFER.NXE the bit is reserved
    cpu.efer |= 0x800
    cpu.state_changed()
    run(machine, JUMP)
    assert (vector_of(cpu), stack(machine, 1)) == (14, [0x11])


# Long mode.
def long_mode() -> Machine:
    """Return a machine in 64-bit mode at ring 0 with an IDT; vector 14 uses IST 1."""
    machine = Machine(1 << 20)
    cpu = machine.flat(64)
    machine.table(GDT, 0, CODE64, DATA0, CODE3, DATA3, CODE64_USER)
    for vector in range(32):
        machine.table(IDT + 16 * vector, gate(STUBS + 16 * vector) | (1 << 32 if vector == 14 else 0), 0)
    machine.put(STUBS, (b"\xf4" + b"\x90" * 15) * 32)
    machine.put(TSS + 4, (0x7000).to_bytes(8, "little"))
    machine.put(TSS + 36, (0x6000).to_bytes(8, "little"))
    cpu.gdt_base, cpu.gdt_limit, cpu.idt_base, cpu.idt_limit = GDT, 0x3F, IDT, 0x1FF
    task = cpu.segs[7]
    task.base, task.limit, task.type, task.s, task.selector = TSS, 103, 11, 0, 0x40
    return machine


def test_page_fault_on_its_own_stack() -> None:
    machine = long_mode()
    cpu = machine.cpu
    cpu.regs[3] = 0x7FFF00000000
    run(machine, "488b03")  # mov rax,[rbx]
    assert (vector_of(cpu), cpu.cr2, cpu.regs[4]) == (14, 0x7FFF00000000, 0x6000 - 48)
    assert stack(machine, 6, 8) == [0, 0x1000, 8, 0x10002, 0x8000, 16]


@pytest.mark.parametrize(("rbx", "code", "vector"), [(1 << 47, "488b03", 13), (1 << 47, "488b24dc", 13)])
def test_addresses_that_are_not_canonical(rbx: int, code: str, vector: int) -> None:
    machine = long_mode()
    cpu = machine.cpu
    cpu.regs[3] = rbx
    run(machine, code + "f4")
    assert vector_of(cpu) in (vector, 12)


def test_syscall_and_sysret() -> None:
    machine = long_mode()
    cpu = machine.cpu
    cpu.msr[0xC0000081], cpu.msr[0xC0000082], cpu.msr[0xC0000084] = 0x1B << 48 | 8 << 32, 0x2000, 0x200
    cpu.segs[1].dpl = cpu.segs[2].dpl = 3
    cpu.segs[1].selector, cpu.segs[2].selector = 0x2B, 0x23
    cpu.state_changed()
    cpu.set_rflags(0x246)
    machine.put(0x2000, bytes.fromhex("480f07"))  # sysretq
    run(machine, "0f0590f4")  # syscall; nop; hlt: #GP at ring 3
    assert vector_of(cpu) == 13
    assert stack(machine, 6, 8) == [0, 0x1003, 0x2B, 0x10246, 0x8000, 0x23]
    assert (cpu.regs[1], cpu.regs[11], cpu.segs[2].selector) == (0x1002, 0x246, 0)


# Interrupts.
def test_interrupts_wait_for_the_instruction_behind_sti() -> None:
    machine = protected()
    cpu = machine.cpu
    machine.platform.vectors, cpu.irq_pending = [0x31], True
    run(machine, "fb4040f4")  # sti; inc eax; inc eax; hlt
    assert (vector_of(cpu), cpu.regs[0], stack(machine, 1)) == (0x31, 1, [0x1002])
    assert not cpu.get_rflags() & 0x200


def test_hlt_behind_sti_is_left_by_an_interrupt() -> None:
    machine = protected()
    cpu = run(machine, "fbf4")  # sti; hlt
    assert cpu.rip == 0x1002
    machine.platform.vectors, cpu.irq_pending = [0x31], True
    assert cpu.execute(BUDGET) == EXIT_HALT
    assert (vector_of(cpu), stack(machine, 1)) == (0x31, [0x1002])


def test_nmi_is_blocked_until_iret() -> None:
    machine = protected()
    cpu = machine.cpu
    machine.put(STUBS + 32, bytes.fromhex("40cf"))  # inc eax; iret
    cpu.nmi_pending = True
    run(machine, "90f4")
    assert (cpu.regs[0], cpu.nmi_blocked, cpu.rip) == (1, False, 0x1002)


def test_attention_stops_an_endless_loop() -> None:
    machine = protected()
    machine.put(0x1000, b"\xeb\xfe")
    assert machine.cpu.execute(100_000) == EXIT_ATTENTION
    machine.cpu.attention = 1
    before = machine.cpu.instructions
    assert machine.cpu.execute(1 << 60) == EXIT_ATTENTION
    assert machine.cpu.instructions == before + 1  # service(), nothing else
    assert machine.cpu.attention == 0


# Debugging.
def test_single_step_by_the_guest() -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.set_rflags(0x102)
    run(machine, "404040f4")
    assert (vector_of(cpu), cpu.regs[0], stack(machine, 3)) == (1, 1, [0x1001, 8, 0x102])
    assert cpu.dr[6] == 0xFFFF4FF0


def test_instruction_breakpoint_and_resume_flag() -> None:
    machine = protected()
    cpu = machine.cpu
    machine.put(STUBS + 16, bytes.fromhex("43814c24080000 0100cf"))  # inc ebx; or [esp+8],0x10000; iret
    cpu.dr[0], cpu.dr[7] = 0x1001, 0x402
    cpu.update_breakpoints()
    run(machine, "404040f4")
    assert (cpu.regs[0], cpu.regs[3], cpu.dr[6], cpu.rip) == (3, 1, 0xFFFF0FF1, 0x1004)


def test_data_breakpoint_is_a_trap() -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.dr[1], cpu.dr[7] = 0x5000, 0x00D00408  # four bytes, writes
    cpu.update_breakpoints()
    run(machine, "8b1d00500000a300500000f4")  # mov ebx,[0x5000]; mov [0x5000],eax; hlt
    assert (vector_of(cpu), cpu.dr[6], stack(machine, 1)) == (1, 0xFFFF0FF2, [0x100B])


@pytest.mark.parametrize("hot_after", [1, 1 << 60])
def test_the_hosts_breakpoints_and_steps(hot_after: int) -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.hot_after = hot_after
    machine.put(0x1000, bytes.fromhex("404040ebfbf4"))
    cpu.debug_control, cpu.debug_dr[0], cpu.debug_dr[7] = 0x20001, 0x1002, 0x402
    cpu.update_breakpoints()
    for turn in range(3):
        assert cpu.execute(BUDGET) == EXIT_DEBUG
        assert (cpu.exit_pc, cpu.exit_dr6 & 15, cpu.exit_exception, cpu.regs[0]) == (0x1002, 1, 1, 2 + 3 * turn)
        cpu.debug_control = 0x3
        cpu.update_breakpoints()
        assert cpu.execute(BUDGET) == EXIT_DEBUG
        assert (cpu.rip, cpu.exit_dr6 & 0x4000) == (0x1003, 0x4000)
        cpu.debug_control = 0x20001
        cpu.update_breakpoints()
    cpu.debug_control = 0
    cpu.update_breakpoints()
    machine.put(0x1003, b"\xf4")
    assert cpu.execute(BUDGET) == EXIT_HALT


# Devices.
@pytest.mark.parametrize("hot_after", [1, 1 << 60])
def test_a_device_is_read_and_written_by_one_instruction(hot_after: int) -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.hot_after = hot_after
    cpu.regs[3] = 0x200000
    machine.put(0x1000, bytes.fromhex("830305f4"))  # add dword ptr [ebx],5; hlt
    assert cpu.execute(BUDGET) == EXIT_MMIO
    assert (cpu.exit_address, cpu.exit_size, cpu.exit_write, cpu.rip) == (0x200000, 4, False, 0x1000)
    cpu.complete_mmio(b"\x10\0\0\0")
    assert cpu.execute(BUDGET) == EXIT_MMIO
    assert (cpu.exit_address, cpu.exit_write, cpu.exit_data) == (0x200000, True, b"\x15\0\0\0")
    cpu.complete_mmio(None)
    assert cpu.execute(BUDGET) == EXIT_HALT
    assert not cpu.mmio_replay


@pytest.mark.parametrize("hot_after", [1, 1 << 60])
def test_an_interrupt_waits_for_a_device_access_to_end(hot_after: int) -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.hot_after = hot_after
    cpu.regs[3] = 0x200000
    machine.put(STUBS + 0x31 * 16, bytes.fromhex("8b0b cf"))  # mov ecx,[ebx]; iret
    machine.put(0x1000, bytes.fromhex("fb908b03f4"))  # sti; nop; mov eax,[ebx]; hlt
    assert cpu.execute(BUDGET) == EXIT_MMIO
    machine.platform.vectors, cpu.irq_pending = [0x31], True
    cpu.complete_mmio(b"\x11\0\0\0")
    assert cpu.execute(BUDGET) == EXIT_MMIO
    assert (cpu.regs[0], cpu.rip) == (0x11, STUBS + 0x31 * 16)
    cpu.complete_mmio(b"\x22\0\0\0")
    assert cpu.execute(BUDGET) == EXIT_HALT
    assert (cpu.regs[0], cpu.regs[1]) == (0x11, 0x22)


def test_a_string_of_a_port_goes_to_a_device() -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.regs[1], cpu.regs[2], cpu.regs[7] = 2, 0x60, 0x200000
    machine.put(0x1000, bytes.fromhex("f36cf4"))  # rep insb; hlt
    seen: list[tuple[int, bytes]] = []
    while (code := cpu.execute(BUDGET)) in (EXIT_PIO, EXIT_MMIO):
        if code == EXIT_PIO:
            cpu.complete_in(bytes((0x40 + len(seen),)))
        else:
            seen.append((cpu.exit_address, cpu.exit_data))
            cpu.complete_mmio(None)
    assert (code, seen) == (EXIT_HALT, [(0x200000, b"\x40"), (0x200001, b"\x41")])


def test_movs_from_device_to_device() -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.regs[6], cpu.regs[7], cpu.regs[1] = 0x200000, 0x300000, 2
    machine.put(0x1000, bytes.fromhex("f3a5f4"))  # rep movsd; hlt
    seen = []
    while (code := cpu.execute(BUDGET)) == EXIT_MMIO:
        seen.append((cpu.exit_write, cpu.exit_address, cpu.exit_data))
        cpu.complete_mmio(None if cpu.exit_write else cpu.exit_address.to_bytes(4, "big"))
    assert code == EXIT_HALT
    assert seen == [
        (False, 0x200000, b""), (True, 0x300000, b"\0\x20\0\0"), (False, 0x200004, b""),
        (True, 0x300004, b"\0\x20\0\x04"),
    ]  # fmt: skip
    assert (cpu.regs[1], cpu.regs[6], cpu.regs[7]) == (0, 0x200008, 0x300008)


def test_ports() -> None:
    machine = Machine()
    cpu = machine.real()
    machine.put(0x1000, bytes.fromhex("e46088c3e661f4"))  # in al,0x60; mov bl,al; out 0x61,al; hlt
    assert cpu.execute(BUDGET) == EXIT_PIO
    assert (cpu.exit_port, cpu.exit_in, cpu.exit_size, cpu.exit_count, cpu.rip) == (0x60, True, 1, 1, 0x1000)
    cpu.complete_in(b"\x5a")
    assert cpu.execute(BUDGET) == EXIT_PIO
    assert (cpu.exit_port, cpu.exit_in, cpu.exit_data) == (0x61, False, b"\x5a")
    cpu.complete_out()
    assert cpu.execute(BUDGET) == EXIT_HALT
    assert cpu.regs[3] == 0x5A


def test_strings_of_ports_leave_in_batches() -> None:
    machine = Machine()
    cpu = machine.real()
    cpu.regs[1], cpu.regs[2], cpu.regs[7] = 6, 0x1F0, 0x4FFA
    machine.put(0x1000, bytes.fromhex("f36df36ef4"))  # rep insw; rep outsb; hlt
    counts = []
    while (code := cpu.execute(BUDGET)) == EXIT_PIO and cpu.exit_in:
        counts.append(cpu.exit_count)
        cpu.complete_in(bytes(range(cpu.exit_count * 2)))
    assert sum(counts) == 6
    assert counts[-1] == 3
    assert code == EXIT_HALT
    assert machine.get(0x5004, 2) == 0x0504
    cpu.regs[1], cpu.regs[6], cpu.rip = 5, 0x5000, 0x1002
    sent = b""
    while (code := cpu.execute(BUDGET)) == EXIT_PIO:
        sent += cpu.exit_data
        cpu.complete_out()
    assert (code, sent, cpu.regs[6]) == (EXIT_HALT, bytes(range(5)), 0x5005)


def test_no_memory_to_run_from() -> None:
    machine = protected()
    machine.cpu.rip = 0x300000
    assert machine.cpu.execute(BUDGET) == EXIT_FAIL
    assert machine.cpu.rip == 0x300000


# Code that changes.
@pytest.mark.parametrize("hot_after", [1, 3, 1 << 60])
def test_code_changes_itself(hot_after: int) -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.hot_after = hot_after
    cpu.regs[1] = 20
    run(machine, "b011fe05011000004975f5f4")  # l: mov al,0x11; inc byte ptr [l+1]; dec ecx; jnz l; hlt
    assert (cpu.regs[0], machine.get(0x1001, 1)) == (0x11 + 19, 0x11 + 20)
    run(machine, "c6050810000022b011f4", 0x1000)  # mov byte ptr [l+1],0x22; l: mov al,0x11; hlt
    assert cpu.regs[0] == 0x22


@pytest.mark.parametrize("hot_after", [1, 1 << 60])
def test_the_host_changes_code(hot_after: int) -> None:
    machine = protected()
    machine.cpu.hot_after = hot_after
    for value in (1, 2, 3):
        cpu = run(machine, f"b8{value:02x}000000f4")  # mov eax,value; hlt
        assert cpu.regs[0] == value


def test_stores_beside_code_are_cheap_and_right() -> None:
    machine = protected()
    cpu = machine.cpu
    cpu.hot_after = 2
    cpu.regs[1] = 300
    run(machine, "890dc0100000ff05c4100000e2f2f4")  # l: mov [0x10c0],ecx; inc dword ptr [0x10c4]; loop l; hlt
    assert (machine.get(0x10C0, 4), machine.get(0x10C4, 4), cpu.rip) == (1, 300, 0x100F)


def test_the_store_of_code_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvcpu.tcg.blocks.MOST_INSNS", 200)
    monkeypatch.setattr("pyvcpu.tcg.translate.MOST_FUNCTIONS", 3)
    machine = protected()
    cpu = machine.cpu
    cpu.hot_after = 2
    machine.put(0x1000, b"\x40\xeb\x00" * 0x800 + b"\xf4")  # inc eax; jmp to the next
    for turn in range(1, 4):
        cpu.rip = 0x1000
        assert cpu.execute(1 << 20) == EXIT_HALT
        assert cpu.regs[0] == 0x800 * turn
        assert cpu.code.insns <= 200 + 48
        assert cpu.code.functions <= 3
