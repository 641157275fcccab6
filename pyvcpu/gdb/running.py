"""Requests that set breakpoints, run the machine, and end it (GDB manual, E.2)."""

from __future__ import annotations

from .arguments import ALL, ANY, choose_thread, number, pair, parse_thread, require
from .session import ENDED, EOPNOTSUPP, RequestError
from .state import change
from .target import ACCESS, CONTINUE, HARDWARE, READ, SOFTWARE, STEP, WRITE, TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .session import Session

OK = b"OK"
KINDS = (SOFTWARE, HARDWARE, WRITE, READ, ACCESS)  # by the number in a Z packet
ORDINARY = ("debug register", "software")  # methods that need no word
MAX_BREAKPOINTS = 4096


# Breakpoints.


def _breakpoint(arguments: bytes) -> tuple[str, int, int]:
    kind, _, where = arguments.partition(b",")
    require(kind in (b"0", b"1", b"2", b"3", b"4"), "a breakpoint's type is 0 to 4")
    address, length = pair(where)
    require(length > 0 or kind in b"01", "a watchpoint has a length")
    return KINDS[int(kind)], address, length


def insert(session: Session, arguments: bytes) -> bytes:
    """Z: type,address,length. Asked for twice it is set once."""
    session.require_stopped()
    key = _breakpoint(arguments)
    kind, address, length = key
    if key not in session.breakpoints:
        if len(session.breakpoints) >= MAX_BREAKPOINTS:
            raise RequestError(EOPNOTSUPP, f"there are {MAX_BREAKPOINTS} breakpoints already")
        try:
            method = session.target.insert(kind, address, length)
        except TargetError as error:
            session.failures = [*session.failures[-15:], f"{kind} at {address:#x}, {length} bytes: {error}"]
            if kind == HARDWARE and not session.has_error_words:
                return b"E.refused." + str(error).encode()  # the one error whose words gdb has always shown
            raise RequestError(EOPNOTSUPP, str(error)) from None
        session.breakpoints[key] = method
        if method not in ORDINARY:
            session.note(key, f"{kind} breakpoint at {address:#x}: {method}")
    return OK


def remove(session: Session, arguments: bytes) -> bytes:
    """z: type,address,length."""
    session.require_stopped()
    key = _breakpoint(arguments)
    if session.breakpoints.pop(key, None) is not None:
        session.target.remove(*key)
    return OK


# Running.


def cont_help(session: Session, arguments: bytes) -> bytes:
    """vCont?: the actions that there are."""
    return b"vCont;c;C;s;S;t;r"


def cont(session: Session, arguments: bytes) -> bytes | None:
    """vCont: an action for each thread; the first that names it counts."""
    if session.state == ENDED:
        return session.stop_reply(session.stop)
    session.require_stopped()
    indexes = [vcpu.index for vcpu in session.target.vcpus()]
    actions: dict[int, str] = {}
    ranges: dict[int, tuple[int, int]] = {}
    settled: set[int] = set()
    for item in arguments.split(b";"):
        text, colon, thread = item.partition(b":")
        action, span = _action(text)
        which = parse_thread(thread) if colon else ALL
        chosen = indexes if which in (ALL, ANY) else [choose_thread(session, which)]
        for index in set(chosen) - settled:
            settled.add(index)
            if action:
                actions[index] = action
            if span:
                ranges[index] = span
    return session.resume(actions, ranges)


def _action(text: bytes) -> tuple[str, tuple[int, int] | None]:
    """Return what a vCont action is to do ("" for stay) and, for r, where. A machine has no use for signals."""
    letter, rest = text[:1], text[1:]
    if letter == b"r":
        start, end = pair(rest)
        return STEP, (start, end)
    require(bool(letter) and letter in b"cCsSt", "vCont's actions are c, C, s, S, t and r")
    if letter in b"CS":
        number(rest)
    else:
        require(not rest, "vCont's c, s and t take nothing")
    return {b"c": CONTINUE, b"s": STEP, b"t": ""}[letter.lower()], None


def go(session: Session, arguments: bytes) -> bytes | None:
    """c: go on, at an address if there is one."""
    return _old_resume(session, arguments, CONTINUE)


def step(session: Session, arguments: bytes) -> bytes | None:
    """s: one instruction."""
    return _old_resume(session, arguments, STEP)


def go_signal(session: Session, arguments: bytes) -> bytes | None:
    """C: signal;address."""
    signal, _, address = arguments.partition(b";")
    number(signal)
    return _old_resume(session, address, CONTINUE)


def step_signal(session: Session, arguments: bytes) -> bytes | None:
    """S: signal;address."""
    signal, _, address = arguments.partition(b";")
    number(signal)
    return _old_resume(session, address, STEP)


def _old_resume(session: Session, address: bytes, action: str) -> bytes | None:
    if session.state == ENDED:
        return session.stop_reply(session.stop)
    session.require_stopped()
    vcpu = session.vcpu if session.resumed is None else session.resumed
    if address:
        change(session, vcpu, {"rip": number(address)})
    if action == STEP or session.resumed is not None:
        return session.resume({vcpu: action})
    return session.resume({info.index: CONTINUE for info in session.target.vcpus()})


def interrupt(session: Session, arguments: bytes) -> bytes:
    """vCtrlC: as Ctrl-C."""
    session.interrupt()
    return OK


def detach(session: Session, arguments: bytes) -> bytes:
    """D: remove the breakpoints and let the machine run."""
    session.detach(run=True)
    return OK


def kill(session: Session, arguments: bytes) -> bytes:
    """k: end the machine."""
    session.target.kill()
    session.closing = True
    return b"X09"


def kill_process(session: Session, arguments: bytes) -> bytes:
    """vKill: end the machine."""
    session.target.kill()
    return OK


def restart(session: Session, arguments: bytes) -> None:
    """R: reset the machine; there is no reply."""
    session.require_stopped()
    session.forget_registers()
    session.target.reset()
