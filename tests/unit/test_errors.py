"""Errors: one family, messages that stand on their own, and a way through pickle (multiprocessing sends them)."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import pyvcpu
from pyvcpu import ConfigError, GuestMemoryError, HostMemoryError, ImageError, KvmError, PyvcpuError, StateError
from pyvcpu.cli.output import OutputError
from pyvcpu.kvm import Kvm
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.base import Ioctl
from pyvcpu.kvm.errors import HINTS, explain_open
from pyvcpu.vcpu.registers import RegisterError
from tests.fake_kernel import FakeKernel

ROOT = Path(__file__).resolve().parents[2]

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


@pytest.mark.parametrize("request_", ["KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_IRQFD", "mmap", "open /dev/kvm"])
@pytest.mark.parametrize(
    ("code", "limit"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "no memory left"),
    ],
)
def test_what_has_run_out_is_named(request_: str, code: int, limit: str) -> None:
    assert limit in KvmError(request_, code).hint


def test_a_run_that_never_starts_names_the_limit() -> None:
    assert "ulimit -u" in KvmError("KVM_RUN", errno.EAGAIN).hint


OUT_OF_FILES = """
import errno, resource, sys
from pyvcpu.kvm import Kvm, KvmError
from pyvcpu.kvm.abi import basic, irq
from pyvcpu.kvm.errors import explain_open
from tests.fake_kernel import FakeKernel
for name in ("grp", "pyvcpu.kvm.hints", "pyvcpu.kvm.catalogue", "pyvcpu.kvm.abi.capabilities"):
    sys.modules.pop(name, None)
kernel = FakeKernel()
kvm = Kvm("fake", kernel)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sys.path_importer_cache.clear()

def told(act, *arguments):
    try:
        raise act(*arguments)
    except KvmError as error:
        print(error)

def made(request, code):
    kernel.refuse(request.name, code)
    try:
        kvm.ioctl(request)
    except KvmError as error:
        return error

told(KvmError, "KVM_CREATE_VCPU", errno.EMFILE, "vCPU 3")
told(KvmError, "KVM_SET_BOOT_CPU_ID", errno.EBUSY)
told(made, irq.KVM_NMI, errno.EINVAL)
told(made, basic.KVM_CREATE_VM, errno.EMFILE)
told(explain_open, "/dev/kvm", OSError(errno.EMFILE, ""))
told(explain_open, "/dev/null", OSError(errno.EACCES, ""))
kvm.close()
"""


def test_an_error_is_told_though_nothing_can_be_imported() -> None:
    """No file can be opened: then the hints and tables that are imported late are not there."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_FILES], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    files = "this process has as many files open as it may (ulimit -n)"
    assert lines == [
        f"[Errno 24] vCPU 3: KVM_CREATE_VCPU: Too many open files ({files})",
        "[Errno 16] KVM_SET_BOOT_CPU_ID: Device or resource busy",
        "[Errno 22] KVM_NMI: Invalid argument",
        f"[Errno 24] KVM_CREATE_VM: Too many open files ({files})",
        f"[Errno 24] open /dev/kvm: Too many open files ({files})",
    ]
    assert last.startswith("[Errno 13] open /dev/null: Permission denied (")


def test_a_mapping_that_fails_is_a_kvm_error() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm, kvm.create_vm() as vm, vm.create_vcpu(3) as vcpu:
        kernel.refuse("mmap", errno.EMFILE)
        with pytest.raises(KvmError) as error:
            vcpu.map_run(kvm.get_vcpu_mmap_size())
    assert (error.value.ioctl, error.value.errno, error.value.where) == ("mmap", errno.EMFILE, "vCPU 3")
    assert "ulimit -n" in error.value.hint


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
        ("/dev/kvm", errno.EMFILE, "ulimit -n"),
        ("/dev/kvm", errno.ENFILE, "fs.file-max"),
        ("/dev/kvm", errno.ENOMEM, "no memory left"),
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
