"""The MC146818: the host's time in each of its formats, time that is set, and whatever else a guest writes."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.devices.rtc import CENTURY, REG_A, REG_B, REG_C, REG_D, SIZE, Rtc, days_since_1970

BINARY, HOURS_24, SET = 0x04, 0x02, 0x80
TIME = (9, 8, 7, 4, 2, 0)  # year, month, day, hour, minute, second


class Clock:
    """A host clock that stands where it is put."""

    def __init__(self, text: str = "2026-11-23T21:05:09") -> None:
        self.now = datetime.datetime.fromisoformat(text + "+00:00").timestamp()

    def __call__(self) -> float:
        return self.now


class Guest:
    """An RTC, and the accesses that a guest makes."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.rtc = Rtc(self.clock)

    def get(self, register: int) -> int:
        self.rtc.write(0, bytes([register]))
        return self.rtc.read(1, 1)[0]

    def put(self, register: int, value: int) -> None:
        self.rtc.write(0, bytes([register]))
        self.rtc.write(1, bytes([value]))

    def time(self) -> list[int]:
        return [self.get(register) for register in TIME]

    def set_time(self, century: int, *time: int) -> None:
        """Do it as Linux does: stop, write, go on."""
        before = self.get(REG_B)
        self.put(REG_B, before | SET)
        for register, value in zip((CENTURY, *TIME), (century, *time), strict=True):
            self.put(register, value)
        self.put(REG_B, before)


def test_what_firmware_leaves_behind() -> None:
    guest = Guest()
    assert [guest.get(register) for register in (REG_A, REG_B, REG_C, REG_D)] == [0x26, 0x02, 0x00, 0x80]


@pytest.mark.parametrize(
    ("format", "expected", "weekday"),
    [
        (HOURS_24, [0x26, 0x11, 0x23, 0x21, 0x05, 0x09], 0x02),
        (HOURS_24 | BINARY, [26, 11, 23, 21, 5, 9], 2),
        (0, [0x26, 0x11, 0x23, 0x89, 0x05, 0x09], 0x02),
        (BINARY, [26, 11, 23, 0x89, 5, 9], 2),
    ],
)
def test_the_hosts_time_in_every_format(format: int, expected: list[int], weekday: int) -> None:
    guest = Guest()
    guest.put(REG_B, format)
    assert guest.time() == expected
    assert guest.get(6) == weekday  # a Monday; Sunday is 1
    assert guest.get(CENTURY) == (20 if format & BINARY else 0x20)


@pytest.mark.parametrize(("hour", "shown"), [(0, 12), (1, 1), (11, 11), (12, 0x8C), (13, 0x81), (23, 0x8B)])
def test_twelve_hours(hour: int, shown: int) -> None:
    guest = Guest(Clock(f"2026-01-01T{hour:02}:00:00"))
    guest.put(REG_B, BINARY)
    assert guest.get(4) == shown
    guest.put(4, shown)
    guest.put(REG_B, BINARY | HOURS_24)
    assert guest.get(4) == hour


def test_time_goes_on() -> None:
    guest = Guest(Clock("2027-12-31T23:59:59"))
    guest.clock.now += 1
    assert [guest.get(CENTURY), *guest.time()] == [0x20, 0x28, 1, 1, 0, 0, 0]
    guest.clock.now += (24 * 60 - 1) * 60
    assert guest.time() == [0x28, 1, 1, 0x23, 0x59, 0]


@given(st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 1, 1)), st.sampled_from([0, 2, 4, 6]))
def test_a_time_that_is_set_is_read_back_and_goes_on(wanted: datetime.datetime, format: int) -> None:
    guest = Guest()
    hour = wanted.hour

    def encode(number: int) -> int:
        return number if format & BINARY else number // 10 * 16 + number % 10

    shown = encode(hour) if format & HOURS_24 else encode(hour % 12 or 12) | (0x80 if hour >= 12 else 0)
    guest.put(REG_B, format)
    century, year = divmod(wanted.year, 100)
    fields = [
        encode(year),
        encode(wanted.month),
        encode(wanted.day),
        shown,
        encode(wanted.minute),
        encode(wanted.second),
    ]
    guest.set_time(encode(century), *fields)
    assert [guest.get(CENTURY), *guest.time()] == [encode(century), *fields]
    assert guest.get(6) == wanted.isoweekday() % 7 + 1
    guest.put(REG_B, HOURS_24 | BINARY)
    guest.clock.now += 86400
    later = wanted + datetime.timedelta(days=1)
    assert guest.time() == [later.year % 100, later.month, later.day, hour, wanted.minute, wanted.second]


def test_time_stands_still_while_it_is_set() -> None:
    guest = Guest()
    guest.put(REG_B, HOURS_24 | SET)
    guest.clock.now += 100
    assert guest.time() == [0x26, 0x11, 0x23, 0x21, 0x05, 0x09]
    guest.put(0, 0x33)
    guest.put(REG_B, HOURS_24)
    assert guest.time() == [0x26, 0x11, 0x23, 0x21, 0x05, 0x33]


def test_the_divider_in_reset_stops_the_time_and_then_takes_half_a_second() -> None:
    guest = Guest()
    guest.put(REG_A, 0x76)
    guest.clock.now += 100
    assert guest.get(0) == 0x09
    guest.put(REG_A, 0x26)
    guest.clock.now += 0.49
    assert guest.get(0) == 0x09
    guest.clock.now += 0.02
    assert guest.get(0) == 0x10


def test_a_date_that_does_not_exist_carries_over() -> None:
    guest = Guest()
    guest.set_time(0x20, 0x27, 0x02, 0x30, 0x25, 0x61, 0x00)
    assert guest.time() == [0x27, 0x03, 0x03, 0x02, 0x01, 0x00]


def test_update_in_progress_announces_the_update() -> None:
    guest = Guest()
    assert not guest.get(REG_A) & 0x80
    guest.clock.now += 0.9999
    assert guest.get(REG_A) & 0x80
    guest.put(REG_B, HOURS_24 | SET)
    assert not guest.get(REG_A) & 0x80
    guest.put(REG_A, 0xFF)  # UIP cannot be written
    assert guest.get(REG_A) == 0x7F


def test_flags_that_are_polled_and_cleared_by_reading() -> None:
    guest = Guest()
    guest.put(REG_A, 0x2F)  # 2 Hz
    assert guest.get(REG_C) == 0
    guest.clock.now += 0.5
    assert (guest.get(REG_C), guest.get(REG_C)) == (0x40, 0)
    guest.clock.now += 0.5
    assert (guest.get(REG_C), guest.get(REG_C)) == (0x50, 0)
    guest.put(REG_A, 0x20)  # no periodic flag
    guest.put(REG_B, HOURS_24 | 0x10)
    guest.clock.now += 1
    assert guest.get(REG_C) == 0x90  # the enabled flag would interrupt
    guest.clock.now += 1
    guest.put(REG_B, HOURS_24 | 0x60)
    assert guest.get(REG_C) == 0x10


@pytest.mark.parametrize("register", [1, 3, 5, 0x0E, 0x0F, 0x31, 0x33, 0x7F])
def test_alarms_and_ram_keep_what_is_written(register: int) -> None:
    guest = Guest()
    guest.put(register, 0xC3)
    assert guest.get(register) == 0xC3


@pytest.mark.parametrize("register", [REG_C, REG_D])
def test_status_registers_ignore_writes(register: int) -> None:
    guest = Guest()
    before = guest.get(register)
    guest.put(register, 0x5A)
    assert guest.get(register) == before


def test_bit_7_of_the_index_is_not_part_of_it() -> None:
    guest = Guest()
    guest.put(0x8F, 0x42)
    assert guest.get(0x0F) == 0x42


def test_wide_accesses() -> None:
    guest = Guest()
    guest.rtc.write(0, b"\x40\x99")  # outw: index, then data
    assert guest.get(0x40) == 0x99
    assert guest.rtc.read(0, 2) == b"\xff\x99"
    assert guest.rtc.read(0, 1) == b"\xff"
    assert guest.rtc.read(1, 4) == b"\x99\xff\xff\xff"


def test_the_clock_of_the_host_is_utc() -> None:
    rtc = Rtc()
    rtc.write(0, b"\x04")
    allowed = {datetime.datetime.now(datetime.UTC).hour}
    (shown,) = rtc.read(1, 1)
    allowed.add(datetime.datetime.now(datetime.UTC).hour)
    assert (shown >> 4) * 10 + (shown & 0x0F) in allowed


@given(
    st.lists(
        st.tuples(
            st.integers(0, SIZE - 1) | st.sampled_from([*range(14), CENTURY]), st.integers(0, 255), st.booleans()
        ),
        max_size=60,
    ),
    st.floats(0, 1e9),
)
def test_nothing_that_a_guest_writes_raises(accesses: list[tuple[int, int, bool]], later: float) -> None:
    guest = Guest()
    for register, value, write in accesses:
        if write:
            guest.put(register, value)
        else:
            guest.get(register)
    guest.clock.now += later
    for register in range(SIZE):
        guest.get(register)


@given(st.dates())
def test_days_since_1970(date: datetime.date) -> None:
    assert days_since_1970(date.year, date.month, date.day) == (date - datetime.date(1970, 1, 1)).days
