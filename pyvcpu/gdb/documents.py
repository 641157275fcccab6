"""Documents in XML about the machine, read in parts (GDB manual, E.4, qXfer)."""

from __future__ import annotations

from .arguments import pair, require
from .packets import PACKET_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .session import Session

UNKNOWN = b""


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
    """The registers (features/target.xml). A client that begins to read gets what monitor.py offers by then."""
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
    lines = ['<?xml version="1.0"?>', "<threads>"]
    for vcpu in session.target.vcpus():
        head = f'<thread id="{vcpu.index + 1:x}" core="{vcpu.index}" name="{_xml(vcpu.name)}">'
        lines.append(f"{head}{_xml(vcpu.state)}</thread>")
    return "\n".join([*lines, "</threads>", ""]).encode()


def _xml(text: str) -> str:
    for character, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ('"', "quot")):
        text = text.replace(character, f"&{name};")
    return text


DOCUMENTS: dict[tuple[bytes, bytes], Callable[[Session, int], bytes]] = {
    (b"features", b"target.xml"): description,
    (b"memory-map", b""): memory_map,
    (b"threads", b""): threads,
}
