"""The 8254 timer of a PC, and the speaker port 0x61 (Intel 8254 data sheet).

Counter 0 drives GSI 0. The counters are worked out from the time when they are looked at; only counter 0 has a timer.
All state is guarded by the lock of Irqs.
"""

from __future__ import annotations

from struct import Struct

from .routes import TIMER

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .clock import Timer
    from .vmcore import VmCore

FREQUENCY = 1_193_182
SECOND = 1_000_000_000
CHANNEL = Struct("<IHBBBBBBBBBBq")  # kvm_pit_channel_state
TAIL = Struct("<I36x")
PORTS, SPEAKER = range(0x40, 0x44), 0x61
LOW, HIGH, BOTH, SECOND_BYTE = 1, 2, 3, 4  # how a count is read and written
SHORTEST = 100_000  # ns between two interrupts
MOST_PENDING = 20
HPET_LEGACY, SPEAKER_ON = 1, 2


class Counter:
    """One of the three. Its fields are those of kvm_pit_channel_state; `loaded` is count_load_time."""

    __slots__ = (
        "bcd", "count", "count_latched", "gate", "latched", "loaded", "mode", "read_state", "rw_mode", "status",
        "status_latched", "write_latch", "write_state",
    )  # fmt: skip

    def __init__(self, gate: int) -> None:
        self.count = 0x10000
        self.latched = self.count_latched = self.status_latched = self.status = 0
        self.read_state = self.write_state = self.write_latch = self.rw_mode = 0
        self.mode, self.bcd, self.gate = 0xFF, 0, gate
        self.loaded = 0

    def elapsed(self, now: int) -> int:
        """Return how many of its clock's cycles have passed since the count was loaded."""
        return max(now - self.loaded, 0) * FREQUENCY // SECOND

    def value(self, now: int) -> int:
        """Return the counting element."""
        passed, count = self.elapsed(now), self.count or 0x10000
        if self.mode in (0, 1, 4, 5):
            return count - passed & 0xFFFF
        if self.mode == 3:
            return count - 2 * passed % count & 0xFFFF
        return count - passed % count & 0xFFFF

    def output(self, now: int) -> int:
        """Return the level of the output pin."""
        passed, count = self.elapsed(now), self.count or 0x10000
        if self.mode in (0, 1):
            return int(passed >= count)
        if self.mode == 2:
            return int(passed % count != count - 1)
        if self.mode == 3:
            return int(passed % count < (count + 1) >> 1)
        return int(passed != count)

    def latch_count(self, now: int) -> None:
        """Keep the count for the next reads."""
        if not self.count_latched:
            self.latched = self.value(now)
            self.count_latched = self.rw_mode

    def latch_status(self, now: int) -> None:
        """Keep the status byte for the next read."""
        if not self.status_latched:
            self.status = self.output(now) << 7 | self.rw_mode << 4 | self.mode << 1 & 0xE | self.bcd
            self.status_latched = 1

    def read(self, now: int) -> int:
        """Read the counter's port."""
        if self.status_latched:
            self.status_latched = 0
            return self.status
        if self.count_latched:
            state = self.count_latched
            if state == BOTH:
                self.count_latched = SECOND_BYTE
                return self.latched & 0xFF
            self.count_latched = 0
            return self.latched >> (0 if state == LOW else 8) & 0xFF
        value = self.value(now)
        if self.read_state == BOTH:
            self.read_state = SECOND_BYTE
            return value & 0xFF
        if self.read_state == SECOND_BYTE:
            self.read_state = BOTH
            return value >> 8
        return value >> 8 if self.read_state == HIGH else value & 0xFF

    def pack(self) -> bytes:
        """Return kvm_pit_channel_state."""
        return CHANNEL.pack(
            self.count, self.latched, self.count_latched, self.status_latched, self.status, self.read_state,
            self.write_state, self.write_latch, self.rw_mode, self.mode, self.bcd, self.gate, self.loaded,
        )  # fmt: skip

    def unpack(self, data: bytes) -> None:
        """Take kvm_pit_channel_state."""
        (
            self.count, self.latched, self.count_latched, self.status_latched, self.status, self.read_state,
            self.write_state, self.write_latch, self.rw_mode, self.mode, self.bcd, self.gate, self.loaded,
        ) = CHANNEL.unpack(data)  # fmt: skip


class Pit:
    """The timer of a VM."""

    def __init__(self, vm: VmCore, speaker: bool) -> None:
        self.vm, self.lock = vm, vm.irqs.lock
        self.counters = [Counter(int(number != 2)) for number in range(3)]
        self.flags = 0
        self.reinject = True
        self._speaker_data = 0
        self._timer: Timer | None = None
        self._period = 0
        self._target = 0
        self._pending = 0
        self._acknowledged = True
        vm.io.add(self, PORTS)
        if speaker:
            vm.io.add(self, (SPEAKER,))

    # Ports, on a vCPU's thread.

    def port_read(self, port: int, size: int) -> int:
        """Read a counter, or the speaker's port."""
        now = self.vm.clock.now()
        with self.lock:
            if port == SPEAKER:
                counter = self.counters[2]
                refresh = now // 15_085 & 1  # it toggles every 15.085 us
                return self._speaker_data << 1 | counter.gate | counter.output(now) << 5 | refresh << 4
            if port == 0x43:
                return 0
            return self.counters[port & 3].read(now)

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write a counter, the control word, or the speaker's port."""
        value &= 0xFF
        with self.lock:
            if port == SPEAKER:
                self._speaker_data = value >> 1 & 1
                self._set_gate(value & 1)
            elif port == 0x43:
                self._control(value)
            else:
                self._write(port & 3, value)

    def _set_gate(self, gate: int) -> None:
        counter = self.counters[2]
        if counter.gate < gate and counter.mode in (1, 2, 3, 5):
            counter.loaded = self.vm.clock.now()
        counter.gate = gate

    def _control(self, value: int) -> None:
        now, number = self.vm.clock.now(), value >> 6
        if number == 3:  # read-back
            for at, counter in enumerate(self.counters):
                if value & 2 << at:
                    if not value & 0x20:
                        counter.latch_count(now)
                    if not value & 0x10:
                        counter.latch_status(now)
            return
        counter = self.counters[number]
        access = value >> 4 & 3
        if not access:
            counter.latch_count(now)
            return
        counter.rw_mode = counter.read_state = counter.write_state = access
        counter.mode = value >> 1 & 7
        if counter.mode > 5:
            counter.mode -= 4
        counter.bcd = value & 1

    def _write(self, number: int, value: int) -> None:
        counter = self.counters[number]
        state = counter.write_state
        if state == BOTH:
            counter.write_latch = value
            counter.write_state = SECOND_BYTE
        elif state == SECOND_BYTE:
            counter.write_state = BOTH
            self._load(number, counter.write_latch | value << 8)
        else:
            self._load(number, value << 8 if state == HIGH else value)

    def _load(self, number: int, count: int) -> None:
        counter = self.counters[number]
        counter.count = count or 0x10000
        counter.loaded = self.vm.clock.now()
        if number == 0:
            self._start(counter)

    # Interrupts.

    def _start(self, counter: Counter) -> None:
        """Have counter 0 interrupt as its mode says."""
        self.vm.timers.cancel(self._timer)
        self._timer = None
        self._pending, self._acknowledged = 0, True
        if self.flags & HPET_LEGACY:
            return
        length = counter.count * SECOND // FREQUENCY
        if counter.mode in (0, 1, 4, 5):
            self._period = 0
        elif counter.mode in (2, 3):
            self._period = length = max(length, SHORTEST)
        else:
            return
        self._target = counter.loaded + length
        self._timer = self.vm.timers.arm(self._target, self._tick)

    def _tick(self, timer: Timer) -> None:
        """Raise and lower line 0. Any thread."""
        with self.lock:
            if timer is not self._timer:
                return
            self._timer = None
            ticks = 1
            if self._period:
                now = self.vm.clock.now()
                ticks += max(now - self._target, 0) // self._period
                self._target += ticks * self._period
                self._timer = self.vm.timers.arm(self._target, self._tick)
            if self.reinject:
                self._pending = min(self._pending + ticks, MOST_PENDING)
                self._inject()
            else:
                self._pulse()

    def _inject(self) -> None:
        if self._pending and self._acknowledged:
            self._acknowledged = False
            if self._pulse() <= 0:  # masked, or one is there already: nobody will tell of its end
                self.unmasked()

    def _pulse(self) -> int:
        irqs = self.vm.irqs
        result = irqs.set_line(TIMER, 0, True)
        irqs.set_line(TIMER, 0, False)
        irqs.timer_ticked()
        return result

    def unmasked(self) -> None:
        """Forget the ticks that were lost, as when the line has been masked. Under the lock."""
        self._pending, self._acknowledged = 0, True

    def acknowledged(self) -> None:
        """Go on with the ticks that the guest has not seen. Under the lock."""
        if self.reinject:
            self._pending = max(self._pending - 1, 0)
            self._acknowledged = True
            self._inject()

    # The requests.

    def get(self) -> bytes:
        """Return kvm_pit_state2."""
        with self.lock:
            return b"".join(counter.pack() for counter in self.counters) + TAIL.pack(self.flags)

    def set(self, data: bytes, whole: bool) -> None:
        """Take kvm_pit_state2, or kvm_pit_state without flags. Counter 0 starts anew."""
        with self.lock:
            for number, counter in enumerate(self.counters):
                counter.unpack(data[CHANNEL.size * number : CHANNEL.size * (number + 1)])
            if whole:
                (self.flags,) = TAIL.unpack(data[3 * CHANNEL.size : 3 * CHANNEL.size + TAIL.size])
            counter = self.counters[0]
            counter.loaded = self.vm.clock.now()
            self._start(counter)

    def stop(self) -> None:
        """Stop the timer."""
        self.vm.timers.cancel(self._timer)
        self._timer = None
