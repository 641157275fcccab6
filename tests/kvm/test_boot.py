"""Every vCPU starts once, in the promised state: told by guests, and by the registers before they take a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvcpu import ConfigError, ImageError, Machine, State
from pyvcpu.exits import ExitEvent, Halt, MmioRead, MmioWrite, PortOut
from pyvcpu.kvm import Kvm
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.x86.flags import CR0, CR4, EFER
from pyvcpu.x86.start import gdt
from tests.kvm.support import DEVICE, GUESTS, HLT, IMAGES, boot, machine, record
from tests.threads import DEADLINE

PAGE = 4096
GIB = 1 << 30
MODES = ("real", "protected", "long")
STACK = {"real": 256, "protected": 16 << 10, "long": 16 << 10}  # at least
COUNTS = [("real", smp) for smp in (1, 4, 64, 255, 1024)] + [
    (mode, smp) for mode in ("protected", "long") for smp in (1, 4, 64, 255)
]


@pytest.mark.parametrize(("mode", "smp"), COUNTS)
def test_every_index_starts_exactly_once(mode: str, smp: int) -> None:
    """tests/guests/indices_*.S: one line "index count" per vCPU, printed by the last one to arrive."""
    with Kvm(DEVICE) as kvm:
        limit = kvm.check_extension(abi.KVM_CAP_MAX_VCPUS)
    if smp > limit:
        pytest.skip(f"this KVM has room for {limit} vCPUs")
    guest = GUESTS / f"indices_{mode}.bin"
    assert guest.stat().st_size <= PAGE
    done = boot(guest, "--mode", mode, "--smp", smp)
    assert done.stdout.decode().splitlines() == [f"{index} 1" for index in range(smp)]
    assert (done.returncode, done.stderr) == (0, b"")


# The starting state, by the registers of vCPUs that are created and have not run.


def linear_top(made: Machine, index: int) -> int:
    """Return the linear address just above a vCPU's stack."""
    vcpu = made.vcpus[index]
    return int(vcpu.sregs.ss.base + vcpu.registers.rsp)


@pytest.mark.parametrize("mode", MODES)
def test_registers_before_the_first_step(mode: str) -> None:
    with machine(HLT, 4, memory="2M", mode=mode, load=0x2000, entry=0x2000) as made:
        made.start()
        assert [vcpu.state for vcpu in made.vcpus] == [State.PAUSED] * 4
        for vcpu in made.vcpus:
            regs, sregs = vcpu.registers.copy(), vcpu.sregs.copy()
            assert (regs.rdi, regs.rsi) == (vcpu.index, 4)
            assert sregs.cs.base + regs.rip == 0x2000
            assert regs.rflags == 2, "interrupts off, direction up"
            assert bool(sregs.cr0 & CR0.PE) == (mode != "real")
            assert bool(sregs.cr0 & CR0.PG) == (mode == "long")
            assert bool(sregs.cr4 & CR4.PAE) == (mode == "long")
            assert sregs.efer == (EFER.LME | EFER.LMA if mode == "long" else 0)
            data = [getattr(sregs, name) for name in ("ds", "es", "fs", "gs")]
            if mode == "real":
                assert {segment.limit for segment in (sregs.cs, sregs.ss, *data)} == {0xFFFF}
                assert all(segment.base == segment.selector << 4 for segment in (sregs.cs, sregs.ss, *data))
                assert {segment.base for segment in data} == {0}
            else:
                assert {segment.limit for segment in (sregs.cs, sregs.ss, *data)} == {0xFFFF_FFFF}
                assert {segment.base for segment in (sregs.cs, sregs.ss, *data)} == {0}
                assert {segment.dpl for segment in (sregs.cs, sregs.ss, *data)} == {0}
                assert (sregs.cs.l, sregs.cs.db) == ((1, 0) if mode == "long" else (0, 1))


@pytest.mark.parametrize("smp", [1, 4, 64])
@pytest.mark.parametrize("mode", MODES)
def test_stacks_are_apart_from_each_other_and_from_the_image(mode: str, smp: int) -> None:
    image = HLT * PAGE
    with machine(image, smp, memory="4M", mode=mode) as made:
        made.start()
        tops = sorted(linear_top(made, index) for index in range(smp))
        assert all(b - a >= STACK[mode] for a, b in itertools.pairwise(tops))
        for top in tops:
            low = top - STACK[mode]
            assert made.memory.read(low, STACK[mode]) == bytes(STACK[mode]), "something else lies there"
            assert low >= 0x1000
            assert not (low < 0x1000 + len(image) and top > 0x1000)


@pytest.mark.parametrize(
    ("mode", "code", "width"),
    [
        (
            "real",
            "b9 80 00"  # mov $128,%cx
            "57"  # 1: push %di
            "e2 fd"  # loop 1b
            "f4",  # hlt
            2,
        ),
        (
            "protected",
            "b9 00 10 00 00"  # mov $4096,%ecx
            "57"  # 1: push %edi
            "e2 fd"  # loop 1b
            "f4",  # hlt
            4,
        ),
        (
            "long",
            "b9 00 08 00 00"  # mov $2048,%ecx
            "57"  # 1: push %rdi
            "e2 fd"  # loop 1b
            "f4",  # hlt
            8,
        ),
    ],
)
def test_stacks_hold_what_is_pushed(mode: str, code: str, width: int) -> None:
    """Each vCPU fills the least stack it was promised with its index; nobody's index is in another's."""
    smp, image = 16, bytes.fromhex(code).ljust(PAGE, HLT)
    with machine(image, smp, mode=mode) as made:
        made.start()
        tops = [linear_top(made, index) for index in range(smp)]
        assert made.run(DEADLINE).reason == "halted"
        for index, top in enumerate(tops):
            expected = index.to_bytes(width, "little") * (STACK[mode] // width)
            assert made.memory.read(top - STACK[mode], STACK[mode]) == expected
        assert made.memory.read(0x1000, len(image)) == image


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (
            "protected",
            "66 8c d8"  # mov %ds,%ax
            "8e d8"  # mov %ax,%ds
            "8e c0"  # mov %ax,%es
            "8e e0"  # mov %ax,%fs
            "8e e8"  # mov %ax,%gs
            "66 8c d0"  # mov %ss,%ax
            "8e d0"  # mov %ax,%ss
            "0e"  # push %cs
            "68 17 10 00 00"  # push $1f
            "cb"  # lret
            "b0 4f"  # 1: mov $0x4f,%al
            "e6 50"  # out %al,$0x50
            "f4",  # hlt
        ),
        (
            "long",
            "8c d8"  # mov %ds,%eax
            "8e d8"  # mov %eax,%ds
            "8e c0"  # mov %eax,%es
            "8e e0"  # mov %eax,%fs
            "8e e8"  # mov %eax,%gs
            "8c d0"  # mov %ss,%eax
            "8e d0"  # mov %eax,%ss
            "8c c8"  # mov %cs,%eax
            "50"  # push %rax
            "48 8d 05 03 00 00 00"  # lea 1f(%rip),%rax
            "50"  # push %rax
            "48 cb"  # lretq
            "b0 4f"  # 1: mov $0x4f,%al
            "e6 50"  # out %al,$0x50
            "f4",  # hlt
        ),
    ],
)
def test_every_segment_can_be_loaded_anew_from_the_descriptor_table(mode: str, code: str) -> None:
    with machine(bytes.fromhex(code), mode=mode) as made:
        events = record(made)
        made.start()
        table = made.vcpus[0].sregs.gdt
        assert made.memory.read(table.base, table.limit + 1) == gdt()
        outcome = made.run(DEADLINE)
        assert outcome.reason == "halted", outcome.report
        assert events == [PortOut(0x50, b"O"), Halt()]


@pytest.mark.parametrize(
    ("memory", "addresses"),
    [
        ("1M", [0, 0x1234, 1 << 20, 3 * GIB, 4 * GIB - 1]),
        ("4G", [0, 0xBFFFFFFF, 0xC0000000, 4 * GIB - 1, 4 * GIB, 5 * GIB - 1]),
    ],
)
def test_long_mode_maps_addresses_to_themselves(memory: str, addresses: list[int]) -> None:
    with machine(HLT, memory=memory, mode="long") as made:
        made.start()
        found = made.vcpus[0].run_on_cpu(lambda vcpu: [vcpu.fd.translate(address) for address in addresses])
        assert found == addresses
        assert made.vcpus[0].run_on_cpu(lambda vcpu: vcpu.fd.translate(1 << 46)) is None


def test_long_mode_reaches_ram_above_the_hole() -> None:
    code = bytes.fromhex(
        "48 bb 00 00 00 00 01 00 00 00"  # mov $0x100000000,%rbx
        "c7 03 78 56 34 12"  # movl $0x12345678,(%rbx)
        "bb f0 ff ff ff"  # mov $0xfffffff0,%ebx
        "48 8b 03"  # mov (%rbx),%rax
        "48 a3 00 00 00 d0 00 00 00 00"  # mov %rax,0xd0000000
        "f4"  # hlt
    )
    with machine(code, memory="4G", mode="long") as made:
        events = record(made)
        assert made.run(DEADLINE).reason == "halted"
        assert events == [MmioRead(0xFFFFFFF0, 8), MmioWrite(0xD0000000, b"\xff" * 8), Halt()]
        assert made.memory.read_int(4 * GIB) == 0x12345678


# Where it is loaded, where it starts, who starts.

WHERE = bytes.fromhex(
    "e8 00 00"  # call 1f
    "58"  # 1: pop %ax
    "e7 50"  # out %ax,$0x50
    "88 d0"  # mov %dl,%al
    "e6 51"  # out %al,$0x51
    "f4"  # hlt
)


@pytest.mark.parametrize(
    ("load", "entry", "offset"),
    [(None, None, 0x1000), (0x8000, None, 0x8000), (0x7FF0, 0x8000, 0x8000), (0x2FFF0, 0x30000, 0)],
)
def test_load_address_and_entry(load: int | None, entry: int | None, offset: int) -> None:
    """In real mode IP is the low half of the linear address: code that is linked at its address finds itself."""
    skipped = (entry or 0) - (load or 0) if entry else 0
    with machine(b"\xff" * skipped + WHERE, load=load, entry=entry) as made:
        events = record(made)
        assert made.run(DEADLINE).reason == "halted"
        address = (offset + 3).to_bytes(2, "little")
        assert events == [PortOut(0x50, address, 2), PortOut(0x51, b"\0"), Halt()]


def test_load_address_and_entry_on_the_command_line(image: Callable[[bytes], Path]) -> None:
    guest = image(
        bytes.fromhex(
            "b0 41"  # mov $'A',%al
            "eb 02"  # jmp 1f
            "b0 42"  # mov $'B',%al
            "e6 e9"  # 1: out %al,$0xe9
            "f4"  # hlt
        )
    )
    assert boot(guest).stdout == b"A"
    assert boot(guest, "--entry", "0x1004").stdout == b"B"
    assert boot(guest, "--load", "0x20000", "--mode", "protected", "--smp", "3").stdout == b"AAA"
    assert boot(guest, "--load", "128K", "--entry", "131076", "--mode", "long").stdout == b"B"


PRINT_INDEX = bytes.fromhex(
    "89 f8"  # mov %di,%ax
    "04 30"  # add $'0',%al
    "e6 e9"  # out %al,$0xe9
    "f4"  # hlt
)


def test_who_starts(image: Callable[[bytes], Path]) -> None:
    """Without a local APIC nobody can wake those that wait: the machine ends when the first one has halted."""
    guest = image(PRINT_INDEX)
    assert sorted(boot(guest, "--smp", 4).stdout) == sorted(b"0123")
    assert sorted(boot(guest, "--smp", 4, "--start", "all").stdout) == sorted(b"0123")
    done = boot(guest, "--smp", 4, "--start", "bsp")
    assert (done.stdout, done.returncode) == (b"0", 0)


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_application_processors_wait_for_a_sipi(irqchip: str) -> None:
    bsp = bytes.fromhex(
        "bb 00 00 e0 fe"  # mov $0xfee00000,%ebx           local APIC
        "c7 83 f0 00 00 00 ff 01 00 00"  # movl $0x1ff,0xf0(%ebx)      enable it
        "c7 83 00 03 00 00 00 45 0c 00"  # movl $0xc4500,0x300(%ebx)   INIT to all but itself
        "c7 83 00 03 00 00 08 46 0c 00"  # movl $0xc4608,0x300(%ebx)   SIPI, vector 8: 0x8000
        "80 3d 00 90 00 00 03"  # 1: cmpb $3,0x9000
        "75 f7"  # jne 1b
        "b0 05"  # mov $5,%al
        "e6 f4"  # out %al,$0xf4
        "f4"  # hlt
    )
    ap = bytes.fromhex(
        "31 c0"  # xor %ax,%ax
        "8e d8"  # mov %ax,%ds
        "f0 fe 06 00 90"  # lock incb 0x9000
        "fa"  # cli
        "f4"  # 1: hlt
        "eb fd"  # jmp 1b
    )
    with machine(bsp, 4, mode="protected", irqchip=irqchip, start="bsp") as made:
        made.memory.write(0x8000, ap)
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status) == ("exit", 11)
        assert made.memory[0x9000] == 3


APICS = bytes.fromhex(
    "a1 30 00 e0 fe"  # mov 0xfee00030,%eax    version of the local APIC
    "ba 50 00 00 00"  # mov $0x50,%edx
    "ef"  # out %eax,%dx
    "a1 00 00 c0 fe"  # mov 0xfec00000,%eax    index register of the IOAPIC
    "ef"  # out %eax,%dx
    "f4"  # hlt
)


@pytest.mark.parametrize(
    ("irqchip", "outside"), [("none", [0xFEE00030, 0xFEC00000]), ("kernel", []), ("split", [0xFEC00000])]
)
def test_interrupt_controllers_in_the_kernel(irqchip: str, outside: list[int]) -> None:
    """What the kernel does not have comes out as MMIO; what nobody has reads as all ones."""
    with machine(APICS, mode="protected", irqchip=irqchip) as made:
        read: list[int] = []
        seen: list[bytes] = []

        def on_mmio(vcpu: object, event: ExitEvent) -> None:
            assert isinstance(event, MmioRead)
            read.append(event.address)

        def write(vcpu: object, data: bytes) -> None:
            seen.append(data)
            if len(seen) == 2:
                made.stop()

        made.on_exit(Exit.MMIO, on_mmio)
        made.on_port(0x50, write=write)
        made.run(DEADLINE)
        assert read == outside
        assert [data == b"\xff" * 4 for data in seen] == [irqchip == "none"] * 2


@pytest.mark.parametrize("irqchip", ["none", "kernel", "split"])
def test_interrupt_controllers_on_the_command_line(irqchip: str) -> None:
    """examples/images/exit3.S"""
    assert boot(IMAGES / "exit3.bin", "--irqchip", irqchip, "--smp", 2).returncode == 7


# Boot sectors.


def test_boot_sector() -> None:
    """examples/images/boot.S"""
    done = boot(IMAGES / "boot.bin")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"boot sector alive, drive 80\n", b"")
    assert boot(IMAGES / "boot.bin", "--smp", 4).stdout == b"boot sector alive, drive 80\n"


SECTOR = WHERE.ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize(
    ("format", "address", "drive"), [(None, 0x7C03, 0x80), ("bootsector", 0x7C03, 0x80), ("flat", 0x1003, 0)]
)
def test_the_format_can_be_overridden(format: str | None, address: int, drive: int) -> None:
    with machine(SECTOR, format=format, irqchip="none") as made:
        events = record(made)
        assert made.run(DEADLINE).reason == "halted"
        assert events == [PortOut(0x50, address.to_bytes(2, "little"), 2), PortOut(0x51, bytes([drive])), Halt()]


def test_the_format_can_be_overridden_on_the_command_line(image: Callable[[bytes], Path]) -> None:
    code = PRINT_INDEX + b"\x00" * (510 - len(PRINT_INDEX)) + b"\x55\xaa"
    assert sorted(boot(image(code), "--format", "flat", "--smp", 3).stdout) == sorted(b"012")
    done = boot(image(code[:511]), "--format", "bootsector")
    assert done.returncode == 2
    assert b"0x55" in done.stderr


def test_boot_sector_on_every_vcpu() -> None:
    with machine(SECTOR, 4, format="bootsector", irqchip="none", start="all") as made:
        written: list[bytes] = []
        made.on_port(0x50, write=lambda vcpu, data: written.append(data))
        assert made.run(DEADLINE).reason == "halted"
        assert written == [b"\x03\x7c"] * 4


# Loading.


def test_an_image_can_be_a_file_or_bytes(image: Callable[[bytes], Path]) -> None:
    for given in (HLT, bytearray(HLT), image(HLT), str(image(HLT))):
        with machine(given) as made:  # type: ignore[arg-type]  # all that load() takes
            assert made.memory.read(0x1000, 2) == HLT + b"\0"


def test_what_cannot_be_loaded(image: Callable[[bytes], Path]) -> None:
    with pytest.raises(ImageError, match="does not fit"):
        machine(bytes(1 << 20))
    with pytest.raises(ImageError, match="does not fit"):
        machine(image(bytes(2 << 20)))
    with pytest.raises(ConfigError, match="start must be all or bsp"):
        machine(HLT, start="some")
    with pytest.raises(ConfigError, match="irqchip must be"):
        machine(HLT, irqchip="some")
    with pytest.raises(FileNotFoundError):
        machine(Path("/nonexistent"))
    with pytest.raises(ConfigError, match="at least 1 vCPU"):
        machine(HLT, 0)
