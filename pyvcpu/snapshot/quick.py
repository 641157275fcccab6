"""Quick: reset a machine to the snapshot that it was restored from last, by putting back only what has changed.

Memory: the pages that KVM's dirty log names, and those that the host wrote. vCPUs: see vcpu_reset.py. Devices: those
whose state is another. All that is needed for that is prepared once.
"""

from __future__ import annotations

from ..vcpu.states import NO_THREAD, Command
from .fits import check_devices
from .vcpu_reset import VcpuReset, is_simple

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from ..vcpu.standin import StandIn
    from ..vcpu.thread import VcpuThread
    from .data import Snapshot
    from .target import Control, Target
    from .tracker import Tracker

HOLDER = "restore"


class Quick:
    """What resets one machine to `snapshot`, in whose state it is when this is made; the world is held still."""

    def __init__(self, machine: Target, snapshot: Snapshot, tracker: Tracker) -> None:
        self.snapshot = snapshot
        self._control: Control = machine.control
        self._clock_line = snapshot.data["clock"]["line"]
        self._tracker = tracker
        self._threads: list[tuple[VcpuThread, int, VcpuReset, dict[str, Any]]] = []
        for thread, saved in zip(machine._threads, snapshot.data["vcpus"], strict=True):
            if saved is not None:
                reset = thread.vcpu.run_on_cpu(lambda vcpu, t=thread, s=saved: VcpuReset(t, s["state"]))  # type: ignore[misc]
                self._threads.append((thread, thread.vcpu._lives, reset, saved))
        states = snapshot.data["devices"]
        self._names = list(machine.devices)
        self._changing: list[tuple[int, tuple[Any, Any]]] = []
        self._devices = [
            (device, states[name]) for name, device in machine.devices.items() if states[name] and name != "irqchip"
        ]
        self._irqchip = machine.devices.get("irqchip") if machine.context.irqchip == "kernel" else None
        # As they are now: KVM notes in the PIT when it was set.
        self._chips = {} if self._irqchip is None else self._irqchip.state()
        self._chips.pop("clock", None)
        tracker.begin(snapshot.image)

    @staticmethod
    def can(snapshot: Snapshot) -> bool:
        """Tell whether a machine can be reset to `snapshot` in this way."""
        return all(vcpu is None or is_simple(vcpu["state"]) for vcpu in snapshot.data["vcpus"])

    def _fits(self, machine: Target) -> bool:
        """Tell whether the machine still consists of the same."""
        there = sum(vcpu.state not in NO_THREAD for vcpu in machine.vcpus)
        same = all(thread.vcpu._lives == life for thread, life, _, _ in self._threads)
        return same and there == len(self._threads) and self._names == list(machine.devices)

    def reset_again(self, machine: Target, snapshot: Snapshot, time: str, *, any_disk: bool, all_pieces: bool) -> bool:
        """Reset the machine, if `snapshot` is the one and all is as it was when this was made; False where not."""
        if snapshot is not self.snapshot or time != "continue" or machine._parent is not snapshot:
            return False
        with self._control.start_lock:
            if machine._clock_line != self._clock_line:
                return False
            if snapshot.data["disks"]:
                check_devices(snapshot, machine, any_disk)
            stand_in = machine._stand_in
            if stand_in is not None and not machine.board.has_thread and self._reset_here(stand_in, all_pieces):
                return True
            with machine.paused(HOLDER):
                if not self._fits(machine) or not self._reset(all_pieces):
                    return False
            self._control.forget_end()
            return True

    def _reset_here(self, stand_in: StandIn, all_pieces: bool) -> bool:
        """Do all of it on the calling thread, for a machine with one vCPU, which has nothing to do; False where not."""
        control, vcpu = self._control, self._threads[0][0].vcpu
        if not stand_in.can_be_kicked():
            return False
        with control.lock:
            # What paused() does, where nobody else has anything to do with the machine. The host's input need not wait:
            # it comes before this, or after.
            if control.holders or control.closed or vcpu._lives != self._threads[0][1] or not stand_in.begin_locked():
                return False
            control.holders.append(HOLDER)
        try:
            thread, _, reset, saved = self._threads[0]
            self._put_devices(all_pieces)
            put_back(thread, reset, saved, all_pieces)
            return self._tracker.rewind(self.snapshot.image)
        finally:
            with control.lock:
                control.run.seen |= control.run.outcome is not None
                control.holders.remove(HOLDER)
                stand_in.end_locked()
                if not vcpu.stopped and not control.holders:
                    vcpu.post_locked(Command.RESUME)

    def _reset(self, all_pieces: bool) -> bool:
        """Put everything back; False where memory cannot be: what changed in it is not known. The world stands still.

        Memory comes last: to set a vCPU's MSRs may change it.
        """
        self._put_devices(all_pieces)
        for thread, _, reset, saved in self._threads:
            thread.vcpu.run_on_cpu(
                lambda vcpu, t=thread, r=reset, s=saved: put_back(t, r, s, all_pieces)  # type: ignore[misc]
            )
        return self._tracker.rewind(self.snapshot.image)

    def _put_devices(self, all_of_them: bool) -> None:
        """Put back those that have changed; else look at those only that were seen to change."""
        for at, (device, saved) in enumerate(self._devices) if all_of_them else self._changing:
            if device.state() != saved:
                device.restore(saved)
                if (at, (device, saved)) not in self._changing:
                    self._changing.append((at, (device, saved)))
        if self._irqchip is not None:
            now = self._irqchip.state()
            if any(now[key] != value for key, value in self._chips.items()):
                self._irqchip.restore({**self._chips, "clock": 0}, clock=False)


def put_back(thread: VcpuThread, reset: VcpuReset, saved: dict[str, Any], all_pieces: bool) -> None:
    """Put one vCPU back, on its thread."""
    reset.put_back(all_pieces)
    interrupts = thread.vcpu._interrupts
    if interrupts or saved["interrupts"]:
        interrupts.clear()
        interrupts.extend(saved["interrupts"])
