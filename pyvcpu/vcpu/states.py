"""The states of a vCPU, and the one table that says which command leads where."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import ClassVar


# Strings, no enum.Enum: to load that takes longer than the guest of a small boot runs.
class State(str):
    """Where a vCPU is in its life, as a word for people."""

    __slots__ = ()
    REALIZED: ClassVar[State]
    STARTING: ClassVar[State]
    PLUGGING: ClassVar[State]
    PAUSED: ClassVar[State]
    RUNNING: ClassVar[State]
    HALTED: ClassVar[State]
    PAUSED_HALTED: ClassVar[State]
    LEAVING: ClassVar[State]
    UNPLUGGED: ClassVar[State]


State.REALIZED = State("realized")  # prepared, no thread
State.STARTING = State("starting")  # its thread runs init_vcpu
State.PLUGGING = State("plugging")  # the same, of a vCPU that was unplugged
State.PAUSED = State("paused")  # created; waits for RESUME
State.RUNNING = State("running")  # in cpu_exec
State.HALTED = State("halted")  # the guest executed HLT; waits for WAKE
State.PAUSED_HALTED = State("paused while halted")  # waits for RESUME, to wait for WAKE again
State.LEAVING = State("unplugging")  # its thread is on its way to destroy_vcpu
State.UNPLUGGED = State("unplugged")  # no thread; the fd is parked


class Command(str):
    """What moves a vCPU from state to state. The first four come from other threads, the rest from its own."""

    __slots__ = ()
    START: ClassVar[Command]
    RESUME: ClassVar[Command]
    PAUSE: ClassVar[Command]
    UNPLUG: ClassVar[Command]
    CREATED: ClassVar[Command]
    FAILED: ClassVar[Command]
    HALT: ClassVar[Command]
    WAKE: ClassVar[Command]
    GONE: ClassVar[Command]


Command.START = Command("start")
Command.RESUME = Command("resume")
Command.PAUSE = Command("pause")
Command.UNPLUG = Command("unplug")
Command.CREATED = Command("created")  # init_vcpu succeeded
Command.FAILED = Command("failed")  # init_vcpu raised
Command.HALT = Command("halt")
Command.WAKE = Command("wake")
Command.GONE = Command("gone")  # destroy_vcpu is done

STATES = {name: value for name, value in vars(State).items() if isinstance(value, State)}
COMMANDS = {name: value for name, value in vars(Command).items() if isinstance(value, Command)}

TRANSITIONS: dict[tuple[State, Command], State] = {
    (State.REALIZED, Command.START): State.STARTING,
    (State.UNPLUGGED, Command.START): State.PLUGGING,
    (State.STARTING, Command.CREATED): State.PAUSED,
    (State.STARTING, Command.FAILED): State.REALIZED,
    (State.PLUGGING, Command.CREATED): State.PAUSED,
    (State.PLUGGING, Command.FAILED): State.UNPLUGGED,
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
BEING_BORN = frozenset({State.STARTING, State.PLUGGING})
# In these states a vCPU keeps the world from standing still: it runs, or is on its way somewhere.
MOVING = frozenset({State.STARTING, State.PLUGGING, State.RUNNING, State.HALTED, State.LEAVING})
# In these states the vCPU thread has something to do; in the others with a thread it sleeps in wait_io_event.
BUSY = frozenset({State.RUNNING, State.LEAVING})
