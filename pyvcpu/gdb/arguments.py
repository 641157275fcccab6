"""What stands in packets: numbers, hex bytes, threads. All raise RequestError for what is not well formed."""

from __future__ import annotations

from .packets import HEX_DIGITS
from .session import EINVAL, ESRCH, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .session import Session

ALL, ANY = -1, 0  # threads; others are numbered from 1, one more than the vCPU's index
MAX_DIGITS = 16
SUFFIX = b";thread:"


def require(condition: bool, words: str) -> None:
    """Raise RequestError with `words` unless `condition`."""
    if not condition:
        raise RequestError(EINVAL, words)


def number(text: bytes) -> int:
    """Read a number in hex, of at most 64 bits."""
    require(0 < len(text) <= MAX_DIGITS and all(digit in HEX_DIGITS for digit in text), "a number in hex is missing")
    return int(text, 16)


def pair(text: bytes) -> tuple[int, int]:
    """Read two numbers with a comma between them."""
    first, _, second = text.partition(b",")
    return number(first), number(second)


def hex_bytes(text: bytes) -> bytes:
    """Read bytes in hex."""
    require(len(text) % 2 == 0 and all(digit in HEX_DIGITS for digit in text), "bytes in hex have two digits each")
    return bytes.fromhex(text.decode())


def parse_thread(text: bytes) -> int:
    """Read a thread: ALL, ANY or a number from 1. A process before it (pPID.) is always the machine."""
    if text[:1] == b"p":
        _, dot, thread = text.partition(b".")
        text = thread if dot else b"-1"
    return ALL if text == b"-1" else number(text)


def choose_thread(session: Session, thread: int) -> int:
    """Return the index of the vCPU that `thread` is; for ANY and ALL of the one that stopped last."""
    indexes = [vcpu.index for vcpu in session.target.vcpus()]
    if thread in (ALL, ANY):
        if session.stop.vcpu in indexes or not indexes:
            return session.stop.vcpu
        return indexes[0]
    if thread - 1 not in indexes:
        raise RequestError(ESRCH, f"there is no vCPU {thread - 1}")
    return thread - 1


def thread_of(session: Session, arguments: bytes) -> tuple[bytes, int]:
    """Take the thread that lldb puts behind a request off it; return the rest and the vCPU that is meant."""
    if session.thread_suffix and SUFFIX in arguments:
        rest, _, thread = arguments.partition(SUFFIX)
        return rest, choose_thread(session, parse_thread(thread.rstrip(b";")))
    return arguments.rstrip(b";") if session.thread_suffix else arguments, session.vcpu
