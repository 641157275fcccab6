"""What the data of a snapshot must look like, and the error that says what they do not."""

from __future__ import annotations

from struct import iter_unpack

from ..devices.device import StateDataError, anything, bits, integer, octets, optional, record, sequence
from ..errors import ConfigError, PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any, Protocol

    Data = dict[str, Any]

    class Saved(Protocol):
        """A snapshot, as it is written to a file (data.Snapshot)."""

        path: str | None

        @property
        def data(self) -> Data: ...
        @property
        def image(self) -> Any: ...  # image.Image, which knows this module
        @property
        def base(self) -> Saved | None: ...
        @property
        def id(self) -> bytes: ...


ID_BYTES = 16
U64 = (1 << 64) - 1
MOST_VCPUS = 4096  # KVM_CAP_MAX_VCPU_ID is that at most, so far
MOST_PIECE = 1 << 20  # bytes of a piece of a vCPU's state; XSAVE areas and nested guests are the largest
MOST_MEMORY = 1 << 52
MOST_INTERRUPTS = 1 << 16
TEXT = 4096
# MSRs that count time: the time-stamp counter; Hyper-V's run time of a vCPU and its reference clock.
TIME_MSRS = frozenset((0x10, 0x4000_0010, 0x4000_0020))
REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip", "rflags"),
    *(f"r{number}" for number in range(8, 16)),
)


class SnapshotError(PyvcpuError, ValueError):
    """A snapshot that cannot be taken, saved, loaded or restored, here or at all."""


def msr_pairs(data: bytes) -> list[tuple[int, int]]:
    """Return the MSRs and their values that the piece `msrs` consists of."""
    if len(data) % 16:
        raise SnapshotError(f"a list of MSRs consists of pairs of 16 bytes, not of {len(data)} bytes")
    return list(iter_unpack("<QQ", data))


# What the data must look like. The state of devices is checked by the devices, pieces of vCPUs by state.py and KVM.


def text(where: str, value: object) -> str:
    """Accept a text that is not too long."""
    if type(value) is not str or len(value) > TEXT:
        raise StateDataError(f"{where} must be a text of at most {TEXT} characters")
    return value


def one_of(*words: str) -> Any:
    """Accept one of these words."""

    def check(where: str, value: object) -> str:
        if type(value) is not str or value not in words:
            raise StateDataError(f"{where} must be one of {', '.join(words)}")
        return value

    return check


def table(check: Any) -> Any:
    """Accept a dict whose keys are texts, each with a value that `check` accepts."""

    def check_all(where: str, value: object) -> Data:
        if type(value) is not dict:
            raise StateDataError(f"{where} must be a dict")
        return {text(where, key): check(f"{where}: {key[:40]}", item) for key, item in value.items()}

    return check_all


NUMBER = integer(0, U64)
START = record(
    {
        "mode": one_of("real", "protected", "long"),
        "entry": NUMBER,
        "stack": NUMBER,
        "stack_base": NUMBER,
        "code_base": optional(NUMBER),
        "gdt": NUMBER,
        "page_table": NUMBER,
        "selectors": optional(sequence(bits(0xFFFF), 2, 2)),
        "registers": table(NUMBER),
    }
)
VCPU = record(
    {
        "state": table(octets(0, MOST_PIECE)),
        "interrupts": sequence(integer(0, 0xFF), 0, MOST_INTERRUPTS),
    }
)
CLOCK = record({"ns": NUMBER, "realtime": NUMBER, "line": octets(ID_BYTES, ID_BYTES)})
DISK = record({"size": NUMBER, "device": NUMBER, "inode": NUMBER, "modified": integer(-U64, U64)})
DATA = {
    "software": text,
    "created": NUMBER,
    "memory": integer(4096, MOST_MEMORY),
    "smp": sequence(integer(1, MOST_VCPUS), 5, 5),
    "cpu": text,
    "irqchip": one_of("none", "kernel", "split"),
    "format": text,
    "starts": sequence(optional(START), 1, MOST_VCPUS),
    "vcpus": sequence(optional(VCPU), 1, MOST_VCPUS),
    "clock": CLOCK,
    "devices": table(anything),
    "disks": table(DISK),
}


def check(data: object) -> Data:
    """Return `data` if it is what a machine's could be; raise SnapshotError, which names the place, for anything else.

    Nothing in it is used before.
    """
    from ..x86.cpu import parse
    from ..x86.topology import PARTS, complete

    try:
        values: Data = record(DATA)("the snapshot", data)
        topology = complete(**dict(zip(PARTS, values["smp"], strict=True)))
        parse(values["cpu"])
    except (StateDataError, ConfigError) as error:
        raise SnapshotError(" ".join(str(error).split())) from None  # its texts may have any characters
    if [getattr(topology, part) for part in PARTS] != values["smp"]:
        raise SnapshotError("the snapshot's processors are not {1} sockets of {2} cores of {3}".format(*values["smp"]))
    maxcpus = values["smp"][4]
    if len(values["vcpus"]) != maxcpus or len(values["starts"]) != maxcpus:
        raise SnapshotError(f"the snapshot must have {maxcpus} vCPUs, as its topology says")
    if values["memory"] % 4096:
        raise SnapshotError("the snapshot's memory must be whole pages")
    for start in values["starts"]:
        unknown = set(start["registers"]) - set(REGISTERS) if start else ()
        if unknown:
            raise SnapshotError(f"the snapshot: there is no register {min(unknown)[:40]!r}")
    return values
