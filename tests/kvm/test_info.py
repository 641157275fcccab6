"""`pyvcpu info`: what it says is what the kernel says when it is asked another way, and every refusal has its line."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvcpu.cli import NO_KVM, USAGE, info, main
from pyvcpu.kvm import Kvm, KvmError
from pyvcpu.kvm.abi.caps import Cap
from tests.kvm.support import DEVICE, pyvcpu

KVM_CHECK_EXTENSION, KVM_GET_VCPU_MMAP_SIZE = 0xAE03, 0xAE04  # as bare numbers: not from the code under test
NR_VCPUS, NR_MEMSLOTS, IMMEDIATE_EXIT, MAX_VCPUS, MAX_VCPU_ID = 9, 10, 136, 66, 128


@pytest.fixture(scope="module")
def facts() -> Any:
    done = pyvcpu("info", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    return json.loads(done.stdout)


@pytest.fixture
def kvm() -> Iterator[int]:
    fd = os.open(DEVICE, os.O_RDWR)
    yield fd
    os.close(fd)


def test_keys(facts: Any) -> None:
    assert list(facts) == [
        "schema",
        "usable",
        "kvm",
        "modules",
        "host",
        "limits",
        "tsc_khz",
        "debug",
        "sync_regs",
        "capabilities",
        "accelerators",
    ]
    assert (facts["schema"], facts["usable"]) == (1, True)
    documented = info.EPILOG.split()
    for name, value in facts.items():
        assert name in documented
        if isinstance(value, dict) and name not in ("capabilities", "accelerators"):
            assert all(any(key in word for word in documented) for key in value), name


def test_limits(facts: Any, kvm: int) -> None:
    assert facts["limits"] == {
        "vcpus_recommended": fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, NR_VCPUS),
        "vcpus_max": fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, MAX_VCPUS),
        "vcpu_ids": fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, MAX_VCPU_ID),
        "memory_slots": fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, NR_MEMSLOTS),
        "vcpu_mmap_size": fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
    }


def test_every_capability_is_listed(facts: Any, kvm: int) -> None:
    assert facts["capabilities"] == {cap.name: fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, cap.value) for cap in Cap}


def test_the_rest(facts: Any) -> None:
    assert facts["kvm"]["path"] == DEVICE
    assert facts["kvm"]["api_version"] == 12
    assert facts["kvm"]["owner"] == pwd.getpwuid(os.stat(DEVICE).st_uid).pw_name
    assert facts["kvm"]["mode"].startswith("crw")
    assert [module["name"] for module in facts["modules"]] == sorted(
        path.name for path in Path("/sys/module").glob("kvm_*")
    )
    assert facts["host"]["kernel"] == os.uname().release
    assert f"model name\t: {facts['host']['cpu_model']}\n" in Path("/proc/cpuinfo").read_text()
    assert 10_000 < facts["tsc_khz"] < 100_000_000
    assert facts["sync_regs"] == ["regs", "sregs", "events"]
    assert facts["debug"].keys() == {"step", "execute", "watch", "software", "user_step", "user_execute"}
    assert facts["debug"]["step"]


def test_lines_for_people(facts: Any) -> None:
    done = pyvcpu("info")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert max(map(len, text.splitlines())) <= 100
    assert f"{facts['limits']['vcpus_max']} at most" in text
    assert f"TSC        {facts['tsc_khz']} kHz\n" in text
    present, _, absent = text.partition(" capabilities:\n")[2].partition(" absent:\n")
    absent = absent.partition("accelerators (")[0]
    named = {word.partition("=")[0]: word.partition("=")[2] for word in present.split()[:-1]}
    capabilities = {name: value for name, value in facts["capabilities"].items() if value}
    assert {name: int(value or "1", 0) for name, value in named.items()} == capabilities
    assert set(absent.split()) == set(facts["capabilities"]) - set(capabilities)


# Where KVM cannot be used: one line, a hint, status 4.


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/nonexistent", "the usual one is /dev/kvm"),
        ("/", "this is a directory"),
        ("/dev/null", "not a KVM device"),
    ],
)
def test_refused(path: str, hint: str) -> None:
    done = pyvcpu("info", "--kvm", path)
    assert done.returncode == NO_KVM
    assert done.stdout.startswith(b"accelerators (--accel)\n")  # what can be used all the same
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("pyvcpu: ")
    assert hint in line

    done = pyvcpu("info", "--json", "--kvm", path)
    assert (done.returncode, done.stderr) == (NO_KVM, b"")
    said = json.loads(done.stdout)
    assert list(said) == ["schema", "usable", "error", "hint", "accelerators"]
    assert said["usable"] is False
    assert said["error"]
    assert hint in said["hint"]


def test_environment_names_the_device() -> None:
    done = pyvcpu("info", env={**os.environ, "PYVCPU_KVM": "/nonexistent"}, cwd=Path(__file__).parents[2])
    assert done.returncode == NO_KVM
    assert b"/nonexistent" in done.stderr


def test_a_kvm_that_is_too_old(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check = Kvm.check_extension
    monkeypatch.setattr(Kvm, "check_extension", lambda kvm, cap: cap != IMMEDIATE_EXIT and check(kvm, cap))
    assert main(["info", "--kvm", DEVICE]) == NO_KVM
    said = capsys.readouterr()
    assert said.out.startswith("accelerators (--accel)\n")
    assert "lacks KVM_CAP_IMMEDIATE_EXIT, which came with Linux 4.13" in said.err


@pytest.mark.parametrize("arguments", [["info", "--jsn"], ["info", "extra"], ["info", "--kvm"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        done = pyvcpu("info", stdout=full)
    assert done.returncode == USAGE
    assert done.stderr == b"pyvcpu: standard output: No space left on device\n"


# Hosts that tell less, or something else.


@pytest.mark.parametrize(("told", "nested"), [("Y\n", True), ("1\n", True), ("N\n", False), ("0\n", False)])
def test_nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, nested: bool) -> None:
    (tmp_path / "kvm_amd" / "parameters").mkdir(parents=True)
    (tmp_path / "kvm_amd" / "parameters" / "nested").write_text(told)
    (tmp_path / "kvm_other").mkdir()
    (tmp_path / "kvm").mkdir()
    (tmp_path / "irqbypass").mkdir()
    monkeypatch.setattr(info, "MODULES", str(tmp_path))
    assert info.modules() == [{"name": "kvm_amd", "nested": nested}, {"name": "kvm_other", "nested": None}]
    assert info.described(info.modules()[0]) == f"kvm_amd ({'nested' if nested else 'not nested'})"


def test_a_host_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc, no /sys, no names of users, a counter whose rate is not known, no shared registers."""
    for place in ("MODULES", "CPUINFO"):
        monkeypatch.setattr(info, place, "/nonexistent")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr("grp.getgrgid", lambda gid: {}[gid])
    monkeypatch.setattr("pyvcpu.kvm.VcpuFd.get_tsc_khz", refuse)
    facts = info.survey(DEVICE)
    status = os.stat(DEVICE)
    assert facts["kvm"]["owner"] == str(status.st_uid)
    assert facts["kvm"]["group"] == str(status.st_gid)
    assert facts["modules"] == []
    assert facts["host"]["cpu_model"] is None
    assert facts["tsc_khz"] is None
    text = "\n".join(info.lines({**facts, "sync_regs": []}))
    for line in (
        "module     none to be seen in /nonexistent",
        "processor  unknown (unknown vendor)",
        "TSC        rate not told",
        "SYNC_REGS  none",
    ):
        assert line in text


def refuse(vcpu: object) -> int:
    """Refuse as a host does whose counter is not stable."""
    raise KvmError("KVM_GET_TSC_KHZ", 5)


@pytest.mark.parametrize(("value", "text"), [(2, "2"), (9, "9"), (10, "0xa"), (0x7FFC, "0x7ffc")])
def test_shown(value: int, text: str) -> None:
    assert info.shown(value) == text
