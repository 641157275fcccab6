"""Coalesced writes: KVM collects them in a ring instead of leaving the guest for each (api.rst 4.116)."""

from __future__ import annotations

import threading
from array import array
from struct import Struct

from ..errors import ConfigError, StateError
from ..kvm.abi.basic import KVM_CAP_COALESCED_MMIO, KVM_CAP_COALESCED_PIO
from ..kvm.abi.layout import PAGE, RING, RING_ENTRIES, RING_ENTRY, RING_FIRST, RING_HEAD, RING_INDICES
from ..posix import signal
from ..vcpu.states import State
from ..vcpu.work import do_work_until

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap

    from ..vcpu.context import KvmContext
    from ..vcpu.core import Cpu
    from ..vcpu.handle import Vcpu
    from .runcontrol import RunControl

PORT_BYTE = Struct("<QII")
TICK = 0.01  # seconds for which a write may wait; with a kick's time that is well below 20 ms


class Coalescer:
    """The coalesced zones of a machine, its one ring, and the thread that sees to what a quiet guest wrote.

    Writes are served on vCPU threads, in their order, before any exit that came after them: a vCPU drains the ring at
    each of its exits. While none exits, the thread `coalesced writes` kicks one. The handlers' initiator is None, for
    KVM does not say who wrote.

    One vCPU at a time drains, the `_owner`; no lock is held while it calls handlers. Another one that finds writes
    waits until they are served, and does the work that others post to it meanwhile: a handler may ask for its
    registers. The machine's lock guards `_owner` and `_waiting`, `_start_lock` the start of the thread.
    """

    def __init__(self, context: KvmContext, control: RunControl) -> None:
        self._context = context
        self._control = control
        self._owner: Vcpu | None = None
        self._waiting: list[Vcpu] = []
        self._start_lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        context.drain = self.drain

    def add(self, address: int, length: int, *, pio: bool) -> None:
        """Collect the writes to a range from now on. Any thread.

        Raise ConfigError where KVM cannot, KvmError, StateError where the host has no thread left.
        """
        cap = KVM_CAP_COALESCED_PIO if pio else KVM_CAP_COALESCED_MMIO
        context = self._context
        if not context.has(cap) or context.has(KVM_CAP_COALESCED_MMIO) * PAGE != RING:
            raise ConfigError(
                f"this KVM cannot collect writes to {'ports' if pio else 'MMIO'}: leave out coalesce=True"
            )
        self._start()  # first: what KVM collects must be looked after
        context.vm.register_coalesced_mmio(address, length, pio=pio)

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is not None or self._closed:
                return
            thread = threading.Thread(target=self._tick, name="coalesced writes", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise StateError(f"coalesced writes: {error}; the host limits threads (ulimit -u)") from None
            self._thread = thread

    def drain(self, cpu: Cpu) -> None:
        """Serve what is in the ring, on the thread of `cpu`, in whose mapping the ring is read.

        When a handler raises, its write is taken out of the ring; the next drain() serves those behind it.
        """
        run, vcpu, lock = cpu.run, cpu.vcpu, self._control.lock
        while True:
            first, last = RING_INDICES.unpack_from(run, RING)
            if first == last or max(first, last) >= RING_ENTRIES:
                return
            with lock:
                if self._owner is vcpu:
                    return  # a handler that waits: what is left comes when it has returned
                mine = self._owner is None
                if mine:
                    self._owner = vcpu
                else:
                    self._waiting.append(vcpu)
            if not mine:
                do_work_until(cpu, lambda: vcpu not in self._waiting)
                continue
            try:
                self._serve_ring(run)
            finally:
                with lock:
                    self._owner = None
                    waiting, self._waiting = self._waiting, []
                    for other in waiting:
                        other.kick_locked()

    def _serve_ring(self, run: mmap.mmap) -> None:
        first, last = RING_INDICES.unpack_from(run, RING)
        start, size = RING + RING_HEAD, RING_ENTRY.size
        if first < last:
            entries = run[start + first * size : start + last * size]
        else:
            entries = run[start + first * size : start + RING_ENTRIES * size] + run[start : start + last * size]
        batch = Batch(self._context, entries)
        try:
            batch.serve()
        finally:  # not before: a vCPU that sees an empty ring may overtake
            RING_FIRST.pack_into(run, RING, (first + batch.done) % RING_ENTRIES)

    def _tick(self) -> None:
        """Kick a vCPU that runs whenever writes wait; another one each time: the last may be in a long handler."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        control = self._control
        turn, idle = 0, threading.Event()
        while not self._closed:
            control.cond.wait_for(lambda: self._closed or control.counts[State.RUNNING])
            with control.lock:
                running = [vcpu for vcpu in control.vcpus if vcpu.state is State.RUNNING]
                turn += 1
                if running:
                    running[turn % len(running)].kick_if_locked(_writes_wait)
            idle.wait(TICK)

    def close(self) -> None:
        """End the thread; no vCPU runs any more."""
        with self._start_lock:
            self._closed = True
            thread = self._thread
        with self._control.lock:
            self._control.cond.notify_all()
        if thread is not None:
            thread.join()


class Batch:
    """Entries of the ring, served in their order; `done` of them are over, also when a handler raised."""

    __slots__ = ("_entries", "_mmio", "_ports", "done")

    def __init__(self, context: KvmContext, entries: bytes) -> None:
        self._ports, self._mmio = context.ports.write, context.mmio.write
        self._entries = entries
        self.done = 0

    def serve(self) -> None:
        """Hand the writes to the buses; those to the same port, one after the other, in one piece."""
        entries, count = self._entries, len(self._entries) // RING_ENTRY.size
        address, length, pio = PORT_BYTE.unpack_from(entries)
        if pio and length == 1 and _alike(entries):  # a line of text: a tenth of the time of the loop below
            self.done = count
            self._ports(None, address, entries[16 :: RING_ENTRY.size])
            return
        waiting, port = b"", -1
        for number, (address, length, pio, data) in enumerate(RING_ENTRY.iter_unpack(entries)):
            if pio and address == port:
                waiting += data[:length]
                continue
            self._flush(port, waiting, number)
            waiting, port = (data[:length], address) if pio else (b"", -1)
            if not pio:
                self.done = number + 1
                self._mmio(None, address, data[:length])
        self._flush(port, waiting, count)

    def _flush(self, port: int, waiting: bytes, done: int) -> None:
        """Write what has gathered for a port; `done` entries are over then."""
        self.done = done
        if waiting:
            self._ports(None, port, waiting)


def _writes_wait(run: mmap.mmap) -> bool:
    first, last = RING_INDICES.unpack_from(run, RING)
    return bool(first != last)


def _alike(entries: bytes) -> bool:
    """Whether all entries have the same address, length and kind: each but the last what the next one has."""
    quads = array("Q", entries)  # slices of it take a third of the time that those of a memoryview take
    del quads[2::3]
    return quads[2:] == quads[:-2]
