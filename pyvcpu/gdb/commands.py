"""What a debugger can ask for: a table of packets and the functions that serve them (GDB manual, E.2 to E.4).

A function takes the session and what follows the packet's name, and returns the reply, None when there is none yet.
It raises RequestError, or TargetError, for an error reply.
"""

from __future__ import annotations

from . import lldb, monitor
from .arguments import ALL, ANY, choose_thread, hex_bytes, number, pair, parse_thread, require, thread_of
from .packets import PACKET_SIZE
from .registers import changes
from .session import EFAULT, EIO, EOPNOTSUPP, STOPPED, RequestError
from .target import ACCESS, CONTINUE, HARDWARE, READ, SOFTWARE, STEP, WRITE, TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .session import Session

    Command = Callable[[Session, bytes], bytes | None]

OK, UNKNOWN = b"OK", b""
KINDS = (SOFTWARE, HARDWARE, WRITE, READ, ACCESS)  # by the number in a Z packet
ORDINARY = ("debug register", "software")  # methods that need no word
MAX_BREAKPOINTS = 4096
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
    if session.state == STOPPED:
        return session.stop_reply(session.stop)
    raise RequestError(EIO, "connect again to debug the machine again")


# Registers.


def read_registers(session: Session, arguments: bytes) -> bytes:
    """g: all of them."""
    session.require_stopped()
    arguments, vcpu = thread_of(session, arguments)
    require(not arguments, "nothing follows g")
    return session.layout.pack_all(session.registers(vcpu)).hex().encode()


def write_registers(session: Session, arguments: bytes) -> bytes:
    """G: all of them; those that differ are changed."""
    session.require_stopped()
    arguments, vcpu = thread_of(session, arguments)
    data = hex_bytes(arguments)
    try:
        changed = session.layout.changed(session.registers(vcpu), data)
    except ValueError as error:
        raise RequestError(EIO, str(error)) from None
    return _change(session, vcpu, changed)


def read_register(session: Session, arguments: bytes) -> bytes:
    """p: one, by its number in the target description."""
    session.require_stopped()
    arguments, vcpu = thread_of(session, arguments)
    which = _register(session, arguments)
    return session.layout.pack(session.registers(vcpu), which).hex().encode()


def write_register(session: Session, arguments: bytes) -> bytes:
    """P: number=value."""
    session.require_stopped()
    arguments, vcpu = thread_of(session, arguments)
    name, equals, value = arguments.partition(b"=")
    which, data = _register(session, name), hex_bytes(value)
    register = session.layout.registers[which]
    require(bool(equals) and len(data) == register.size, f"{register.name} has {register.size} bytes")
    return _change(session, vcpu, {register.key: int.from_bytes(data, "little")})


def _register(session: Session, text: bytes) -> int:
    which = number(text)
    require(which < len(session.layout.registers), "there is no register of that number")
    return which


def _change(session: Session, vcpu: int, changed: dict[str, int]) -> bytes:
    values = dict(session.raw_registers(vcpu))
    done: dict[str, int] = {}
    for key, new in changed.items():
        step = changes(values, key, new, lambda address, size: session.target.read_memory(vcpu, address, size))
        values |= step
        done |= step
    session.forget_registers()
    if done:
        session.target.write_registers(vcpu, done)
    return OK


# Memory.


def _read(session: Session, arguments: bytes, most: int) -> bytes:
    session.require_stopped()
    address, length = pair(arguments)
    length = min(length, most, (1 << 64) - address)
    if length <= 0:
        return b""
    try:
        return session.target.read_memory(session.vcpu, address, length)
    except TargetError as error:
        raise RequestError(EFAULT, str(error)) from None


def _write(session: Session, address: int, length: int, data: bytes) -> bytes:
    require(len(data) == length, f"{length} bytes were announced, {len(data)} came")
    if data:
        session.forget_registers()
        try:
            session.target.write_memory(session.vcpu, address, data)
        except TargetError as error:
            raise RequestError(EFAULT, str(error)) from None
    return OK


def read_memory(session: Session, arguments: bytes) -> bytes:
    """m: address,length."""
    return _read(session, arguments, PACKET_SIZE // 2).hex().encode()


def read_binary(session: Session, arguments: bytes) -> bytes:
    """x: address,length. gdb wants a b before the bytes; older lldb does not, and tries x0,0 first."""
    if arguments == b"0,0":
        session.bare_x = True
        return OK
    data = _read(session, arguments, PACKET_SIZE // 2 - 1)
    return data if session.bare_x else b"b" + data


def write_memory(session: Session, arguments: bytes) -> bytes:
    """M: address,length:hex."""
    session.require_stopped()
    where, colon, data = arguments.partition(b":")
    require(bool(colon), "M is address,length:data")
    return _write(session, *pair(where), hex_bytes(data))


def write_binary(session: Session, arguments: bytes) -> bytes:
    """X: address,length:bytes."""
    session.require_stopped()
    where, colon, data = arguments.partition(b":")
    require(bool(colon), "X is address,length:data")
    return _write(session, *pair(where), data)


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
    session.require_stopped()
    vcpu = session.vcpu if session.resumed is None else session.resumed
    if address:
        _change(session, vcpu, {"rip": number(address)})
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


# Tables of the machine.


def transfer(session: Session, arguments: bytes) -> bytes:
    """qXfer: object:read:annex:offset,length."""
    fields = arguments.split(b":")
    require(len(fields) == 4, "qXfer is object:read:annex:offset,length")
    name, operation, annex, where = fields
    document = DOCUMENTS.get((name, annex))
    if operation != b"read" or document is None:
        return b"E00" if (name, b"") in DOCUMENTS or name == b"features" else UNKNOWN
    offset, length = pair(where)
    data = document(session, offset)
    part = data[offset : offset + min(length, PACKET_SIZE // 2)]
    return (b"m" if offset + len(part) < len(data) else b"l") + part


def description(session: Session, offset: int) -> bytes:
    """The registers (features/target.xml). A client that begins to read gets what monitor.py was told to offer."""
    return (session.layout if offset else session.new_layout()).xml


def memory_map(session: Session, offset: int) -> bytes:
    """Memory as gdb addresses it: linear, so that all of it may be RAM; `monitor memory` has the physical map."""
    half = 1 << 63
    return (
        '<?xml version="1.0"?>\n<!DOCTYPE memory-map PUBLIC "+//IDN gnu.org//DTD GDB Memory Map V1.0//EN" '
        '"http://sourceware.org/gdb/gdb-memory-map.dtd">\n'
        f'<memory-map>\n<memory type="ram" start="0x0" length="{half:#x}"/>\n'
        f'<memory type="ram" start="{half:#x}" length="{half:#x}"/>\n</memory-map>\n'
    ).encode()


def threads(session: Session, offset: int) -> bytes:
    """The vCPUs, with names."""
    from xml.sax.saxutils import escape, quoteattr

    lines = ['<?xml version="1.0"?>', "<threads>"]
    for vcpu in session.target.vcpus():
        head = f'<thread id="{vcpu.index + 1:x}" core="{vcpu.index}" name={quoteattr(vcpu.name)}>'
        lines.append(f"{head}{escape(vcpu.state)}</thread>")
    return "\n".join([*lines, "</threads>", ""]).encode()


DOCUMENTS: dict[tuple[bytes, bytes], Callable[[Session, int], bytes]] = {
    (b"features", b"target.xml"): description,
    (b"memory-map", b""): memory_map,
    (b"threads", b""): threads,
}
COMMANDS: dict[bytes, Command] = {
    b"!": nothing,
    b"?": why,
    b"c": go,
    b"C": go_signal,
    b"D": detach,
    b"g": read_registers,
    b"G": write_registers,
    b"H": set_thread,
    b"k": kill,
    b"m": read_memory,
    b"M": write_memory,
    b"p": read_register,
    b"P": write_register,
    b"R": restart,
    b"s": step,
    b"S": step_signal,
    b"T": thread_alive,
    b"x": read_binary,
    b"X": write_binary,
    b"z": remove,
    b"Z": insert,
    b"qAttached": attached,
    b"qC": current_thread,
    b"qfThreadInfo": first_threads,
    b"qsThreadInfo": more_threads,
    b"qSupported": supported,
    b"qSymbol": nothing,
    b"qThreadExtraInfo": thread_words,
    b"qOffsets": offsets,
    b"qXfer": transfer,
    b"qRcmd": monitor.command,
    b"QNonStop": non_stop,
    b"QStartNoAckMode": no_ack,
    b"vAttach": attach,
    b"vCont": cont,
    b"vCont?": cont_help,
    b"vCtrlC": interrupt,
    b"vKill": kill_process,
    **lldb.COMMANDS,
}
WITH_NUMBER = (b"qRegisterInfo", b"qThreadStopInfo")  # a number follows at once
