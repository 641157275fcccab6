"""What a debugger can ask for: a table of packets and the functions that serve them (GDB manual, E.2 to E.4).

A function takes the session and what follows the packet's name, and returns the reply, None when there is none yet.
It raises RequestError, or TargetError, for an error reply.
"""

from __future__ import annotations

from . import documents, lldb, monitor, running, state
from .arguments import ALL, ANY, choose_thread, parse_thread, require
from .packets import PACKET_SIZE
from .session import DETACHED, EOPNOTSUPP, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .session import Session

    Command = Callable[[Session, bytes], bytes | None]

OK, UNKNOWN = b"OK", b""
OURS = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+;qXfer:features:read+;"
    "qXfer:memory-map:read+;qXfer:threads:read+;binary-upload+;error-message+"
)


def execute(session: Session, packet: bytes) -> bytes | None:
    """Serve one packet."""
    name, arguments = split(packet)
    command = COMMANDS.get(name)
    return UNKNOWN if command is None else command(session, arguments)


def split(packet: bytes) -> tuple[bytes, bytes]:
    """Return the name of a packet, as it is in COMMANDS, and what follows."""
    if packet in COMMANDS:
        return packet, b""
    if packet[:1] not in b"qQvj_" or not packet:
        return packet[:1], packet[1:]
    if packet[:1] == b"_":
        return packet[:2], packet[2:]
    for length in (i for i, byte in enumerate(packet) if byte in b":;,"):
        return packet[:length], packet[length + 1 :]
    for name in WITH_NUMBER:
        if packet.startswith(name):
            return name, packet[len(name) :]
    return packet, b""


# Talking about the talk.


def supported(session: Session, arguments: bytes) -> bytes:
    """qSupported: take note of what the client can do, and say what we can."""
    told = arguments.decode("latin-1").split(";")
    session.features = frozenset(feature[:-1] for feature in told if feature.endswith("+"))
    return OURS.encode()


def no_ack(session: Session, arguments: bytes) -> bytes:
    """QStartNoAckMode: this reply is the last one to be acknowledged."""
    session.no_ack = True
    return OK


def non_stop(session: Session, arguments: bytes) -> bytes:
    """QNonStop: when one vCPU stops, all stop."""
    require(arguments in (b"0", b"1"), "QNonStop takes 0 or 1")
    if arguments == b"1":
        raise RequestError(EOPNOTSUPP, "there is no non-stop mode: all vCPUs stop together")
    return OK


def offsets(session: Session, arguments: bytes) -> bytes:
    """qOffsets: programs lie where they were linked to."""
    return b"Text=0;Data=0;Bss=0"


def nothing(session: Session, arguments: bytes) -> bytes:
    """Packets that must be known, and that nothing follows from."""
    return OK


# Threads.


def why(session: Session, arguments: bytes) -> bytes:
    """?: why the machine stands still."""
    return session.stop_reply(session.stop)


def set_thread(session: Session, arguments: bytes) -> bytes:
    """H: which vCPU other packets are about."""
    operation, thread = arguments[:1], parse_thread(arguments[1:])
    require(operation in (b"g", b"c"), "H is followed by g or c")
    if operation == b"g":
        session.vcpu = choose_thread(session, thread)
    else:
        session.resumed = None if thread in (ALL, ANY) else choose_thread(session, thread)
    return OK


def current_thread(session: Session, arguments: bytes) -> bytes:
    """qC."""
    return b"QC%x" % (session.vcpu + 1)


def first_threads(session: Session, arguments: bytes) -> bytes:
    """qfThreadInfo: all of them."""
    return b"m" + b",".join(b"%x" % (vcpu.index + 1) for vcpu in session.target.vcpus())


def more_threads(session: Session, arguments: bytes) -> bytes:
    """qsThreadInfo: that was the list."""
    return b"l"


def thread_alive(session: Session, arguments: bytes) -> bytes:
    """T."""
    choose_thread(session, parse_thread(arguments))
    return OK


def thread_words(session: Session, arguments: bytes) -> bytes:
    """qThreadExtraInfo: the name and what it does, in hex."""
    index = choose_thread(session, parse_thread(arguments))
    (info,) = [vcpu for vcpu in session.target.vcpus() if vcpu.index == index]
    return f"{info.name} [{info.state}]".encode().hex().encode() if info.state else info.name.encode().hex().encode()


def attached(session: Session, arguments: bytes) -> bytes:
    """qAttached: the machine was there before, so a client that quits does not kill it."""
    return b"1"


def attach(session: Session, arguments: bytes) -> bytes | None:
    """vAttach: debug it again, after a detach."""
    if session.state != DETACHED:
        session.require_stopped()
        return session.stop_reply(session.stop)
    session.attach_again()
    return None


COMMANDS: dict[bytes, Command] = {
    b"!": nothing,
    b"?": why,
    b"c": running.go,
    b"C": running.go_signal,
    b"D": running.detach,
    b"g": state.read_registers,
    b"G": state.write_registers,
    b"H": set_thread,
    b"k": running.kill,
    b"m": state.read_memory,
    b"M": state.write_memory,
    b"p": state.read_register,
    b"P": state.write_register,
    b"R": running.restart,
    b"s": running.step,
    b"S": running.step_signal,
    b"T": thread_alive,
    b"x": state.read_binary,
    b"X": state.write_binary,
    b"z": running.remove,
    b"Z": running.insert,
    b"qAttached": attached,
    b"qC": current_thread,
    b"qfThreadInfo": first_threads,
    b"qsThreadInfo": more_threads,
    b"qSupported": supported,
    b"qSymbol": nothing,
    b"qThreadExtraInfo": thread_words,
    b"qOffsets": offsets,
    b"qXfer": documents.transfer,
    b"qRcmd": monitor.command,
    b"QNonStop": non_stop,
    b"QStartNoAckMode": no_ack,
    b"vAttach": attach,
    b"vCont": running.cont,
    b"vCont?": running.cont_help,
    b"vCtrlC": running.interrupt,
    b"vKill": running.kill_process,
    **lldb.COMMANDS,
}
WITH_NUMBER = (b"qRegisterInfo", b"qThreadStopInfo")  # a number follows at once
