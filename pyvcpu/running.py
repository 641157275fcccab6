"""Running: what one does with a machine once it is built: run, pause, plug, reset."""

from __future__ import annotations

from .errors import ConfigError, StateError
from .outcome import Outcome
from .vcpu import Command, current_cpu
from .vcpu.states import NO_THREAD

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .iothread import IoThread
    from .memory import GuestMemory
    from .vcpu import Accel, Vcpu


class Running:
    """The side of Machine that has to do with its running; Machine makes the attributes and start()."""

    accel: Accel
    vcpus: tuple[Vcpu, ...]
    memory: GuestMemory
    _iothread: IoThread | None

    def start(self) -> None:
        """Realize the vCPUs and start their threads."""
        raise NotImplementedError

    def _write_segments(self) -> None:
        """Write the image into memory."""
        raise NotImplementedError

    def run(self, timeout: float | None = None) -> Outcome:
        """Start the vCPUs that are not yet, let it run to its end or for `timeout` seconds, and pause it.

        Returns how it ended; raises what a handler raised. A machine that has paused can be run on by another call.
        """
        self._not_in_handler("run")
        self.start()
        try:
            self.resume()
            outcome = self.wait(timeout)
        finally:
            self.pause()
        # What ended the machine while it was being paused counts, too: a handler's exception must not get lost.
        return outcome or self.wait(0) or Outcome("timeout")

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Wait for the end of a machine that was resumed: None when `timeout` seconds passed first."""
        self._not_in_handler("wait")
        return self.accel.wait(timeout)

    def stop(self, reason: str = "stopped", status: int | None = None) -> None:
        """End the run with an Outcome of this reason and status. Any thread, also from a handler."""
        self.accel.finish(Outcome(reason, status))

    def resume(self) -> None:
        """Let all vCPUs run (again), and forget the last outcome. Any thread."""
        self.accel.rearm()
        self.accel.post_to_all(Command.RESUME)
        if self._iothread is not None:
            self._iothread.go()

    def pause(self, timeout: float | None = None) -> bool:
        """Stop all vCPUs and wait until they have; False when `timeout` seconds passed first.

        From a handler it only posts the command. KVM has then completed every access, and virtio devices every request:
        registers, memory and disks are whole.
        """
        tickets = self.accel.post_to_all(Command.PAUSE)
        if current_cpu() is not None:
            return True
        paused = all(vcpu.wait_for(ticket, timeout) for vcpu, ticket in tickets)
        if paused and self._iothread is not None:
            self._iothread.hold()
        return paused

    def unplug(self, index: int) -> None:
        """Take vCPU `index` out of the running machine; its thread ends.

        Raise StateError when it is out already. From a handler it only posts the command.
        """
        self._vcpu(index).unplug()

    def plug(self, index: int) -> None:
        """Put vCPU `index`, below maxcpus, into the machine: it starts anew, and runs if the machine does.

        It begins where its image has it begin: at the entry with start="all", with "bsp" waiting for INIT-SIPI-SIPI.
        Nothing of a former life is left. Raise StateError when it is in already, or the machine was never started.
        """
        vcpu = self._vcpu(index)
        if not self.accel.irqchip:
            raise StateError("a vCPU can be plugged once the machine is started: start() or run() it first")
        vcpu.plug()

    def _vcpu(self, index: int) -> Vcpu:
        if not 0 <= index < len(self.vcpus):
            hint = "; more need maxcpus= in smp" if index >= 0 else ""
            raise ConfigError(f"this machine has room for vCPUs 0 to {len(self.vcpus) - 1}, not for {index}{hint}")
        return self.vcpus[index]

    def reset(self, reload: bool = False) -> None:
        """Put all vCPUs that are in the machine back to their starting state; they go on if the machine runs.

        `reload`: first make memory what it was when the image was loaded: the image, and zeros elsewhere. Devices stay
        as they are. For threads that are no vCPU's; raise StateError before start().
        """
        self._not_in_handler("reset")
        if not self.accel.irqchip:
            raise StateError("there is nothing to reset: start() or run() the machine first")
        running = self.accel.running
        self.pause()
        if reload:
            self.memory.clear()
            self._write_segments()
        for vcpu in self.vcpus:
            if vcpu.state not in NO_THREAD:
                vcpu.run_on_cpu(lambda vcpu: vcpu.reset(machine_wide=True))
        if running:
            self.resume()

    def _not_in_handler(self, what: str) -> None:
        if current_cpu() is not None:
            raise StateError(f"{what}() would wait for the vCPU whose handler calls it; use stop() there")
