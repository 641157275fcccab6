"""The packets that lldb adds to the protocol (LLDB, docs/resources/lldbgdbremote.md)."""

from __future__ import annotations

import json

from ..x86.walk import Paging, walk
from .arguments import choose_thread, number, parse_thread
from .registers import FPU, GENERAL32, GENERAL64, GENERIC
from .session import EIO, EOPNOTSUPP, RequestError
from .target import EXITED, PAUSED, Stop

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .session import Session

OK = b"OK"
TRIPLES = {64: "x86_64-unknown-unknown", 32: "i386-unknown-unknown", 16: "i386-unknown-unknown"}
# Numbers of registers in DWARF and eh_frame (System V ABI for AMD64, figure 3.36).
DWARF = {
    key: number
    for number, key in enumerate(
        ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip")
    )
}
DEBUG_REGISTERS = 4


def thread_suffix(session: Session, arguments: bytes) -> bytes:
    """QThreadSuffixSupported: requests name their thread."""
    session.thread_suffix = True
    return OK


def list_threads(session: Session, arguments: bytes) -> bytes:
    """QListThreadsInStopReply."""
    session.threads_in_stops = True
    return OK


def error_strings(session: Session, arguments: bytes) -> bytes:
    """QEnableErrorStrings: errors bring words along."""
    session.error_strings = True
    return OK


def host_info(session: Session, arguments: bytes) -> bytes:
    """qHostInfo: the machine."""
    layout = session.layout
    size = 8 if layout.bits == 64 else 4
    triple = TRIPLES[layout.bits].encode().hex()
    return f"triple:{triple};endian:little;ptrsize:{size};hostname:{b'pyvcpu'.hex()};".encode()


def process_info(session: Session, arguments: bytes) -> bytes:
    """qProcessInfo: the machine as a process; lldb wants one."""
    layout = session.layout
    size = 8 if layout.bits == 64 else 4
    return f"pid:1;endian:little;triple:{TRIPLES[layout.bits].encode().hex()};ptrsize:{size};".encode()


def version(session: Session, arguments: bytes) -> bytes:
    """qGDBServerVersion."""
    return b"name:pyvcpu;"


def watchpoints(session: Session, arguments: bytes) -> bytes:
    """qWatchpointSupportInfo: how many there are."""
    return b"num:%d;" % DEBUG_REGISTERS


def register_info(session: Session, arguments: bytes) -> bytes:
    """qRegisterInfo: one register of the description, for an lldb that reads no XML."""
    registers = session.layout.registers
    which = number(arguments)
    if which >= len(registers):
        raise RequestError(EIO, "there is no register of that number")
    register = registers[which]
    fields = {
        "name": register.name,
        "bitsize": 8 * register.size,
        "offset": sum(r.size for r in registers[:which]),
        "encoding": "vector" if register.size > 8 else "uint",
        "format": "vector-uint8" if register.size > 8 else "hex",
        "set": _set_name(register.key),
    }
    if register.key in DWARF and session.layout.bits == 64:
        fields["ehframe"] = fields["dwarf"] = DWARF[register.key]
    if register.key in GENERIC:
        fields["generic"] = GENERIC[register.key]
    return "".join(f"{name}:{value};" for name, value in fields.items()).encode()


def _set_name(key: str) -> str:
    if key in GENERAL64 or key in GENERAL32 or key in GENERIC:
        return "General Purpose Registers"
    if key.startswith(("st", "xmm", "ymm", "zmm", "mxcsr")) or key in FPU:
        return "Floating Point Registers"
    return "System Registers"


def thread_stop(session: Session, arguments: bytes) -> bytes:
    """qThreadStopInfo: why a thread stands still; all but one do because that one does."""
    session.require_stopped()
    vcpu = choose_thread(session, parse_thread(arguments))
    if vcpu == session.stop.vcpu:
        return session.stop_reply(session.stop)
    return session.stop_reply(Stop(PAUSED, vcpu)).replace(b"T02", b"T00", 1).replace(b"reason:signal;", b"", 1)


def threads_info(session: Session, arguments: bytes) -> bytes:
    """jThreadsInfo: all threads at once, in JSON."""
    session.require_stopped()
    stop, threads = session.stop, []
    words = {"breakpoint": "breakpoint", "stepped": "trace", "watchpoint": "watchpoint", "paused": "signal"}
    for info in session.target.vcpus():
        thread: dict[str, object] = {"tid": info.index + 1, "name": info.name}
        if info.index == stop.vcpu and stop.reason != EXITED:
            thread |= {"reason": words.get(stop.reason, "signal"), "signal": stop.signal}
        threads.append(thread)
    return json.dumps(threads, separators=(",", ":")).encode()


def region_info(session: Session, arguments: bytes) -> bytes:
    """qMemoryRegionInfo: the page, or the hole, that an address is in."""
    session.require_stopped()
    address = number(arguments)
    paging = Paging.of(session.raw_registers(session.vcpu))
    found = walk(session.target.read_physical, paging, address)
    start = address & ~(found.size - 1)
    fields = f"start:{start:x};size:{found.size:x};"
    if found.physical is not None:
        fields += f"permissions:r{'w' * found.writable}{'x' * found.executable};"
    return fields.encode()


def refuse_allocation(session: Session, arguments: bytes) -> bytes:
    """_M: memory for the debugger's own code, which a guest has none of."""
    raise RequestError(EOPNOTSUPP, "no memory of the guest can be given away")


COMMANDS: dict[bytes, Callable[[Session, bytes], bytes | None]] = {
    b"QEnableErrorStrings": error_strings,
    b"QListThreadsInStopReply": list_threads,
    b"QThreadSuffixSupported": thread_suffix,
    b"qGDBServerVersion": version,
    b"qHostInfo": host_info,
    b"qMemoryRegionInfo": region_info,
    b"qProcessInfo": process_info,
    b"qRegisterInfo": register_info,
    b"qThreadStopInfo": thread_stop,
    b"qWatchpointSupportInfo": watchpoints,
    b"jThreadsInfo": threads_info,
    b"_M": refuse_allocation,
}
