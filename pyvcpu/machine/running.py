"""Running: the side of a machine that has to do with its run."""

from __future__ import annotations

from ..errors import ConfigError, StateError
from ..vcpu import Vcpu
from ..vcpu.states import NO_THREAD
from .outcome import Outcome
from .runcontrol import Hold, RunControl


class Running:
    """What one does with the vCPUs of a machine, all together: see Machine."""

    def __init__(self) -> None:
        self.control = RunControl()
        self.vcpus: tuple[Vcpu, ...] = ()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Wait for the end of a machine that was resumed: None when `timeout` seconds passed first.

        Everyone who waits gets the same outcome, and each thread each exception of a handler once.
        """
        self.control.check_ours()
        self._not_in_handler("wait")
        return self.control.wait(self.control.current(), timeout)

    def stop(self, reason: str = "stopped", status: int | None = None) -> None:
        """End the run with an Outcome of this reason and status. Any thread, also from handlers, of signals, too.

        It counts for the run under way; where there is none, the next one ends at once. The first end of a run counts.
        """
        self.control.check_ours()
        self.control.finish(reason, status)

    def resume(self) -> None:
        """Let all vCPUs run (again). Any thread.

        The run goes on, or a new one begins where the last has ended. It does not as long as nobody has seen that end:
        wait() for it first.
        """
        self._not_closed()
        self.control.resume()

    def pause(self, timeout: float | None = None) -> bool:
        """Stop all vCPUs and wait until they have; False when `timeout` seconds passed first.

        From a handler it only posts the command. KVM has then completed every access, and no virtio device is in the
        middle of a request: registers, memory and disks are whole. paused() also keeps other threads from resuming it.
        """
        self.control.check_ours()
        return self.control.pause(timeout)

    def paused(self, by: str = "", timeout: float | None = None) -> Hold:
        """Hold the world still: `with machine.paused(): ...`.

        Inside, all vCPUs stand still with their accesses completed, collected writes and virtio requests are served,
        and what the host feeds the guest waits: serial input, lines, timers of devices. It nests, and several threads
        may hold it; the machine goes on, if it ran, when the last lets go. `by` says what for: `machine.holders` has
        it. Raise StateError in a handler, TimeoutError when it does not stand still within `timeout` seconds.
        """
        self.control.check_ours()
        return Hold(self.control, by, timeout)

    @property
    def holders(self) -> tuple[str, ...]:
        """Who holds the world still: the name of each thread, and what for."""
        with self.control.lock:
            return tuple(self.control.holders)

    def unplug(self, index: int) -> None:
        """Take vCPU `index` out of the running machine; its thread ends.

        Raise StateError when it is out already. From a handler it only posts the command.
        """
        self.control.check_ours()
        vcpu = self._vcpu(index)
        if self.control.is_vcpu_thread():
            vcpu.unplug()
            return
        with self.control.start_lock:
            vcpu.unplug()

    def plug(self, index: int) -> None:
        """Put vCPU `index`, below maxcpus, into the machine: it starts anew, and runs if the machine does.

        It begins where its image has it begin: at the entry with start="all", with "bsp" waiting for INIT-SIPI-SIPI.
        Nothing of a former life is left. Raise StateError when it is in already, or the machine was never started.
        """
        self._not_closed()
        self._vcpu(index).plug()

    def _vcpu(self, index: int) -> Vcpu:
        if not isinstance(index, int):
            raise TypeError(f"a vCPU is named by its index, a number, not by {index!r}")
        if not 0 <= index < len(self.vcpus):
            hint = "; more need maxcpus= in smp" if index >= 0 else ""
            raise ConfigError(f"this machine has room for vCPUs 0 to {len(self.vcpus) - 1}, not for {index}{hint}")
        return self.vcpus[index]

    def _not_closed(self) -> None:
        self.control.check_ours()
        if self.control.closed:
            raise StateError("the machine is closed; make another one")

    def _not_started(self, what: str) -> None:
        if any(vcpu.state not in NO_THREAD for vcpu in self.vcpus):
            raise StateError(f"the vCPUs are started already: {what} before start() or run()")

    def _not_in_handler(self, what: str) -> None:
        if self.control.is_vcpu_thread():
            raise StateError(f"{what}() would wait for the vCPU whose handler calls it; use stop() there")
