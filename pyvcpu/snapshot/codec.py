"""Plain data as bytes and back: None, bool, int, str, bytes, and lists and dicts of these.

A value is a letter and what the letter says, numbers in little-endian order:

    N, T, F     None, True, False
    i           1 byte: how many bytes follow, at most 32; a signed number
    s, b        4 bytes: how many bytes follow; text in UTF-8, bytes
    l           4 bytes: how many values follow
    d           4 bytes: how many pairs follow, each of a text as behind an s, and a value

Each value has one form only: numbers are as short as can be, and a dict keeps its order.
"""

from __future__ import annotations

from ..errors import PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

DEEPEST = 16  # lists and dicts in one another
LONGEST_NUMBER = 32  # bytes


class CodecError(PyvcpuError, ValueError):
    """Bytes that encode() could not have made."""


def encode(value: object) -> bytes:
    """Return `value` as bytes; raise TypeError for what is no plain data, ValueError for a number too large."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def _encode(value: object, parts: list[bytes]) -> None:
    if value is None:
        parts.append(b"N")
    elif value is True:
        parts.append(b"T")
    elif value is False:
        parts.append(b"F")
    elif type(value) is int:
        length = (value if value >= 0 else ~value).bit_length() // 8 + 1
        if length > LONGEST_NUMBER:
            raise ValueError(f"a number must fit into {LONGEST_NUMBER} bytes")
        parts.append(b"i" + bytes((length,)) + value.to_bytes(length, "little", signed=True))
    elif type(value) is str:
        parts += (b"s", _text(value))
    elif type(value) is bytes:
        parts += (b"b", _size(value), value)
    elif type(value) is list:
        parts += (b"l", _size(value))
        for item in value:
            _encode(item, parts)
    elif type(value) is dict:
        parts += (b"d", _size(value))
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"a key must be a text, not {type(key).__name__}")
            parts.append(_text(key))
            _encode(item, parts)
    else:
        raise TypeError(f"{type(value).__name__} is no plain data")


def _size(value: bytes | list[Any] | dict[str, Any]) -> bytes:
    return len(value).to_bytes(4, "little")


def _text(value: str) -> bytes:
    data = value.encode()
    return _size(data) + data


def decode(data: bytes) -> Any:
    """Return what encode() made `data` of; raise CodecError for anything else.

    It takes time and memory in proportion to `data`: a length in there that is more than what follows is refused.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise CodecError(f"{len(data) - reader.at} bytes follow behind the end")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        data = self._data[self.at : self.at + length]
        if len(data) < length:
            raise CodecError(f"it ends in the middle of a value, at byte {len(self._data)}")
        self.at += length
        return data

    def size(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def count(self) -> int:
        """Return how many values follow, each of which takes a byte at least."""
        count = self.size()
        if count > len(self._data) - self.at:
            raise CodecError(f"{count} values cannot follow at byte {self.at}")
        return count

    def text(self) -> str:
        try:
            return self.take(self.size()).decode()
        except UnicodeDecodeError:
            raise CodecError(f"the text before byte {self.at} is no UTF-8") from None

    def value(self, depth: int) -> Any:
        tag = self.take(1)
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag == b"i":
            return self.number()
        if tag == b"s":
            return self.text()
        if tag == b"b":
            return self.take(self.size())
        if tag not in (b"l", b"d"):
            raise CodecError(f"no value begins with {tag!r}, at byte {self.at - 1}")
        if depth == DEEPEST:
            raise CodecError(f"more than {DEEPEST} lists and dicts are in one another")
        return [self.value(depth + 1) for _ in range(self.count())] if tag == b"l" else self.dict(depth + 1)

    def number(self) -> int:
        length = self.take(1)[0]
        if not 0 < length <= LONGEST_NUMBER:
            raise CodecError(f"a number has 1 to {LONGEST_NUMBER} bytes, not {length}")
        return int.from_bytes(self.take(length), "little", signed=True)

    def dict(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(self.count()):
            key = self.text()
            if key in values:
                raise CodecError(f"the key {key[:40]!r} comes twice")
            values[key] = self.value(depth)
        return values


CONSTANTS = {b"N": None, b"T": True, b"F": False}
