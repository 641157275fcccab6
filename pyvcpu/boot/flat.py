"""Flat images: no header; the bytes are put at an address, and every vCPU starts there."""

from __future__ import annotations

from ..errors import ConfigError, ImageError
from ..x86.start import StartState, gdt
from .plan import MORE, Free, Plan, reachable

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..x86.start import Mode
    from .plan import Target

DEFAULT_LOAD = 0x1000
REAL_TOP = 0xA0000  # where a PC's conventional memory ends: guests may take what is above for the screen
REAL_LIMIT = 0x100000
REAL_STACKS = (4096, 2048, 1024, 512, 256)  # the largest that fits is used
STACK = 16 << 10
STACK_ALIGN, PAGE, GIB = 16, 4096, 1 << 30


def plan(image: bytes, target: Target) -> Plan:
    """Plan a flat image: every vCPU at the entry, with its own stack, DI its index, SI the number of vCPUs."""
    load = DEFAULT_LOAD if target.load is None else target.load
    entry = load if target.entry is None else target.entry
    used = [(load, load + len(image))]
    if target.mode in (None, "real"):
        _check_real(image, load)
    check_fits(image, load, target)
    if not target.holds(entry, 1):
        raise ImageError(f"the entry {entry:#x} is not in RAM, which ends at {target.ranges[-1][1]:#x}")
    maker = MODES.get(target.mode or "real")
    if maker is None:
        raise ConfigError(f"the mode must be real, protected or long, not {target.mode!r}")
    segments, starts = maker(entry, used, target)
    if target.start == "bsp":
        starts[1:] = [None] * (len(starts) - 1)
    return Plan("flat", [(load, image), *segments], starts, "none")


def _check_real(image: bytes, load: int) -> None:
    """Raise ImageError for an image that leaves no room for a stack in real mode, however much memory there is."""
    try:
        Free(REAL_TOP, [(load, load + len(image))]).take(REAL_STACKS[-1], STACK_ALIGN, "a stack")
    except ImageError:
        raise ImageError(
            f"the image ({len(image)} bytes at {load:#x}) does not fit beside a stack below {REAL_TOP:#x}, as real mode"
            " has it; protected and long mode have more room"
        ) from None


def check_fits(image: bytes, load: int, target: Target) -> None:
    """Raise ImageError unless the image can lie at `load`."""
    if not target.holds(load, 1):
        raise ImageError(f"the load address {load:#x} is not in RAM, which ends at {target.ranges[-1][1]:#x}")
    if not target.holds(load, len(image)):
        raise ImageError(
            f"the image ({len(image)} bytes) does not fit into RAM at {load:#x}, which ends at"
            f" {target.ranges[-1][1]:#x}{MORE if reachable(load, load + len(image)) else '; load it elsewhere'}"
        )


Planned = tuple[list[tuple[int, bytes]], list[StartState | None]]


def _real(entry: int, used: list[tuple[int, int]], target: Target) -> Planned:
    if entry >= REAL_LIMIT:
        raise ImageError(f"real mode reaches the first 1 MiB: the entry must be below {REAL_LIMIT:#x}, not {entry:#x}")
    size, stacks = _real_stacks(used, target)
    return [], [
        StartState(
            "real",
            entry,
            stack=stacks + (i + 1) * size,
            stack_base=stacks + i * size,
            registers=_numbers(i, target),
        )
        for i in range(target.vcpus)
    ]


def _real_stacks(used: list[tuple[int, int]], target: Target) -> tuple[int, int]:
    for size in REAL_STACKS:
        try:
            free = Free.below(REAL_TOP, used, target)
            return size, free.take(size * target.vcpus, STACK_ALIGN, f"{target.vcpus} real-mode stacks")
        except ImageError:
            if size == REAL_STACKS[-1]:
                raise
    raise AssertionError("unreachable")


def _protected(entry: int, used: list[tuple[int, int]], target: Target) -> Planned:
    if entry >= 1 << 32:
        raise ImageError(f"protected mode reaches the first 4 GiB: the entry must be below 4G, not {entry:#x}")
    return _flat_segments("protected", entry, Free(target.ranges[0][1], used), target)


def _long(entry: int, used: list[tuple[int, int]], target: Target) -> Planned:
    from ..x86 import paging

    gibibytes = max(4, -(-target.ranges[-1][1] // GIB))
    if gibibytes > paging.MAX_GIB:
        raise ImageError(f"a flat long-mode guest can have at most {paging.MAX_GIB} GiB of address space")
    free = Free(target.ranges[0][1], used)
    tables = free.take(paging.table_pages(gibibytes) * PAGE, PAGE, "page tables")
    segments, starts = _flat_segments("long", entry, free, target, tables)
    return [(tables, paging.identity_map(tables, gibibytes)), *segments], starts


def _flat_segments(mode: Mode, entry: int, free: Free, target: Target, page_table: int = 0) -> Planned:
    """Give each vCPU a 16 KiB stack, all of them one descriptor table."""
    table = free.take(PAGE, PAGE, "the descriptor table")
    stacks = free.take(STACK * target.vcpus, STACK_ALIGN, f"{target.vcpus} stacks")
    starts: list[StartState | None] = [
        StartState(
            mode,
            entry,
            stack=stacks + (i + 1) * STACK,
            gdt=table,
            page_table=page_table,
            registers=_numbers(i, target),
        )
        for i in range(target.vcpus)
    ]
    return [(table, gdt())], starts


def _numbers(index: int, target: Target) -> dict[str, int]:
    return {"rdi": index, "rsi": target.vcpus}


MODES = {"real": _real, "protected": _protected, "long": _long}
