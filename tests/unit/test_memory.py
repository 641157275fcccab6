"""Guest memory against a model, the hole below 4 GiB, sizes as people write them, and what is refused."""

from __future__ import annotations

import array
import errno
import mmap
import os
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyvcpu import ConfigError, GuestMemory, GuestMemoryError, HostMemoryError, Machine, PyvcpuError
from pyvcpu.kvm import Kvm
from pyvcpu.memory import FOUR_GIB, HOLE, HUGE_PAGE, LARGE, format_size, parse_size
from tests.fake_kernel import FakeKernel

PAGE = 4096
SIZE = 4 * PAGE
GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


@pytest.fixture(scope="module")
def large() -> Iterator[GuestMemory]:
    """4 GiB of which hardly anything is ever touched: 3 GiB below the hole, 1 GiB above 4 GiB."""
    memory = GuestMemory("4G")
    yield memory
    memory.close()


class AgainstModel(RuleBasedStateMachine):
    """Every way to read and write, against a bytearray."""

    addresses = st.integers(0, SIZE - 1)
    contents = st.binary(max_size=64)

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(SIZE)
        self.model = bytearray(SIZE)

    @rule(address=addresses, data=contents)
    def write(self, address: int, data: bytes) -> None:
        if address + len(data) <= SIZE:
            self.memory.write(address, data)
            self.model[address : address + len(data)] = data
        else:
            with pytest.raises(GuestMemoryError):
                self.memory.write(address, data)

    @rule(address=addresses, data=contents)
    def write_slice(self, address: int, data: bytes) -> None:
        data = data[: SIZE - address]
        self.memory[address : address + len(data)] = data
        self.model[address : address + len(data)] = data

    @rule(address=addresses, value=st.integers(0, 255))
    def write_byte(self, address: int, value: int) -> None:
        self.memory[address] = value
        self.model[address] = value

    @rule(address=addresses, data=contents)
    def write_view(self, address: int, data: bytes) -> None:
        data = data[: SIZE - address]
        view = self.memory.view(address, len(data))
        view[:] = data
        view.release()
        self.model[address : address + len(data)] = data

    @rule(address=addresses, size=st.sampled_from([1, 2, 4, 8]), data=st.data())
    def write_number(self, address: int, size: int, data: st.DataObject) -> None:
        address = min(address, SIZE - size)
        value = data.draw(st.integers(0, (1 << 8 * size) - 1))
        self.memory.write_int(address, value, size)
        self.model[address : address + size] = value.to_bytes(size, "little")

    @rule(address=addresses, length=st.integers(0, 64))
    def read(self, address: int, length: int) -> None:
        expected = bytes(self.model[address : address + length])
        if address + length > SIZE:
            with pytest.raises(GuestMemoryError):
                self.memory.read(address, length)
            return
        assert self.memory.read(address, length) == expected
        assert self.memory[address : address + length] == expected
        assert self.memory.view(address, length) == expected
        assert self.memory.read_int(address, length) == int.from_bytes(expected, "little")

    @rule(address=addresses)
    def read_byte(self, address: int) -> None:
        assert self.memory[address] == self.model[address]

    @invariant()
    def same(self) -> None:
        assert self.memory.read(0, SIZE) == self.model

    def teardown(self) -> None:
        self.memory.close()


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=30, stateful_step_count=40)


@given(st.integers(1, 1 << 40), st.sampled_from(["", "B"]))
def test_size_of_a_number_of_bytes(size: int, suffix: str) -> None:
    assert parse_size(size) == parse_size(f"{size}{suffix}") == size


@given(st.integers(0, 1 << 20), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB", "b", "ib"]), st.booleans())
def test_size_with_a_unit(number: int, unit: str, suffix: str, lower: bool) -> None:
    text = f" {number}{unit.lower() if lower else unit}{suffix} "
    assert parse_size(text) == number * 1024 ** ("KMGT".index(unit) + 1)


@given(st.integers(0, 1 << 50))
def test_a_formatted_size_is_parsed_to_itself(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    "text", ["", " ", "M", "B", "12X", "-1", "-1M", "1.5G", "0x10", "1 M", "1MM", "1MK", "1Q", "٣M", "1e6", "one"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 64M") as error:
        parse_size(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE - 1, PAGE + 1, "0", "1K", "4097"])
def test_sizes_that_are_no_whole_pages(size: str | int) -> None:
    with pytest.raises(ConfigError, match="positive multiple of 4K"):
        GuestMemory(size)


@pytest.mark.parametrize("size", ["1000T", 1 << 63, 1 << 64, 1 << 100])
def test_more_than_any_host_has(size: str | int) -> None:
    with pytest.raises(HostMemoryError, match="ask for less") as error:
        GuestMemory(size)
    assert isinstance(error.value, (PyvcpuError, MemoryError))


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (SIZE, 1),
        (SIZE - 1, 2),
        (0, SIZE + 1),
        (-1, 1),
        (-1, 2),
        (1 << 63, 1),
        (1 << 64, 1),
        (FOUR_GIB, 1),
        (SIZE + 1, 0),
    ],
)
def test_outside_of_ram(memory: GuestMemory, address: int, length: int) -> None:
    before = memory.read(0, SIZE)
    with pytest.raises(GuestMemoryError, match="0x0-0x3fff") as error:
        memory.read(address, length)
    assert isinstance(error.value, IndexError)
    with pytest.raises(GuestMemoryError):
        memory.write(address, b"x" * length)
    with pytest.raises(GuestMemoryError):
        memory.view(address, length)
    if length == 1:
        with pytest.raises(GuestMemoryError):
            memory[address]
        with pytest.raises(GuestMemoryError):
            memory[address] = 1
    assert memory.read(0, SIZE) == before


def test_nothing_at_the_very_end_is_inside(memory: GuestMemory) -> None:
    assert memory.read(SIZE, 0) == b""
    memory.write(SIZE, b"")


def test_a_negative_length(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        memory.read(0x1000, -1)


@pytest.mark.parametrize(
    "key", [slice(None), slice(0, None), slice(None, 5), slice(0, 8, 2), slice(8, 0, -1), slice(8, 4)]
)
def test_slices_that_mean_nothing_here(memory: GuestMemory, key: slice) -> None:
    with pytest.raises(ValueError, match="a slice of guest memory"):
        memory[key]
    with pytest.raises(ValueError, match="a slice of guest memory"):
        memory[key] = b""


def test_a_slice_takes_exactly_its_length(memory: GuestMemory) -> None:
    for wrong in (b"", b"abc", b"abcde", 5):
        with pytest.raises(ValueError, match="takes exactly 4 bytes"):
            memory[0x10:0x14] = wrong
    assert memory.read(0x10, 8) == bytes(8)


def test_a_byte_takes_a_number_of_8_bits(memory: GuestMemory) -> None:
    with pytest.raises(TypeError, match="from 0 to 255"):
        memory[0] = b"a"
    for wrong in (256, -1):
        with pytest.raises(ValueError, match="0"):
            memory[0] = wrong
    assert memory[0] == 0


def test_a_number_that_does_not_fit(memory: GuestMemory) -> None:
    for value, size in ((256, 1), (-1, 4), (1 << 32, 4)):
        with pytest.raises(OverflowError):
            memory.write_int(0, value, size)
    assert memory.read(0, 8) == bytes(8)


def test_write_takes_any_flat_buffer(memory: GuestMemory) -> None:
    numbers = array.array("I", [1, 2])
    memory.write(0, memoryview(numbers))
    memory[8:16] = memoryview(numbers)
    memory.write(16, bytearray(b"abcd"))
    assert memory.read(0, 20) == bytes(numbers) * 2 + b"abcd"


def test_a_view_is_a_window(memory: GuestMemory) -> None:
    words = memory.view(0x1000, 16).cast("I")
    words[1] = 0x04030201
    assert memory.read(0x1004, 4) == bytes([1, 2, 3, 4])
    memory.write_int(0x100C, 7)
    assert words[3] == 7
    words.release()


def test_a_view_outlives_the_memory() -> None:
    memory = GuestMemory(SIZE)
    view = memory.view(0, 4)
    memory.close()
    memory.close()
    view[0] = 1
    assert view[0] == 1


def test_what_is_read_is_a_copy(memory: GuestMemory) -> None:
    before = memory.read(0, 4)
    memory.write(0, b"abcd")
    assert before == bytes(4)


def test_length_and_ranges(memory: GuestMemory) -> None:
    assert len(memory) == memory.size == memory.end_of_low == SIZE
    assert [r[:2] for r in memory.ranges] == [(0, SIZE)]


def test_ram_goes_on_above_the_hole(large: GuestMemory) -> None:
    assert [r[:2] for r in large.ranges] == [(0, 3 * GIB), (4 * GIB, 5 * GIB)]
    assert large.end_of_low == 3 * GIB
    large.write(3 * GIB - 2, b"ab")
    large.write(4 * GIB, b"cd")
    large.write(5 * GIB - 2, b"ef")
    assert large.read(3 * GIB - 2, 2) == b"ab"
    assert large[4 * GIB : 4 * GIB + 2] == b"cd"
    assert large[5 * GIB - 1] == ord("f")


@given(
    st.one_of(st.integers(0, 6 * GIB), *(st.integers(e - 9, e + 9) for e in (3 * GIB, 4 * GIB, 5 * GIB))),
    st.integers(1, 8),
)
def test_around_the_hole(large: GuestMemory, address: int, length: int) -> None:
    inside = address + length <= 3 * GIB or (address >= 4 * GIB and address + length <= 5 * GIB)
    if inside:
        large.write(address, b"\x5a" * length)
        assert large.read(address, length) == b"\x5a" * length
    else:
        with pytest.raises(GuestMemoryError, match="0x0-0xbfffffff and 0x100000000-0x13fffffff"):
            large.read(address, length)


@pytest.mark.parametrize(("size", "ranges"), [(HOLE, 1), (HOLE + PAGE, 2)])
def test_exactly_up_to_the_hole(size: int, ranges: int) -> None:
    memory = GuestMemory(size)
    assert len(memory.ranges) == ranges
    assert sum(end - start for start, end, _ in memory.ranges) == size
    memory.close()


def test_untouched_memory_costs_nothing() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE

    before = resident()
    memory = GuestMemory("8G")
    memory.write(1 << 30, b"x")
    assert resident() - before < 16 << 20
    memory.close()


def test_each_range_is_a_slot_at_its_place() -> None:
    kernel = FakeKernel()
    memory = GuestMemory("4G")
    memory.write(0x1000, b"low")
    memory.write(4 * GIB + 0x1000, b"high")
    with Kvm("fake", kernel) as kvm, kvm.create_vm() as vm:
        memory.register(vm)
    low, high = kernel.slots
    assert (low.slot, low.guest_phys_addr, low.memory_size, low.flags) == (0, 0, 3 * GIB, 0)
    assert (high.slot, high.guest_phys_addr, high.memory_size, high.flags) == (1, 4 * GIB, GIB, 0)
    with open("/proc/self/mem", "rb", buffering=0) as host:
        assert os.pread(host.fileno(), 3, low.userspace_addr + 0x1000) == b"low"
        assert os.pread(host.fileno(), 4, high.userspace_addr + 0x1000) == b"high"
    memory.close()


def test_ram_of_large_guests_can_be_mapped_in_huge_pages() -> None:
    """KVM maps 2 MiB at once only where guest and host address agree in their low 21 bits."""
    kernel = FakeKernel()
    memories = [GuestMemory(size) for size in (LARGE, LARGE + PAGE, "129M", "4G")]
    with Kvm("fake", kernel) as kvm:
        for memory in memories:
            with kvm.create_vm() as vm:
                memory.register(vm)
    assert len(kernel.slots) == 5
    assert all((slot.userspace_addr - slot.guest_phys_addr) % HUGE_PAGE == 0 for slot in kernel.slots)
    memories[0].write(LARGE - 4, b"last")
    assert memories[0].read(LARGE - 4, 4) == b"last"
    for memory in memories:
        memory.close()


@pytest.mark.parametrize("size", [SIZE, LARGE])
def test_a_host_without_transparent_huge_pages(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Map(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Map)
    memory = GuestMemory(size)
    memory.write(size - 1, b"x")
    memory.close()


def test_errors_can_be_pickled(memory: GuestMemory) -> None:
    with pytest.raises(GuestMemoryError) as error:
        memory.read(SIZE, 1)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_mmio_may_not_be_claimed_in_ram() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm, Machine("4G", kvm=kvm) as machine:
        for address, length in ((0, 1), (3 * GIB - 1, 2), (4 * GIB - 1, 2), (5 * GIB - 1, 1), (2 * GIB, 4 * GIB)):
            with pytest.raises(ConfigError, match="would lie in RAM"):
                machine.on_mmio(address, length)
        machine.on_mmio(3 * GIB, GIB)
        machine.on_mmio(5 * GIB, 1)
