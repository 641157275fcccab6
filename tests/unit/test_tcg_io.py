"""The software KVM's event file descriptors, coalesced writes, slots, MSRs and CPUID."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.kvm import KvmError, abi
from pyvcpu.kvm.abi import Cap, Exit
from pyvcpu.kvm.msrs import MsrFilterRange
from pyvcpu.kvm.routes import MsiRoute
from pyvcpu.tcg import cpuid, msrs
from pyvcpu.tcg.cpuid import Table
from pyvcpu.tcg.memory import LOG_DIRTY_PAGES, READONLY, Memory
from tests.tcg_kvm import CODE, PAGE, address_of, rig
from tests.threads import Caller, until

VECTOR = 0x40


def count_of(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


# ioeventfd.


def test_an_ioeventfd_is_exact() -> None:
    """out %al (5), out %al (6), out %ax to port 0x80: only the first signals."""
    with rig() as made:
        fd = eventfd()
        with made.vm.ioeventfd(fd, 0x80, 1, datamatch=5, pio=True):
            made.start(b"\xb0\x05\xe6\x80\xb0\x06\xe6\x80\xe7\x80\xf4")
            assert made.out(3) == b"\x06\x06\x00"
            assert count_of(fd) == 1
        os.close(fd)


def test_an_eventfd_may_be_closed_under_its_number() -> None:
    with rig() as made:
        fd = eventfd()
        mine = os.dup(fd)
        registration = made.vm.ioeventfd(fd, 0x80, 1, pio=True)
        os.close(fd)
        made.start(b"\xe6\x80\xf4")
        assert made.run().exit_reason == Exit.HLT
        assert count_of(mine) == 1
        os.dup2(mine, fd)
        registration.close()
        os.close(mine)
        os.close(fd)


# irqfd.


def test_an_irqfd_wakes_a_halted_guest() -> None:
    with rig(1, "kernel") as made:
        registers = bytearray(made.vcpu.get_lapic())
        registers[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
        made.vcpu.set_lapic(bytes(registers))
        made.handler(VECTOR)
        made.start(b"\xfb\xf4\xb0.\xe6\xe9\xf4")
        fd = os.eventfd(0)
        made.vm.set_gsi_routing([MsiRoute(30, 0xFEE00000, VECTOR)])
        with made.vm.irqfd(fd, 30):
            caller = Caller(lambda: made.out(2))
            until(lambda: made.inside().sleeping)
            os.eventfd_write(fd, 1)
            assert caller.done()
            assert caller.result == b"I."
        os.close(fd)


def test_many_irqfds_come_and_go() -> None:
    with rig(1, "kernel") as made:
        before = threading.active_count()
        fds = [eventfd() for _ in range(20)]
        for _ in range(5):
            for registration in [made.vm.irqfd(fd, 9) for fd in fds]:
                registration.close()
        assert threading.active_count() <= before + 1
        for fd in fds:
            os.close(fd)


# Coalesced writes.


def test_the_ring_is_the_same_in_every_mapping() -> None:
    with rig(2) as made:
        rings = [vcpu.coalesced_ring(page) for vcpu, page in zip(made.vcpus, made.pages, strict=True)]
        with made.vm.register_coalesced_mmio(0x70, 2, pio=True):
            made.start(b"\xb0\x01\xe6\x70\xf4")
            made.start(b"\xb0\x02\xe7\x71\xe6\x71\xf4", 1, 0x2000)  # out %ax,$0x71 is not within the zone
            assert made.run().exit_reason == Exit.HLT
            assert made.run(1).exit_reason == Exit.IO
            assert made.run(1).exit_reason == Exit.HLT
            assert [(write.address, write.data) for write in rings[0].drain()] == [(0x70, b"\1"), (0x71, b"\2")]
            assert rings[1].drain() == []


def test_a_ring_whose_indices_are_nonsense_is_full() -> None:
    with rig() as made, made.vm.register_coalesced_mmio(0x70, 1, pio=True):
        for at, indices in enumerate(((0, 170), (170, 0), (1 << 31, 5), (0xFFFFFFFF, 0xFFFFFFFF))):
            struct.pack_into("<II", made.page, 8192, *indices)
            made.start(b"\xe6\x70\xf4", at=CODE + 16 * at)
            assert made.run().exit_reason == Exit.IO


# Slots.


def test_the_life_of_a_slot() -> None:
    memory = Memory()
    with mmap.mmap(-1, 4 * PAGE) as host:
        place = address_of(host)
        host[PAGE] = 0x55
        memory.set_region(0, 0, 0x10000, 4 * PAGE, place)
        page = memory.page(0x11)
        assert page is not None
        assert (page[0], memory.page(0x14), memory.writable(0x13)) == (0x55, None, True)
        generation = memory.generation
        assert memory.set_region(0, 0, 0x20000, 4 * PAGE, place)
        assert memory.generation != generation
        assert memory.page(0x11) is None
        page = memory.page(0x21)
        assert page is not None
        assert page[0] == 0x55
        assert memory.read(0x21000, 2) == b"\x55\0"
        assert memory.write(0x21FFF, b"ab")
        assert host[2 * PAGE - 1 : 2 * PAGE + 1] == b"ab"
        assert not memory.write(0x23FFF, b"ab")
        memory.set_region(0, 0, 0, 0, 0)
        assert memory.page(0x21) is None
        del page


def refusal(memory: Memory, *arguments: int) -> int | None:
    try:
        memory.set_region(*arguments)
    except OSError as error:
        return error.errno
    return None


def test_slots_that_are_refused() -> None:
    memory = Memory()
    assert refusal(memory, 0, 0, 0, 0x10000, 0x100000) is None
    assert refusal(memory, 1, 0, 0xF000, 0x1000, 0x100000) == errno.EEXIST
    assert refusal(memory, 1, 0, 0x10000, 0x1000, 0x100000) is None
    assert refusal(memory, 0, 0, 0x1000, 0x10000, 0x100000) == errno.EEXIST
    for arguments in (
        (0, 0, 0, 0x20000, 0x100000), (0, READONLY, 0, 0x10000, 0x100000), (0, 0, 0, 0x10000, 0x200000),
        (2, 4, 0x20000, 0x1000, 0), (2, 0, 0x20001, 0x1000, 0), (2, 0, 0x20000, 0x1001, 0), (2, 0, 0x20000, 0x1000, 1),
        (2, 0, 1 << 52, 0x1000, 0), (2, 0, (1 << 64) - 0x1000, 0x2000, 0), (2, 0, 0x20000, 0x1000, 1 << 47),
        (32764, 0, 0x20000, 0x1000, 0), (5, 0, 0, 0, 0),
    ):  # fmt: skip
        assert refusal(memory, *arguments) == errno.EINVAL, arguments


@given(st.lists(st.tuples(st.sampled_from(["mark", "take", "clear"]), st.integers(0, 129)), max_size=40))
def test_the_dirty_log_is_a_set(steps: list[tuple[str, int]]) -> None:
    memory = Memory()
    memory.set_region(3, LOG_DIRTY_PAGES, 0x100000, 130 * PAGE, 0x100000)
    expected: set[int] = set()
    for step, number in steps:
        if step == "mark":
            memory.mark_dirty(0x100 + number)
            expected.add(number)
        elif step == "clear":
            first = number & ~63
            memory.clear_log(3, first, min(64, 130 - first), 1 << (number - first))
            expected.discard(number)
        else:
            found = int.from_bytes(memory.take_log(3, bool(number & 1)), "little")
            assert {bit for bit in range(192) if found >> bit & 1} == expected
            if not number & 1:
                expected.clear()
    assert len(memory.take_log(3, True)) == 24


def test_a_slot_that_is_dirty_at_first() -> None:
    memory = Memory()
    memory.initially_set = True
    memory.set_region(0, LOG_DIRTY_PAGES, 0, 70 * PAGE, 0)
    assert int.from_bytes(memory.take_log(0, True), "little") == (1 << 70) - 1


# MSRs.


def rdmsr(index: int) -> bytes:
    """mov $index,%ecx; rdmsr; in real mode"""
    return b"\x66\xb9" + index.to_bytes(4, "little") + b"\x0f\x32"


def wrmsr(index: int, value: int) -> bytes:
    """mov, mov, mov; wrmsr; in real mode"""
    halves = [(value >> at & 0xFFFFFFFF).to_bytes(4, "little") for at in (0, 32)]
    return b"\x66\xb9" + index.to_bytes(4, "little") + b"\x66\xb8" + halves[0] + b"\x66\xba" + halves[1] + b"\x0f\x30"


def test_an_msr_that_user_space_answers() -> None:
    with rig() as made:
        made.vm.enable_cap(Cap.X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
        made.handler(13, b"\xb0G\xe6\xe9\xf4")
        made.start(rdmsr(0xDEAD) + b"\x66\xe7\x50" + wrmsr(0xDEAD, 0x1_0000_0002) + b"\xf4")
        run = made.run()
        assert (run.exit_reason, run.msr.index, run.msr.reason) == (Exit.X86_RDMSR, 0xDEAD, 2)
        struct.pack_into("<Q", made.page, 48, 0x1234)
        assert made.out(4) == b"\x34\x12\0\0"
        run = made.run()
        assert (run.exit_reason, run.msr.data) == (Exit.X86_WRMSR, 0x1_0000_0002)
        made.page[32] = 1  # error: #GP
        assert made.out(1) == b"G"


def test_a_filter_without_exits_is_a_general_protection_fault() -> None:
    with rig() as made:
        made.vm.x86_set_msr_filter([MsrFilterRange(0x10, b"\0", 1)])
        made.handler(13, b"\xb0G\xe6\xe9\xf4")
        made.start(rdmsr(0x10) + b"\xf4")
        assert made.out(1) == b"G"


@pytest.mark.parametrize(
    ("index", "value", "fine"),
    [
        (0x2FF, 0xC06, True), (0x2FF, 0xC02, False), (0x250, 0x0606060606060606, True), (0x250, 2, False),
        (0x201, 0xFFF000800, True), (0x201, 1 << 50, False), (0x8B, 0, True), (0xCE, 1, False),
        (0x1B, 0xFEE00900, True), (0x1B, 1 << 50, False), (0x277, 0x0007040600070406, True), (0x277, 2, False),
        (0x10A, 0, False), (0x3B, 5, True), (0x3A, 1, True), (0x17A, 0, True), (0xFE, 0, False),
        (0xC0000080, 0x501, True), (0xDEAD, 0, False),
    ],
)  # fmt: skip
def test_what_a_guest_may_write(index: int, value: int, fine: bool) -> None:
    with rig() as made:
        made.handler(13, b"\xb0G\xe6\xe9\xf4")
        made.start(wrmsr(index, value) + b"\xb0.\xe6\xe9\xf4")
        assert made.out(1) == (b"." if fine else b"G")


def test_tsc_adjust_follows_what_the_guest_writes() -> None:
    """SDM vol. 3B, 18.17.3"""
    with rig() as made:
        made.start(wrmsr(0x10, 1 << 60) + b"\xf4")
        assert made.run().exit_reason == Exit.HLT
        ((_, adjust), (_, tsc)) = made.vcpu.get_msrs([0x3B, 0x10])
        assert tsc >> 60 == 1
        assert adjust <= 1 << 60
        made.start(wrmsr(0x3B, 0) + b"\xf4")
        assert made.run().exit_reason == Exit.HLT
        assert made.vcpu.get_msrs([0x10])[0][1] < 600_000_000_000


def test_every_listed_msr_can_be_read_and_written_back() -> None:
    with rig(1, "kernel") as made:
        made.vcpu.x86_setup_mce(1 << 24 | 1 << 8 | 4)
        for index in made.kvm.get_msr_index_list():
            (value,) = made.vcpu.get_msrs([index])
            made.vcpu.set_msrs([value])
        features = made.kvm.get_msr_feature_index_list()
        assert dict(made.kvm.get_msrs(features)) == msrs.FEATURE_MSRS


# CPUID.


def test_each_feature_has_a_place_of_its_own() -> None:
    assert len(set(cpuid.FEATURES.values())) == len(cpuid.FEATURES)
    assert set(cpuid.BUILT) <= set(cpuid.FEATURES)


def test_leaves_out_of_range() -> None:
    """The highest basic leaf on Intel's processors; a level of the topology that there is not has its number."""
    table = Table(cpuid.supported())
    top = table.look_up(0, 0)[0]
    assert table.look_up(0x1234_5678 & 0x3FFF_FFFF, 0) == table.look_up(top, 0)
    assert table.look_up(0x4000_0005, 0) == (0, 0, 0, 0)
    assert table.look_up(0x8000_1234, 0) == table.look_up(top, 0)
    assert table.look_up(0xB, 7)[2] == 7
    assert Table([]).look_up(0, 0) == (0, 0, 0, 0)


def test_what_the_guest_sees() -> None:
    """mov $1,%eax; cpuid; out %ecx; out %edx"""
    with rig() as made:
        made.start(b"\x66\xb8\x01\0\0\0\x0f\xa2\x66\x89\xc8\x66\xe7\x50\x66\x89\xd0\x66\xe7\x50\xf4")
        ecx, edx = struct.unpack("<II", made.out(8))
        found = made.kvm.get_supported_cpuid().find(1)
        assert found is not None
        assert (ecx, edx) == (found.ecx, found.edx)
        assert made.vcpu.get_regs().rip == CODE + 17
        sregs = made.vcpu.get_sregs()
        sregs.cr4, sregs.apic_base = 1 << 18, 0xFEE00100
        made.vcpu.set_sregs(sregs)
        first = made.vcpu.get_cpuid2().find(1)
        assert first is not None
        assert first.ecx >> 27 & 1 == 1  # OSXSAVE
        assert first.edx >> 9 & 1 == 0  # no APIC


def test_cpuid_counts_once_a_vcpu_has_run() -> None:
    with rig() as made:
        made.start(b"\xf4")
        made.run()
        table = made.vcpu.get_cpuid2()
        made.vcpu.set_cpuid2(table)
        table[0].eax += 1
        with pytest.raises(KvmError) as caught:
            made.vcpu.set_cpuid2(table)
        assert caught.value.errno == errno.EINVAL


# Dirty rings.


def test_a_dirty_ring_that_fills_up_loses_nothing() -> None:
    """4096 bytes are 256 entries, of which 64 stay free; each write is to another page of a slot of 300."""
    with mmap.mmap(-1, 300 * PAGE) as host, rig() as other:
        vm = other.kvm.create_vm()
        vm.enable_cap(Cap.DIRTY_LOG_RING, 4096)
        vm.set_user_memory_region(0, 0, 300 * PAGE, address_of(host), LOG_DIRTY_PAGES)
        with vm, vm.create_vcpu(0) as vcpu, vcpu.map_run(other.kvm.get_vcpu_mmap_size()) as page:
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            sregs.cr0 |= 1
            for segment in (sregs.cs, sregs.ds):
                segment.limit, segment.g, segment.db = 0xFFFFFFFF, 1, 1
            vcpu.set_sregs(sregs)
            code = b"\x88\x03\x81\xc3\x00\x10\x00\x00\xeb\xf6"  # 1: mov %al,(%ebx); add $0x1000,%ebx; jmp 1b
            host[0x100 : 0x100 + len(code)] = code
            vcpu.set_regs(abi.kvm_regs(rip=0x100, rbx=0x1000, rflags=2))
            with vcpu.map_dirty_ring() as ring:
                assert (vcpu.run(), page[8]) == (0, Exit.MMIO)  # behind the slot's end
                assert (vcpu.run(), page[8]) == (0, Exit.DIRTY_RING_FULL)
                found = ring.harvest()
                assert vm.reset_dirty_rings() == len(found) == 256
                assert found + ring.harvest() == [(0, number) for number in range(1, 300)]
