"""Session: one client's connection without its socket: bytes in, bytes out, and the machine in between.

Sans I/O: the server feeds receive() and stopped(), and sends what gathers in `out`.
"""

from __future__ import annotations

from collections import deque

from . import packets
from .registers import Layout, view
from .target import BREAKPOINT, EXITED, HARDWARE, PAUSED, SIGINT, SOFTWARE, STEPPED, WATCHPOINT, Stop, TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping

    from .target import Registers, Target

# Errors of Linux, which gdb shows by number.
ESRCH, EIO, EFAULT, EBUSY, EINVAL, EMSGSIZE, EOPNOTSUPP = 3, 5, 14, 16, 22, 90, 95
OUT_LIMIT = 4 * packets.PACKET_SIZE  # no request is served while a client leaves this much unread
RESENDS = 8  # of one reply
OUTPUT_PART = 0x1000  # characters of an O packet

NEW, ATTACHING, STOPPED, RUNNING, DETACHED, ENDED = "new", "attaching", "stopped", "running", "detached", "ended"
WATCH_NAMES = {"write": "watch", "read": "rwatch", "access": "awatch"}
EXPEDITED = ("rip", "rsp", "rbp")  # registers that a stop reply brings along


class RequestError(Exception):
    """A request that gets an error reply: its number, and words for clients that show them."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.number = number
        self.words = words


class Session:
    """One connection. `execute(session, packet)` does a request and returns the reply, None for none yet.

    `notice` gets a line for people when something goes wrong on our side. All methods are for the stub's thread.
    """

    def __init__(
        self,
        target: Target,
        execute: Callable[[Session, bytes], bytes | None],
        on_stop: Callable[[Stop], None],
        notice: Callable[[str], None],
        encoder: packets.Encoder,
    ) -> None:
        self.target = target
        self.notice = notice
        self.out = bytearray()
        self.closing = False  # to be closed once `out` is sent
        self.state = NEW
        self.no_ack = False
        self.features: frozenset[str] = frozenset()  # what the client says in qSupported
        # What lldb asks for: a thread in requests, threads in stop replies, words in errors, its own form of x.
        self.thread_suffix = self.threads_in_stops = self.error_strings = self.bare_x = False
        self.vcpu = 0  # that registers and memory are read of (Hg)
        self.resumed: int | None = None  # that c and s are for (Hc), None for all
        self.breakpoints: dict[tuple[str, int, int], str] = {}  # with the method that is used
        self.failures: list[str] = []  # why breakpoints were refused
        self.bits = 0  # which target description to offer: 16, 32, 64, or 0 for the processor's own
        self._layout: Layout | None = None  # the one that the client has
        self.stop = Stop(PAUSED)
        self._execute = execute
        self._on_stop = on_stop
        self._parser = packets.Parser()
        self._encoder = encoder
        self._events: deque[tuple[str, bytes]] = deque()
        self._unacknowledged, self._resends = b"", 0
        self._registers: dict[int, Registers] = {}  # while all stand still
        self._actions: Mapping[int, str] = {}
        self._ranges: dict[int, tuple[int, int]] = {}
        self._interrupted = False
        self._notes: list[str] = []
        self._noted: set[object] = set()
        self._found_running = self._has_resumed = False

    # Bytes in.

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be received for now."""
        return bool(self._events) or len(self.out) >= OUT_LIMIT or self.state == ATTACHING

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        self._events.extend(self._parser.feed(data))
        self.pump()

    def pump(self) -> None:
        """Serve what was received, as far as the machine stands still for it and the client reads the replies."""
        while self._events and not self.closing and self.state != ATTACHING and len(self.out) < OUT_LIMIT:
            if self.state == NEW and self._events[0][0] == packets.PACKET:
                self.attach()
                continue
            kind, payload = self._events.popleft()
            self._serve(kind, payload)

    def _serve(self, kind: str, payload: bytes) -> None:
        if kind == packets.BREAK:
            self.interrupt()
        elif kind == packets.ACK:
            self._unacknowledged = b""
        elif kind == packets.NACK:
            if self._unacknowledged and self._resends < RESENDS:
                self._resends += 1
                self.out += self._unacknowledged
        elif kind == packets.DAMAGED and not self.no_ack:
            self.out += b"-"
        else:
            if not self.no_ack:
                self.out += b"+"
            self._request(kind, payload)

    def _request(self, kind: str, payload: bytes) -> None:
        try:
            if kind == packets.TOO_LONG:
                raise RequestError(EMSGSIZE, f"a packet has at most {packets.PACKET_SIZE:#x} characters")
            if kind != packets.PACKET:
                raise RequestError(EINVAL, f"the packet is {kind}")
            answer = self._execute(self, payload)
        except RequestError as error:
            answer = self._error(error)
        except TargetError as error:
            answer = self._error(RequestError(EIO, str(error)))
        except Exception as error:
            # A mistake of ours or of the machine's: it costs the client an answer, and nobody the machine.
            self._complain(error, payload)
            answer = self._error(RequestError(EIO, f"internal error: {type(error).__name__}"))
        if answer is not None:
            self.reply(answer)

    def _complain(self, error: Exception, request: bytes = b"") -> None:
        """Tell people of what should not have happened."""
        kind = "" if isinstance(error, TargetError) else f"{type(error).__name__}: "
        self.notice(f"gdb: {f'{request[:40]!r}: ' if request else ''}{kind}{error}")

    @property
    def has_error_words(self) -> bool:
        """Whether the client shows the words of errors."""
        return self.error_strings or "error-message" in self.features

    def _error(self, error: RequestError) -> bytes:
        if self.error_strings:
            return f"E{error.number:02x};{error.words.encode().hex()}".encode()
        if "error-message" in self.features:
            return b"E." + error.words.encode()
        return b"E%02x" % error.number

    # Bytes out.

    def reply(self, payload: bytes) -> None:
        """Send a packet."""
        packet = self._encoder.encode(payload)
        self.out += packet
        if not self.no_ack:
            self._unacknowledged, self._resends = packet, 0

    def output(self, text: str) -> None:
        """Send text to the client's console; only while it waits for a stop or a monitor command."""
        data = text.encode("utf-8", "replace")
        for start in range(0, len(data), OUTPUT_PART):
            self.reply(b"O" + data[start : start + OUTPUT_PART].hex().encode())

    def note(self, key: object, text: str) -> None:
        """Tell the client's user something, once for each key, as soon as it may be sent."""
        if key not in self._noted:
            self._noted.add(key)
            self._notes.append(text)

    # The machine.

    def attach(self) -> None:
        """Ask the machine to stand still; until it does, nothing is served."""
        self.state = ATTACHING
        try:
            self._found_running = self.target.running
            self.target.attach(self._on_stop)
        except Exception as error:
            self._complain(error)
            self.state, self.stop = ENDED, Stop(EXITED)

    def attach_again(self) -> None:
        """Debug the machine anew after a detach; its stop is the reply."""
        self.state = NEW
        self._events.appendleft((packets.PACKET, b"?"))

    def stopped(self, stop: Stop) -> None:
        """Take a Stop of the machine."""
        before, self.state = self.state, ENDED if stop.reason == EXITED else STOPPED
        self.forget_registers()
        if before == DETACHED:
            self.state = before
        elif before == RUNNING:
            if self._goes_on(stop):
                return
            if self._interrupted and stop.reason == STEPPED:
                stop = Stop(PAUSED, stop.vcpu)
        self.stop = stop
        self.vcpu = stop.vcpu
        if before == RUNNING:
            if stop.text:
                self.output(f"pyvcpu: {stop.text}\n")
            try:
                self.reply(self.stop_reply(stop))
            except Exception as error:
                self._complain(error)
                self.reply(b"T%02x" % (stop.signal & 0xFF))
        self.pump()

    def _goes_on(self, stop: Stop) -> bool:
        """Step on within a range, without a word to the client."""
        if stop.reason != STEPPED or stop.vcpu not in self._ranges or self._interrupted:
            return False
        start, end = self._ranges[stop.vcpu]
        try:
            if not start <= self.registers(stop.vcpu)["rip"] < end:
                return False
            self.forget_registers()
            self.target.resume(self._actions)
        except Exception as error:
            self._complain(error)
            return False
        self.state = RUNNING
        return True

    def resume(self, actions: Mapping[int, str], ranges: dict[int, tuple[int, int]] | None = None) -> bytes | None:
        """Run vCPUs; the reply is their next stop. `ranges`: where to go on with steps, by vCPU."""
        self.require_stopped()
        if not actions:
            return self.stop_reply(self.stop)
        self.target.resume(actions)
        self.forget_registers()
        self.state = RUNNING
        self._has_resumed, self._interrupted = True, False
        self._actions, self._ranges = actions, ranges or {}
        for text in self._notes:
            self.output(f"pyvcpu: {text}\n")
        self._notes.clear()
        return None

    def interrupt(self) -> None:
        """Stop a machine that runs, as Ctrl-C does."""
        if self.state == RUNNING:
            self._interrupted = True
            try:
                self.target.interrupt()
            except Exception as error:
                self._complain(error)

    def detach(self, run: bool) -> None:
        """Let go of the machine."""
        if self.state not in (NEW, DETACHED):
            self.state = DETACHED
            self.breakpoints.clear()
            self.forget_registers()
            try:
                self.target.detach(run)
            except Exception as error:
                self._complain(error)

    def lost(self) -> None:
        """Leave the machine as it was found: the connection is gone without a word.

        One that stood still before, and that the client never let run, goes on waiting for a debugger.
        """
        self.detach(self._found_running or self._has_resumed)

    def require_stopped(self) -> None:
        """Raise RequestError unless the machine stands still."""
        if self.state == RUNNING:
            raise RequestError(EBUSY, "the machine is running")
        if self.state != STOPPED:
            raise RequestError(EIO, f"the machine is not being debugged: {self.state}")

    # Registers, kept while the machine stands still.

    def raw_registers(self, vcpu: int) -> Registers:
        """Return the registers of a vCPU as the target has them."""
        if vcpu not in self._registers:
            self._registers[vcpu] = self.target.read_registers(vcpu)
        return self._registers[vcpu]

    def registers(self, vcpu: int) -> Registers:
        """Return the registers of a vCPU as the client sees them."""
        return view(self.raw_registers(vcpu))

    def forget_registers(self) -> None:
        """Ask the target anew for registers, after something may have changed them."""
        self._registers.clear()

    @property
    def layout(self) -> Layout:
        """The target description that the client has; one that never asked for it has the processor's own."""
        return self._layout or self.new_layout()

    def new_layout(self) -> Layout:
        """Make the target description anew, for a client that is about to read it.

        A processor's own is for 64 bits where it has long mode, whatever mode it is in: a session that goes through a
        boot ends there, and most clients keep the description that they begin with.
        """
        present = self.raw_registers(self.vcpu)
        self._layout = Layout(self.bits or (64 if "r8" in present else 32), present.keys())
        return self._layout

    # Stop replies.

    def stop_reply(self, stop: Stop) -> bytes:
        """Return the packet that tells of a stop (GDB manual, E.3 Stop Reply Packets)."""
        if stop.reason == EXITED:
            return b"W%02x" % (stop.status & 0xFF)
        signal = SIGINT if stop.reason == PAUSED else stop.signal
        fields = [f"thread:{stop.vcpu + 1:x}"]
        if self.threads_in_stops:
            fields.append("threads:" + ",".join(f"{vcpu.index + 1:x}" for vcpu in self.target.vcpus()))
        fields += self._cause(stop)
        fields += self._expedited(stop.vcpu)
        return f"T{signal & 0xFF:02x}{''.join(field + ';' for field in fields)}".encode()

    def _cause(self, stop: Stop) -> list[str]:
        if stop.reason == WATCHPOINT:
            return [f"{WATCH_NAMES.get(stop.kind, 'watch')}:{stop.address:x}"]
        if self.thread_suffix:  # lldb
            words = {BREAKPOINT: "breakpoint", STEPPED: "trace", PAUSED: "signal"}
            return [f"reason:{words.get(stop.reason, 'signal')}"]
        name = {SOFTWARE: "swbreak", HARDWARE: "hwbreak"}.get(stop.kind, "")
        return [f"{name}:"] if stop.reason == BREAKPOINT and name in self.features else []

    def _expedited(self, vcpu: int) -> list[str]:
        try:
            layout, values = self.layout, self.registers(vcpu)
        except TargetError:
            return []
        numbers = [layout.by_key[key] for key in EXPEDITED]
        return [f"{number:02x}:{layout.pack(values, number).hex()}" for number in numbers]
