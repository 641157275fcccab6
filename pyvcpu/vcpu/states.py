"""The states of a vCPU, and the one table that says which command leads where."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a vCPU is in its life; str() gives a word for people."""

    REALIZED = "realized"  # prepared, no thread
    STARTING = "starting"  # its thread runs init_vcpu
    PAUSED = "paused"  # created; waits for RESUME
    RUNNING = "running"  # in cpu_exec
    HALTED = "halted"  # the guest executed HLT; waits for WAKE
    PAUSED_HALTED = "paused while halted"  # waits for RESUME, to wait for WAKE again
    LEAVING = "unplugging"  # its thread is on its way to destroy_vcpu
    UNPLUGGED = "unplugged"  # no thread; the fd is parked

    def __str__(self) -> str:
        return str(self.value)


class Command(Enum):
    """What moves a vCPU from state to state. The first four come from other threads, the rest from its own."""

    START = "start"
    RESUME = "resume"
    PAUSE = "pause"
    UNPLUG = "unplug"
    CREATED = "created"  # init_vcpu succeeded
    FAILED = "failed"  # init_vcpu raised
    HALT = "halt"
    WAKE = "wake"
    GONE = "gone"  # destroy_vcpu is done

    def __str__(self) -> str:
        return str(self.value)


TRANSITIONS: dict[tuple[State, Command], State] = {
    (State.REALIZED, Command.START): State.STARTING,
    (State.UNPLUGGED, Command.START): State.STARTING,
    (State.STARTING, Command.CREATED): State.PAUSED,
    (State.STARTING, Command.FAILED): State.REALIZED,
    (State.PAUSED, Command.PAUSE): State.PAUSED,
    (State.PAUSED, Command.RESUME): State.RUNNING,
    (State.PAUSED, Command.HALT): State.PAUSED_HALTED,
    (State.PAUSED, Command.WAKE): State.PAUSED,
    (State.PAUSED, Command.UNPLUG): State.LEAVING,
    (State.RUNNING, Command.PAUSE): State.PAUSED,
    (State.RUNNING, Command.RESUME): State.RUNNING,
    (State.RUNNING, Command.HALT): State.HALTED,
    (State.RUNNING, Command.WAKE): State.RUNNING,
    (State.RUNNING, Command.UNPLUG): State.LEAVING,
    (State.HALTED, Command.PAUSE): State.PAUSED_HALTED,
    (State.HALTED, Command.RESUME): State.HALTED,
    (State.HALTED, Command.WAKE): State.RUNNING,
    (State.HALTED, Command.UNPLUG): State.LEAVING,
    (State.PAUSED_HALTED, Command.PAUSE): State.PAUSED_HALTED,
    (State.PAUSED_HALTED, Command.RESUME): State.HALTED,
    (State.PAUSED_HALTED, Command.WAKE): State.PAUSED,
    (State.PAUSED_HALTED, Command.UNPLUG): State.LEAVING,
    # Once it leaves, it leaves; a command that comes too late is answered, not lost.
    (State.LEAVING, Command.PAUSE): State.LEAVING,
    (State.LEAVING, Command.RESUME): State.LEAVING,
    (State.LEAVING, Command.WAKE): State.LEAVING,
    (State.LEAVING, Command.UNPLUG): State.LEAVING,
    (State.LEAVING, Command.GONE): State.UNPLUGGED,
}

NO_THREAD = frozenset({State.REALIZED, State.UNPLUGGED})
# In these states the vCPU thread has something to do; in the others with a thread it sleeps in wait_io_event.
BUSY = frozenset({State.RUNNING, State.LEAVING})
