"""Server: one thread that listens, and serves one debugger at a time.

It waits for sockets and for the machine alike, and never for the one because of the other: a client that does not read,
or does not write, holds up nobody.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections import deque

from . import endpoint as endpoints
from .commands import execute
from .packets import PACKET_SIZE, Encoder
from .session import ATTACHING, Session

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from types import TracebackType

    from .endpoint import Endpoint
    from .target import Stop, Target

STOP_SECONDS = 10.0  # in which a machine must stand still for a debugger that came
FIRST_BYTES = b"+-$\x03"  # what a debugger begins with; a browser that was lured here begins with a letter


class Server:
    """Listens from its start to close(). `address` is where, with the port that was chosen.

    `notice` gets lines for people, from the server's thread. Raises ConfigError when it cannot listen.
    """

    def __init__(
        self,
        target: Target,
        endpoint: Endpoint | str,
        *,
        anyone: bool = False,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._target = target
        self._notice = notice
        self._encoder = Encoder()
        where = endpoints.parse(endpoint) if isinstance(endpoint, str) else endpoint
        self._listener = endpoints.listen(where, anyone)
        self._listener.setblocking(False)
        if not where.path:
            where = endpoints.Endpoint(*self._listener.getsockname()[:2])
        self.address = where
        self._file = endpoints.identity(where.path)
        self._client: socket.socket | None = None
        self._session: Session | None = None
        self._fresh = True  # the client has not sent anything
        self._deadline = 0.0  # of the client's attach; 0 when there is none
        self._stops: deque[tuple[object, Stop]] = deque()  # with the token of the session that they are for
        self._token: object = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()  # the eventfd may be closed while a vCPU's thread says that it stopped
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="gdb", daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, if there is one, and the thread. Closing again does nothing."""
        self._closing = True
        self._ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # What the machine's threads call.

    def _stopped(self, token: object, stop: Stop) -> None:
        self._stops.append((token, stop))
        self._ring()

    def _ring(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # The server's thread.

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        try:
            while not self._closing:
                self._turn()
        except Exception as error:  # a mistake of ours: no debugger any more, and the machine goes on
            self._notice(f"gdb: the server ends: {type(error).__name__}: {error}")
        finally:
            self._say_last_words()
            self._drop()
            self._listener.close()
            with self._wake_lock:
                os.close(self._wake)
                self._wake = -1
            endpoints.remove(self.address, self._file)

    def _say_last_words(self) -> None:
        """Tell the debugger of the machine's end, if that is why the server ends, as far as it can be told at once."""
        client, session = self._client, self._session
        try:
            while self._stops:
                token, stop = self._stops.popleft()
                if session is not None and token is self._token:
                    session.stopped(stop)
            if client is not None and session is not None and session.out:
                client.send(session.out)
        except Exception:  # it has left, or does not read
            pass

    def _turn(self) -> None:
        ready = dict(self._poll())
        if self._wake in ready:
            os.eventfd_read(self._wake)
        while self._stops:
            token, stop = self._stops.popleft()
            if self._session is not None and token is self._token:
                self._session.stopped(stop)
        events = 0
        if self._client is not None:
            events = ready.get(self._client.fileno(), 0)
            self._serve(events)
        # Who comes is turned away only by a client that is quiet: one that left is seen to have left first.
        if self._listener.fileno() in ready and (self._client is None or not events):
            self._accept()

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        attaching = self._session is not None and self._session.state == ATTACHING
        if attaching != bool(self._deadline):
            self._deadline = time.monotonic() + STOP_SECONDS if attaching else 0.0
        if not attaching:
            poll.register(self._listener, select.POLLIN)
        timeout = None
        if self._client is not None and self._session is not None:
            events = 0 if self._session.is_full or self._session.closing else select.POLLIN
            poll.register(self._client, events | (select.POLLOUT if self._session.out else 0))
            if attaching:
                timeout = max(0.0, self._deadline - time.monotonic()) * 1000
        return poll.poll(timeout)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it gave up; or there are no descriptors left: try again soon, but not at once
            select.select([self._wake], [], [], 0.1)
            return
        if self._client is not None:
            self._notice("gdb: a second debugger was turned away; one is connected")
            client.close()
            return
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._client, self._token = client, object()
        token = self._token
        self._session = Session(
            self._target, execute, lambda stop: self._stopped(token, stop), self._notice, self._encoder
        )
        self._fresh = True

    def _serve(self, events: int) -> None:
        """Send what can be sent, receive what can be received; drop a client that is gone."""
        client, session = self._client, self._session
        assert client is not None
        assert session is not None
        try:
            if events & select.POLLIN:
                data = client.recv(PACKET_SIZE)
                if not data or (self._fresh and data[0] not in FIRST_BYTES):
                    self._drop()
                    return
                self._fresh = False
                session.receive(data)
            elif events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self._drop()
                return
            while session.out:
                sent = client.send(session.out)
                del session.out[:sent]
                session.pump()
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
            return
        if session.closing and not session.out:
            self._drop()
        elif session.state == ATTACHING and 0 < self._deadline <= time.monotonic():
            self._notice(
                f"gdb: the machine did not stand still within {STOP_SECONDS:.0f} s; the debugger is turned away"
            )
            self._drop()

    def _drop(self) -> None:
        """End the connection, and let go of the machine."""
        client, session = self._client, self._session
        self._client = self._session = self._token = None
        if client is not None:
            client.close()
        if session is not None:
            session.lost()
