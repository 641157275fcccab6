"""Which method a breakpoint gets, and what KVM is told: without KVM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.debug import points
from pyvcpu.debug.methods import ACCESS, EXECUTE, WRITE, Methods, dr7
from pyvcpu.debug.points import (
    COMPARE,
    COMPARE_MEMORY,
    CONTROL,
    NOTHING,
    REGISTER,
    SOFTWARE,
    Breakpoint,
    DebugError,
    Points,
)

ENABLE, SINGLE, SOFT, HARD, BLOCK = 1, 2, 1 << 16, 1 << 17, 1 << 20
ALL = Methods(step=True, execute=True, watch=True, software=True, user_step=True, user_execute=True)


def told(known: Points, *, single: bool = False, over: int | None = None, block: bool = False) -> tuple[int, list[int]]:
    control, pad, *registers = CONTROL.unpack(known.control(single, over, block).data)
    assert pad == 0
    return control, registers


def test_dr7() -> None:
    """SDM vol. 3B figure 18-1: G0 to G3 at 1, 3, 5, 7; R/W and LEN from bit 16 on, four bits for each."""
    assert dr7(0, EXECUTE, 1) == 1 << 10 | 1 << 1
    assert dr7(3, WRITE, 4) == 1 << 10 | 1 << 7 | 0b01 << 28 | 0b11 << 30
    assert dr7(1, ACCESS, 8) == 1 << 10 | 1 << 3 | 0b11 << 20 | 0b10 << 22


def test_debug_registers_come_first_and_are_given_back() -> None:
    known = Points(ALL)
    made = [Breakpoint(EXECUTE, 0x1000 + n, 1) for n in range(6)]
    for point in made:
        known.add(point, software=True)
    assert [point.method for point in made] == [REGISTER] * 4 + [SOFTWARE] * 2
    control, registers = told(known)
    assert control == ENABLE | HARD | SOFT
    assert registers == [0x1000, 0x1001, 0x1002, 0x1003, 0, 0, 0, sum(0b10 << 2 * n for n in range(4)) | 1 << 10]
    assert known.discard(made[1]) is not None
    late = Breakpoint(EXECUTE, 0x5000, 1)
    known.add(late, software=True)
    assert late.method == REGISTER
    assert told(known)[1][:4] == [0x1000, 0x5000, 0x1002, 0x1003]
    for point in [*made[:1], *made[2:], late]:
        known.discard(point)
    assert known.control(False, None, False).data == NOTHING


def test_one_site_for_all_who_break_there() -> None:
    known = Points(ALL)
    first, second = Breakpoint(EXECUTE, 0x1000, 1), Breakpoint(EXECUTE, 0x1000, 1)
    site = known.add(first, software=False)
    assert known.add(second, software=False) is site
    assert told(known)[1][:2] == [0x1000, 0]
    assert known.discard(first) is None
    assert told(known)[1][0] == 0x1000
    assert known.discard(first) is None, "it is gone already"
    assert known.discard(second) is site
    assert list(known) == []


def test_the_breakpoint_that_is_left_does_not_count_for_the_step() -> None:
    known = Points(ALL)
    for address in (0x1000, 0x2000):
        known.add(Breakpoint(EXECUTE, address, 1), software=False)
    control, registers = told(known, single=True, over=0x1000, block=True)
    assert control == ENABLE | SINGLE | HARD | BLOCK
    assert registers[:2] == [0, 0x2000]
    assert registers[7] == dr7(1, EXECUTE, 1)


def test_what_a_host_cannot_do_is_done_in_another_way_or_refused() -> None:
    steps = Points(Methods(step=True))
    code, data = Breakpoint(EXECUTE, 0x1000, 1), Breakpoint(WRITE, 0x2000, 4)
    steps.add(code, software=True)
    steps.add(data, software=True)
    assert (code.method, data.method) == (COMPARE, COMPARE_MEMORY)
    assert told(steps, single=True)[0] == ENABLE | SINGLE
    with pytest.raises(DebugError, match="reads cannot be seen"):
        steps.add(Breakpoint(ACCESS, 0x2000, 4), software=True)
    with pytest.raises(DebugError):
        steps.add(Breakpoint(WRITE, 0, points.MOST_COMPARED + 1), software=True)
    nothing = Points(Methods())
    for rule in (EXECUTE, WRITE, ACCESS):
        with pytest.raises(DebugError):
            nothing.add(Breakpoint(rule, 0x1000, 1), software=True)
    assert list(nothing) == []


def test_a_range_takes_as_many_registers_as_it_has_aligned_parts() -> None:
    known = Points(ALL)
    known.add(Breakpoint(ACCESS, 0x1003, 10), software=False)  # 1 at 3, 4 at 4, 4 at 8, 1 at c
    assert told(known)[1][:4] == [0x1003, 0x1004, 0x1008, 0x100C]
    with pytest.raises(DebugError, match="the 4 debug registers are in use"):
        known.add(Breakpoint(ACCESS, 0x2000, 1), software=False)


@given(st.integers(0, 1 << 64), st.integers(1, 1 << 70))
def test_any_range_is_split_or_refused_at_once(address: int, length: int) -> None:
    known = Points(ALL)
    try:
        site = known.add(Breakpoint(ACCESS, address, length), software=False)
    except DebugError:
        return
    assert sum(size for _, _, size in site.slots) == length
    assert all(at % size == 0 for _, at, size in site.slots)
