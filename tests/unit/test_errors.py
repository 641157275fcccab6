"""Errors: one family, messages that stand on their own, and a way through pickle (multiprocessing sends them)."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

import pyvcpu
from pyvcpu import ConfigError, GuestMemoryError, HostMemoryError, ImageError, KvmError, PyvcpuError, StateError
from pyvcpu.cli.output import OutputError
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.base import Ioctl
from pyvcpu.kvm.errors import HINTS, explain_open
from pyvcpu.vcpu.registers import RegisterError

BUILT_IN = [
    (ConfigError, ValueError),
    (ImageError, ValueError),
    (StateError, RuntimeError),
    (GuestMemoryError, IndexError),
    (HostMemoryError, MemoryError),
    (RegisterError, AttributeError),
    (KvmError, OSError),
]


@pytest.mark.parametrize(("ours", "built_in"), BUILT_IN)
def test_each_is_a_pyvcpu_error_and_the_built_in_one(ours: type[Exception], built_in: type[Exception]) -> None:
    assert issubclass(ours, (PyvcpuError,))
    assert issubclass(ours, built_in)


@pytest.mark.parametrize("kind", [ConfigError, ImageError, StateError, GuestMemoryError, HostMemoryError, OutputError])
def test_pickle_keeps_the_message(kind: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what must hold, what was given")))
    assert type(copy) is kind
    assert str(copy) == "what must hold, what was given"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            KvmError("KVM_SET_USER_MEMORY_REGION", errno.EEXIST),
            "[Errno 17] KVM_SET_USER_MEMORY_REGION: File exists (the range overlaps another slot)",
        ),
        (
            KvmError("KVM_SET_CPUID2", errno.E2BIG, "vCPU 3"),
            "[Errno 7] vCPU 3: KVM_SET_CPUID2: Argument list too long (more CPUID entries than KVM takes (256))",
        ),
        (KvmError("KVM_RUN", errno.EPERM), "[Errno 1] KVM_RUN: Operation not permitted"),
        (KvmError("KVM_RUN", errno.EPERM, hint="try this"), "[Errno 1] KVM_RUN: Operation not permitted (try this)"),
        (KvmError("KVM_CHECK_EXTENSION", 0, "/dev/kvm", "it lacks X"), "/dev/kvm: KVM_CHECK_EXTENSION: it lacks X"),
        (KvmError("KVM_CREATE_VM", errno.ENOMEM), "another VM"),
        (KvmError("KVM_GET_LAPIC", errno.EIO), "forked child"),
        (KvmError("KVM_GET_LAPIC", errno.ENOTTY), "does not know the request"),
    ],
)
def test_kvm_error(error: KvmError, text: str) -> None:
    assert str(error) == text or (not text.startswith("[") and text in str(error))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is KvmError
    assert str(copy) == str(error)
    for name in ("ioctl", "errno", "where", "hint", "strerror"):
        assert getattr(copy, name) == getattr(error, name)


def test_kvm_error_is_no_interrupted_error() -> None:
    """Whoever catches InterruptedError must look at errno instead."""
    error = KvmError("KVM_RUN", errno.EINTR)
    assert not isinstance(error, InterruptedError)
    assert error.errno == errno.EINTR


def test_hints_are_for_requests_and_errors_that_exist() -> None:
    from pyvcpu.kvm.abi import state

    requests = {v.name for m in (abi, state) for v in vars(m).values() if isinstance(v, Ioctl)}
    assert {request for request, _ in HINTS} <= requests | {""}
    assert {code for _, code in HINTS} <= set(errno.errorcode)
    assert all(hint and not hint.endswith(".") and "\n" not in hint for hint in HINTS.values())


@pytest.mark.parametrize(
    ("path", "code", "hint"),
    [
        ("/dev/kvm", errno.ENOENT, "kvm_intel or kvm_amd"),
        ("/dev/kvn", errno.ENOENT, "the usual one is /dev/kvm"),
        ("/dev/kvm", errno.ENODEV, "modprobe"),
        ("/dev/kvm", errno.ENXIO, "modprobe"),
        ("/tmp", errno.EISDIR, "directory"),
        ("/nowhere/kvm", errno.EACCES, "administrator"),
        ("/dev/kvm", errno.EMFILE, ""),
    ],
)
def test_a_device_that_does_not_open(path: str, code: int, hint: str) -> None:
    error = explain_open(path, OSError(code, os.strerror(code)))
    assert error.errno == code
    assert hint in error.hint
    assert str(error).startswith(f"[Errno {code}] open {path}: {os.strerror(code)}")


def test_a_forbidden_device_names_its_group(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    group = device.group()
    device.chmod(0o600)
    closed = explain_open(str(device), PermissionError(errno.EACCES, "Permission denied"))
    assert f"group {group} with mode 600" in closed.hint
    assert "chmod 660" in closed.hint
    device.chmod(0o660)
    open_to_group = explain_open(str(device), PermissionError(errno.EACCES, "Permission denied"))
    if device.stat().st_gid == 0:  # nobody should be told to join root's group
        assert "usermod -aG root" not in open_to_group.hint
    else:
        assert f"usermod -aG {group} $USER" in open_to_group.hint


def test_public_names_exist_and_nothing_else_is_said_to() -> None:
    for name in pyvcpu.__all__:
        assert getattr(pyvcpu, name).__name__ == name
    assert set(pyvcpu.__all__) <= set(dir(pyvcpu))
    misspelt = "Machin"
    with pytest.raises(AttributeError, match="has no attribute 'Machin'"):
        getattr(pyvcpu, misspelt)
