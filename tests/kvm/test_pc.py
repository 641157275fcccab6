"""The ports of a PC by which guests end: power-off, reset, panic; and fw_cfg as a guest reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvcpu import Machine
from tests.kvm.support import DEVICE, HLT, boot
from tests.threads import DEADLINE


def write(port: int, value: int, size: int) -> bytes:
    """Return real-mode code that writes `value` to `port`."""
    load = b"\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<I", value)
    return load + {1: b"\xee", 2: b"\xef", 4: b"\x66\xef"}[size]


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
@pytest.mark.parametrize(
    ("port", "value", "size", "reason", "status"),
    [
        (0x604, 0x2000, 2, "power-off", 0),
        (0x604, 0x0001, 2, "halted", 0),
        (0x604, 0x34, 1, "power-off", 0),
        (0xCF9, 0x06, 1, "reset", 0),
        (0x92, 0x03, 1, "reset", 0),
        (0x64, 0xFE, 1, "reset", 0),
        (0x505, 0x01, 1, "panicked", 6),
        (0x505, 0x02, 1, "halted", 0),
        (0xCF8, 0x8000_0000, 4, "halted", 0),
    ],
)
def test_how_it_ends(irqchip: str, port: int, value: int, size: int, reason: str, status: int) -> None:
    with Machine("1M", kvm=DEVICE, irqchip=irqchip, output=bytes) as machine:
        machine.load(write(port, value, size) + b"\xe6\x50" + HLT)  # a HLT with a local APIC is KVM's
        machine.on_port(0x50, write=lambda vcpu, data: machine.stop("halted"))
        outcome = machine.run(timeout=DEADLINE)
    assert (outcome.reason, outcome.status) == (reason, status)
    assert bool(outcome.report) == (reason == "panicked")


# mov $0x510,%dx; mov $0x21,%ax; out %ax,%dx; inc %dx; mov $5,%cx; 1: in %dx,%al; out %al,$0xe9; loop 1b; out %al,$0xf4
FIRST_FILE = bytes.fromhex("ba1005 b82100 ef 42 b90500 ec e6e9 e2fb e6f4")


def test_a_file_of_fw_cfg(tmp_path: Path) -> None:
    image, file = tmp_path / "image", tmp_path / "file"
    image.write_bytes(FIRST_FILE)
    file.write_bytes(b"hello")
    for text in (f"name=opt/test,file={file}", "name=opt/test,string=hello"):
        done = boot(image, "--irqchip", "kernel", "--fw-cfg", text)
        assert (done.stdout, done.stderr, done.returncode) == (b"hello", b"", (ord("o") << 1 | 1) & 0xFF)
    done = boot(image, "--fw-cfg", "name=opt/test")
    assert (done.returncode, done.stderr) == (
        2,
        b"pyvcpu: --fw-cfg takes name=NAME,file=F or name=NAME,string=S, not 'name=opt/test'\n",
    )


def test_memory_has_an_address_in_this_process() -> None:
    import ctypes

    with Machine("1M", kvm=DEVICE) as machine:
        machine.memory.write(0x1234, b"here")
        assert ctypes.string_at(machine.memory.host_address(0x1234, 4), 4) == b"here"
        with pytest.raises(IndexError, match="not all guest RAM"):
            machine.memory.host_address(0xFFFFF, 2)


def test_several_ports_with_one_handler() -> None:
    seen: list[tuple[int, bytes]] = []
    with Machine("1M", kvm=DEVICE) as machine:
        machine.on_port(
            0x300, 4, read=lambda vcpu, offset, size: offset + 5, write=lambda v, o, data: seen.append((o, data))
        )
        machine.load(bytes.fromhex("ba0203 ec 42 ef f4"))  # mov $0x302,%dx; in %dx,%al; inc %dx; out %ax,%dx; hlt
        machine.run(timeout=DEADLINE)
    assert seen == [(3, b"\x07\x00")]
