"""Requests for registers and memory (GDB manual, E.2)."""

from __future__ import annotations

from .arguments import hex_bytes, number, pair, require, thread_of
from .packets import PACKET_SIZE
from .registers import changes
from .session import EFAULT, EIO, RequestError
from .target import TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .session import Session

OK = b"OK"


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
    return change(session, vcpu, changed)


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
    return change(session, vcpu, {register.key: int.from_bytes(data, "little")})


def _register(session: Session, text: bytes) -> int:
    which = number(text)
    require(which < len(session.layout.registers), "there is no register of that number")
    return which


def change(session: Session, vcpu: int, changed: dict[str, int]) -> bytes:
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
