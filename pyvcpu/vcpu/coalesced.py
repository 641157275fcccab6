"""Coalesced writes: KVM collects them in a ring instead of leaving the guest for each (api.rst 4.116)."""

from __future__ import annotations

import threading
from array import array
from struct import Struct

from ..errors import ConfigError
from ..kvm.abi.ioevent import KVM_COALESCED_MMIO_MAX
from ..posix import signal
from .execute import RING
from .states import State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap

    from .accel import Accel
    from .vcpu import Vcpu

KVM_CAP_COALESCED_MMIO, KVM_CAP_COALESCED_PIO = 15, 162  # numbers: the table of all capabilities takes time to load
PAGE = 4096
INDICES, FIRST = Struct("<II"), Struct("<I")  # kvm_coalesced_mmio_ring: first, last
ENTRY = Struct("<QII8s")  # kvm_coalesced_mmio: phys_addr, len, pio, data
PORT_BYTE = Struct("<QII")
TICK = 0.01  # seconds for which a write may wait; with a kick's time that is well below 20 ms


class Coalescer:
    """The coalesced zones of a machine, its one ring, and the thread that sees to what a quiet guest wrote.

    Writes are served on vCPU threads, in their order, before any exit that came after them: a vCPU drains the ring at
    each of its exits. While none exits, the thread `coalesced writes` kicks one. `_lock` is held while the ring is
    emptied and its writes are served; the handlers' initiator is None, for KVM does not say who wrote. `_books` guards
    the start of the thread.
    """

    def __init__(self, accel: Accel) -> None:
        self._accel = accel
        self._lock = threading.Lock()
        self._books = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        accel.drain = self.drain

    def add(self, address: int, length: int, *, pio: bool) -> None:
        """Collect the writes to a range from now on. Any thread; raise ConfigError where KVM cannot, KvmError."""
        cap = KVM_CAP_COALESCED_PIO if pio else KVM_CAP_COALESCED_MMIO
        kvm = self._accel.kvm
        if not kvm.check_extension(cap) or kvm.check_extension(KVM_CAP_COALESCED_MMIO) * PAGE != RING:
            raise ConfigError(
                f"this KVM cannot collect writes to {'ports' if pio else 'MMIO'}: leave out coalesce=True"
            )
        self._accel.vm.register_coalesced_mmio(address, length, pio=pio)
        with self._books:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._tick, name="coalesced writes", daemon=True)
                self._thread.start()

    def drain(self, vcpu: Vcpu) -> None:
        """Serve what is in the ring, on the thread of `vcpu`, in whose mapping the ring is read."""
        run = vcpu.run
        with self._lock:
            first, last = INDICES.unpack_from(run, RING)
            if first == last or max(first, last) >= KVM_COALESCED_MMIO_MAX:
                return
            start, size = RING + INDICES.size, ENTRY.size
            if first < last:
                entries = run[start + first * size : start + last * size]
            else:
                entries = run[start + first * size : start + KVM_COALESCED_MMIO_MAX * size]
                entries += run[start : start + last * size]
            try:
                self._serve(entries)
            finally:  # not before: a vCPU that sees an empty ring may overtake
                FIRST.pack_into(run, RING, last)

    def _serve(self, entries: bytes) -> None:
        """Hand the writes to the buses; those to the same port, one after the other, in one piece."""
        ports, mmio = self._accel.ports.write, self._accel.mmio.write
        address, length, pio = PORT_BYTE.unpack_from(entries)
        if pio and length == 1 and _alike(entries):  # a line of text: a tenth of the time of the loop below
            ports(None, address, entries[16 :: ENTRY.size])
            return
        waiting, port = b"", -1
        for address, length, pio, data in ENTRY.iter_unpack(entries):
            if pio and address == port:
                waiting += data[:length]
                continue
            if waiting:
                ports(None, port, waiting)
            waiting, port = (data[:length], address) if pio else (b"", -1)
            if not pio:
                mmio(None, address, data[:length])
        if waiting:
            ports(None, port, waiting)

    def _tick(self) -> None:
        """Kick a vCPU that runs whenever writes wait; another one each time: the last may be in a long handler."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        accel = self._accel
        turn, idle = 0, threading.Event()
        while not self._closed:
            accel.cpu_cond.wait_for(lambda: self._closed or accel.counts[State.RUNNING])
            with accel.lock:
                running = [vcpu for vcpu in accel.vcpus if vcpu.state is State.RUNNING]
                turn += 1
                if running:
                    running[turn % len(running)].kick_if_locked(_writes_wait)
            idle.wait(TICK)

    def close(self) -> None:
        """End the thread; no vCPU runs any more."""
        with self._books:
            self._closed = True
            thread = self._thread
        with self._accel.lock:
            self._accel.cpu_cond.notify_all()
        if thread is not None:
            thread.join()


def _writes_wait(run: mmap.mmap) -> bool:
    first, last = INDICES.unpack_from(run, RING)
    return bool(first != last)


def _alike(entries: bytes) -> bool:
    """Whether all entries have the same address, length and kind: each but the last what the next one has."""
    quads = array("Q", entries)  # slices of it take a third of the time that those of a memoryview take
    del quads[2::3]
    return quads[2:] == quads[:-2]
