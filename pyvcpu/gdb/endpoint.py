"""Where a debugger connects: `HOST:PORT` or `unix:PATH`, read, opened and removed."""

from __future__ import annotations

import os
import socket
import stat

from ..errors import ConfigError

DEFAULT_HOST, DEFAULT_PORT = "localhost", 1234  # -s; the port is QEMU's
FORMS = "--gdb takes HOST:PORT or unix:PATH"
UNIX = "unix:"
BACKLOG = 64


class Endpoint:
    """An address to listen at: a `path`, or a `host` and `port` (0: any free one)."""

    __slots__ = ("host", "path", "port")

    def __init__(self, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, path: str = "") -> None:
        self.host = host
        self.port = port
        self.path = path

    def __str__(self) -> str:
        if self.path:
            return UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Endpoint:
    """Read `HOST:PORT`, `:PORT`, `[HOST]:PORT`, each perhaps behind `tcp:`, or `unix:PATH`; raise ConfigError."""
    if text.startswith(UNIX):
        path = text[len(UNIX) :].partition(",")[0]  # QEMU's ,server=on,wait=off may follow: it is always so
        if not path or "\0" in path:
            raise ConfigError(f"{FORMS}, not {text!r}: a path is missing")
        return Endpoint(path=path)
    rest = text.removeprefix("tcp:").partition(",")[0]
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 0xFFFF:
        raise ConfigError(f"{FORMS}, not {text!r}: a port is a number up to 65535")
    return Endpoint(host or DEFAULT_HOST, int(port))


def listen(endpoint: Endpoint, anyone: bool = False) -> socket.socket:
    """Open a listening socket; raise ConfigError when that cannot be.

    A path is for its owner alone. A TCP port must be one that only this host can reach, unless `anyone`: whoever
    connects can read and change all of the machine.
    """
    try:
        return _listen_unix(endpoint.path) if endpoint.path else _listen_tcp(endpoint, anyone)
    except OSError as error:
        raise ConfigError(f"cannot listen for a debugger at {endpoint}: {error.strerror or error}") from None


def _listen_tcp(endpoint: Endpoint, anyone: bool) -> socket.socket:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = sorted(found, key=lambda each: each[0] != socket.AF_INET)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not anyone and not _is_loopback(str(address[0])):
            raise ConfigError(
                f"only this host may debug a machine: listen at localhost:{endpoint.port}, not {endpoint},"
                f" and come from elsewhere through ssh -L {endpoint.port}:localhost:{endpoint.port}"
            )
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # what bind() gives the file
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens at any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # bind() will say that the name is taken
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is somebody, too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


def identity(path: str) -> tuple[int, int]:
    """Return device and inode of a path, to know later whether it is still the same file; (0, 0) when it is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def remove(endpoint: Endpoint, file: tuple[int, int]) -> None:
    """Remove the path of an endpoint, if it is still `file`."""
    if endpoint.path and identity(endpoint.path) == file:
        try:  # noqa: SIM105 - contextlib is slow to import
            os.unlink(endpoint.path)
        except OSError:
            pass  # somebody else has just done so
