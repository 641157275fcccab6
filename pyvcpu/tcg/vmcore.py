"""A VM without its requests: what it consists of, how long it lives, its time, and how it waits for its vCPUs."""

from __future__ import annotations

import os
import threading
from functools import partial
from struct import pack

from .clock import Clock, Timers
from .coalesced import Zones
from .eventfds import Helper, Ioevents
from .io import Io
from .memory import Memory
from .routes import Irqs
from .thing import Thing

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .kernel import TcgKernel
    from .msrs import Filter
    from .pit import Pit
    from .rings import Ring
    from .stats import StatsFile
    from .vcpu import Vcpu

TSC_KHZ = 1_000_000
SETTLE = 5  # seconds after which a vCPU that does not answer is not waited for any more


class VmCore(Thing):
    """A VM. It lives until its fd and those of all its vCPUs are closed.

    `lock` guards the tables of vCPUs. `bus_lock` is what LOCK-prefixed instructions of all vCPUs take.
    """

    NAME = "kvm-vm"

    def __init__(self, kernel: TcgKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.lock = threading.Lock()
        self.bus_lock = threading.RLock()
        self.memory = Memory()
        self.clock = Clock()
        self.timers = Timers(self.clock)
        self.helper = Helper(self)
        self.timers.poke = self.helper.poke
        self.events, self.zones = Ioevents(), Zones()
        self.io = Io(self.events, self.zones)
        self.irqs = Irqs(self)
        self.pit: Pit | None = None
        self.vcpus: dict[int, Vcpu] = {}
        self.boot_cpu = 0
        self.born = self.clock.now()
        self.tsc_khz = TSC_KHZ
        self.clock_offset = -self.born
        self.clock_version = 0
        self.manual_log = False
        self.exception_payload = self.triple_fault_event = False
        self.user_msrs = 0
        self.msr_filter: Filter | None = None
        self.inside: set[Vcpu] = set()  # those in Cpu.execute()
        self.settling = 0
        self.woken = False  # a vCPU that slept wants to run
        self._left = threading.Condition()
        self._users = 1  # open fds
        self.stats: StatsFile | None = None

    def dirty_rings(self) -> list[Ring]:
        """Return the dirty rings of all vCPUs."""
        return [vcpu.ring for vcpu in list(self.vcpus.values()) if vcpu.ring is not None]

    # Its life.

    def closed(self, fd: int) -> None:
        """Note that the VM's own fd is being closed."""
        self.released()

    def released(self) -> None:
        """Note that an fd of the VM or of a vCPU is closed; the last one takes everything with it."""
        with self.lock:
            self._users -= 1
            if self._users:
                return
        self.helper.close()
        for vcpu in self.vcpus.values():
            vcpu.destroy()
        self.events.close()
        self.zones.close()
        if self.stats is not None:
            os.close(self.stats.fd)

    def settle(self) -> None:
        """Wait until every vCPU has left the code that it was in, so that none has an old page any more."""
        me = threading.get_ident()
        with self._left:
            self.settling += 1
            try:
                for vcpu in list(self.inside):
                    if vcpu.thread == me:
                        continue
                    turns = vcpu.turns
                    vcpu.cpu.attention = 1
                    self._left.wait_for(partial(self._has_left, vcpu, turns), SETTLE)
            finally:
                self.settling -= 1

    def _has_left(self, vcpu: Vcpu, turns: int) -> bool:
        return vcpu.turns != turns or vcpu not in self.inside

    def notify_left(self) -> None:
        """Tell settle() that a vCPU has left its code."""
        with self._left:
            self._left.notify_all()

    # Time.

    def kvmclock(self, now: int) -> int:
        """Return the guest's clock at a time of the VM's clock, in ns."""
        return now + self.clock_offset

    def write_wall_clock(self, address: int) -> None:
        """Write struct pvclock_wall_clock: the time of day at which the guest's clock was 0 (msr.rst)."""
        boot = self.clock.wall() - self.kvmclock(self.clock.now())
        old = self.memory.read(address, 4)
        version = int.from_bytes(old, "little") | 1 if old else 1
        seconds, nanoseconds = divmod(boot, 1_000_000_000)
        self.memory.write(address, pack("<I", version & 0xFFFF_FFFF))
        self.memory.write(address + 4, pack("<II", seconds & 0xFFFF_FFFF, nanoseconds))
        self.memory.write(address, pack("<I", version + 1 & 0xFFFF_FFFF))
