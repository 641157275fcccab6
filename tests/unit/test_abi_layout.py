"""The ABI tables against the kernel's header: every number, size and offset, through the C compiler.

Where no compiler or header is installed, the committed table (tests/unit/abi_layout.json) stands in for them.
"""

from __future__ import annotations

import ctypes
import functools
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pyvcpu.kvm import abi
from pyvcpu.kvm.abi import layout
from pyvcpu.kvm.abi.base import Ioctl, Struct, Union
from tools import abi_table

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = abi_table.probes()
COMMITTED: abi_table.Probes = json.loads(abi_table.TABLE.read_text(encoding="utf-8"))


@functools.cache
def header() -> tuple[abi_table.Probes, set[str]]:
    """Ask C once: what it says, and what it does not know."""
    return abi_table.header_probes(OURS)


@pytest.fixture
def c(tool: Callable[[str], str]) -> tuple[abi_table.Probes, set[str]]:
    """Give what the installed header says."""
    tool("gcc")
    if not any(Path(path, "linux/kvm.h").exists() for path in ("/usr/include", "/usr/include/x86_64-linux-gnu")):
        pytest.skip("linux/kvm.h is not installed (Debian: linux-libc-dev)")
    return header()


def test_every_probe_agrees_with_the_header(c: tuple[abi_table.Probes, set[str]]) -> None:
    known, _ = c
    assert len(known) > 1000
    differ = {key: (OURS[key], known[key]) for key in known if not abi_table.agrees(key, OURS[key], known[key])}
    assert differ == {}, "ours, the header's"


def test_what_the_header_does_not_know_is_newer_than_it(c: tuple[abi_table.Probes, set[str]]) -> None:
    _, unknown = c
    assert [key for key in sorted(unknown) if not abi_table.is_newer(key)] == []


def test_the_committed_table_is_what_the_header_says(c: tuple[abi_table.Probes, set[str]]) -> None:
    known, _ = c
    differ = {
        key: (COMMITTED[key], known[key])
        for key in COMMITTED.keys() & known.keys()
        if COMMITTED[key] != known[key] and not abi_table.agrees(key, known[key], COMMITTED[key])
    }
    assert differ == {}, "the table's, the header's; if the header is right: tools/abi_table.py --table"
    assert COMMITTED.keys() - known.keys() == set(), "in the table, but not in the header"


def test_every_probe_agrees_with_the_committed_table() -> None:
    lost = COMMITTED.keys() - OURS.keys()
    assert lost == set(), "in the table, but no longer in the binding"
    differ = {
        key: (OURS[key], COMMITTED[key]) for key in COMMITTED if not abi_table.agrees(key, OURS[key], COMMITTED[key])
    }
    assert differ == {}, "ours, the table's"
    unexplained = [key for key in sorted(OURS.keys() - COMMITTED.keys()) if not abi_table.is_newer(key)]
    assert unexplained == [], "not in the table, and not known to be newer: tools/abi_table.py --table"


def test_what_is_newer_has_the_documented_numbers() -> None:
    documented = {name: what[1] for name, what in abi_table.NEWER.items() if isinstance(what, tuple)}
    ours = {
        name: OURS[f"size {name}"][0] if name.startswith("kvm_") else OURS[f"ioctl {name}"][0] for name in documented
    }
    assert ours == documented


def test_every_line_about_newer_names_explains_something() -> None:
    from fnmatch import fnmatchcase

    heads = set()
    for key in OURS:
        parts = key.partition(" ")[2].split(".")
        heads |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    idle = [pattern for pattern in abi_table.NEWER if not any(fnmatchcase(head, pattern) for head in heads)]
    assert idle == []


def test_nothing_of_the_header_is_missing(c: tuple[abi_table.Probes, set[str]]) -> None:
    text = abi_table.header_text()
    assert len(abi_table.header_names(text)) > 700
    assert abi_table.missing(text) == []


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("#define KVM_NEW_THING _IO(0xAE, 0xee)\n", ["KVM_NEW_THING"]),
        ("struct kvm_new_thing {\n\tint a;\n};\n", ["kvm_new_thing"]),
        ("enum sev_cmd_id {\n\tKVM_SEV_INIT = 0,\n\tKVM_SEV_NEW,\n};\n", ["KVM_SEV_NEW"]),
        ("#define KVM_CAP_NEW 999\n#define KVM_CAP_HLT 1\n", ["KVM_CAP_NEW"]),
        ("#define KVM_CAP_S390_NEW 999\nstruct kvm_s390_new { int a; };\n", []),
    ],
)
def test_missing_names_are_found(text: str, lacking: list[str]) -> None:
    assert abi_table.missing(text) == lacking


def test_every_exception_has_its_reason() -> None:
    assert all(reason.strip() for reason in abi_table.LEFT_OUT.values())


def test_the_index_is_up_to_date() -> None:
    assert abi_table.INDEX.read_text(encoding="utf-8") == abi_table.index_source(), "tools/abi_table.py --index"


@pytest.mark.parametrize(
    ("name", "loads"),
    [
        ("KVM_IRQFD", {"irq"}),
        ("Cap", {"caps", "capabilities"}),
        ("kvm_regs", {"basic"}),
        ("KVM_MSI_VALID_DEVID", {"irq"}),
    ],
)
def test_a_name_loads_its_own_submodule_only(name: str, loads: set[str]) -> None:
    code = (
        f"import sys; from pyvcpu.kvm import abi; before = set(sys.modules); abi.{name}; "
        "print(*(n.rpartition('.')[2] for n in set(sys.modules) - before if n.startswith('pyvcpu.kvm.abi.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=abi_table.ROOT)
    assert set(done.stdout.split()) <= loads | {"index"}


def test_a_boot_does_not_load_the_index() -> None:
    code = "import sys, pyvcpu.machine; print('pyvcpu.kvm.abi.index' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=abi_table.ROOT)
    assert done.stdout.strip() == "False"


def test_dir_lists_every_name() -> None:
    listed = set(dir(abi))
    assert {"KVM_RUN", "kvm_regs", "Cap", "Exit", "KVM_SEV_INIT2", "kvm_xen_hvm_attr", "UD_VECTOR"} <= listed
    assert listed >= set(abi_table.module_of())


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    for name in ("KVM_NO_SUCH_THING", "kvm_no_such_thing", "nothing", "__nothing__"):
        with pytest.raises(AttributeError, match=name):
            getattr(abi, name)


def test_the_numbers_of_the_contract() -> None:
    assert abi.KVM_RUN.number == 0xAE80
    assert abi.KVM_RUN.name == "KVM_RUN"
    assert ctypes.sizeof(abi.kvm_regs) == 144
    assert (abi.Cap.IRQCHIP, abi.Exit.HLT) == (0, 5)
    assert abi.KVM_GET_PIT2.number & 0xFF == abi.KVM_GET_VCPU_EVENTS.number & 0xFF  # the low byte is no key


def test_the_name_of_an_ioctl_is_its_own() -> None:
    wrong = [name for name, value in abi_table.names().items() if isinstance(value, Ioctl) and value.name != name]
    assert wrong == []


def test_no_two_ioctls_have_one_number() -> None:
    numbers = [value.number for value in abi_table.names().values() if isinstance(value, Ioctl)]
    assert len(numbers) == len(set(numbers))


def test_structures_are_closed_and_documented() -> None:
    for name, value in abi_table.names().items():
        if isinstance(value, type):
            assert issubclass(value, Struct | Union), name
            assert value.__doc__, name
            with pytest.raises(AttributeError):
                value().no_such_field = 1


def test_enumerations_and_constants_are_the_same_numbers() -> None:
    for enum, prefix in ((abi.InternalError, "KVM_INTERNAL_ERROR_"), (abi.SystemEvent, "KVM_SYSTEM_EVENT_")):
        assert {member.name: int(member) for member in enum} == {
            member.name: getattr(abi, prefix + member.name) for member in enum
        }
    from pyvcpu.kvm.abi import basic

    for name, value in vars(basic).items():
        if name.startswith("KVM_CAP_"):
            assert abi.Cap[name.removeprefix("KVM_CAP_")] == value
        if name.startswith("KVM_EXIT_"):
            assert abi.Exit[name.removeprefix("KVM_EXIT_")] == value


# layout.py says the same as the ctypes structures, for those who read the pages without them.


def offset(kind: Any, *path: str) -> int:
    """Return where the field at the end of `path` is in `kind`."""
    at = 0
    for name in path:
        at += getattr(kind, name).offset
        kind = next((its for field, its, *_ in kind._fields_ if field == name), None) or next(
            dict(its._fields_)[name]
            for field, its, *_ in kind._fields_
            if field in kind._anonymous_ and name in dict(its._fields_)
        )
    return at


@pytest.mark.parametrize(
    ("ours", "path"),
    [
        (layout.REQUEST_INTERRUPT_WINDOW, ("request_interrupt_window",)),
        (layout.IMMEDIATE_EXIT, ("immediate_exit",)),
        (layout.EXIT_REASON, ("exit_reason",)),
        (layout.READY_FOR_INTERRUPT_INJECTION, ("ready_for_interrupt_injection",)),
        (layout.IF_FLAG, ("if_flag",)),
        (layout.FLAGS, ("flags",)),
        (layout.CR8, ("cr8",)),
        (layout.APIC_BASE, ("apic_base",)),
        (layout.EXIT_UNION, ("io",)),
        (layout.MMIO_DATA, ("mmio", "data")),
        (layout.EOI_VECTOR, ("eoi", "vector")),
        (layout.VALID_REGS, ("kvm_valid_regs",)),
        (layout.DIRTY_REGS, ("kvm_dirty_regs",)),
        (layout.SYNC_REGS, ("s", "regs", "regs")),
        (layout.SYNC_SREGS, ("s", "regs", "sregs")),
        (layout.SYNC_EVENTS, ("s", "regs", "events")),
    ],
)
def test_offsets_in_kvm_run(ours: int, path: tuple[str, ...]) -> None:
    assert ours == offset(abi.kvm_run, *path)


def test_every_offset_of_the_layout_is_compared() -> None:
    numbers = {name for name, value in vars(layout).items() if name.isupper() and isinstance(value, int)}
    assert len(numbers) == 16 + len({"PAGE", "PIO_DATA", "RING", "RING_HEAD", "RING_ENTRIES"})
    structs = {name for name, value in vars(layout).items() if isinstance(value, struct.Struct)}
    assert structs == {name for name, *_ in MEMBERS} | {"REASON_AND_IO", "REASON_AND_MMIO", "REASON_KEY_BYTE_RING"}


RUN: dict[str, Any] = dict(abi.kvm_run._fields_)  # type: ignore[arg-type]  # no bit fields there
UNION: dict[str, Any] = dict(RUN["exit"]._fields_)
# (name in layout, structure, how many of its fields)
MEMBERS: list[tuple[str, Any, int]] = [
    ("IO", UNION["io"], 5),
    ("MMIO", UNION["mmio"], 4),
    ("RING_INDICES", abi.kvm_coalesced_mmio_ring, 2),
    ("RING_FIRST", abi.kvm_coalesced_mmio_ring, 1),
    ("RING_ENTRY", abi.kvm_coalesced_mmio, 4),
    ("DIRTY_ENTRY", abi.kvm_dirty_gfn, 3),
]


@pytest.mark.parametrize(("name", "kind", "count"), MEMBERS, ids=[name for name, *_ in MEMBERS])
def test_structs_have_the_fields_of_the_structures(name: str, kind: Any, count: int) -> None:
    """Each field of the structure, filled with bytes of its own, comes out at the same place in the tuple."""
    ours: struct.Struct = getattr(layout, name)
    fields = [field[0] for field in kind._fields_][:count]
    assert len(ours.unpack(bytes(ours.size))) == count
    for place, field in enumerate(fields):
        raw = bytearray(ctypes.sizeof(kind))
        at, size = getattr(kind, field).offset, getattr(kind, field).size
        raw[at : at + size] = bytes(range(1, size + 1))
        values = ours.unpack_from(raw)
        expected = (
            bytes(range(1, size + 1)) if isinstance(values[place], bytes) else int.from_bytes(raw[at:][:size], "little")
        )
        assert values[place] == expected, field
        assert [value for i, value in enumerate(values) if i != place and value not in (0, bytes(8))] == [], field


def test_pages_and_ring() -> None:
    assert layout.PIO_DATA == abi.KVM_PIO_PAGE_OFFSET * layout.PAGE
    assert layout.RING == abi.KVM_COALESCED_MMIO_PAGE_OFFSET * layout.PAGE
    assert ctypes.sizeof(abi.kvm_coalesced_mmio_ring) == layout.RING_HEAD
    assert layout.RING_ENTRY.size == ctypes.sizeof(abi.kvm_coalesced_mmio)
    assert layout.RING_ENTRIES == abi.KVM_COALESCED_MMIO_MAX
    assert layout.DIRTY_ENTRY.size == ctypes.sizeof(abi.kvm_dirty_gfn)
    assert layout.EXIT_UNION + ctypes.sizeof(RUN["exit"]) == layout.VALID_REGS


def test_reads_of_several_things_at_once() -> None:
    page = bytearray(3 * layout.PAGE)
    run = abi.kvm_run.from_buffer(page)
    run.exit_reason = 2
    run.io.direction, run.io.size, run.io.port, run.io.count, run.io.data_offset = 1, 4, 0x3F8, 9, 4096
    page[layout.PIO_DATA] = 0x41
    layout.RING_INDICES.pack_into(page, layout.RING, 7, 8)
    assert layout.REASON_AND_IO.unpack_from(page, layout.EXIT_REASON) == (2, 1, 4, 0x3F8, 9, 4096)
    key = 1 | 4 << 8 | 0x3F8 << 16 | 9 << 32
    assert layout.REASON_KEY_BYTE_RING.unpack_from(page, layout.EXIT_REASON) == (2, key, b"A", 7, 8)
    run.exit_reason = 6
    run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = 0xD000_0000_1234, 8, 1
    run.mmio.data[:] = list(range(8))
    assert layout.REASON_AND_MMIO.unpack_from(page, layout.EXIT_REASON) == (6, 0xD000_0000_1234, bytes(range(8)), 8, 1)
    del run
