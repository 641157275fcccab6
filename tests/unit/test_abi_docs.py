"""The catalogue of the API against the methods, the ABI, the record of the hosts, and the page made of them."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Set
from typing import Any

import pytest

import pyvcpu.kvm
from pyvcpu.kvm import abi
from pyvcpu.kvm.abi.base import Ioctl
from pyvcpu.kvm.abi.caps import Cap
from pyvcpu.kvm.catalogue import Entry, entries
from pyvcpu.kvm.errors import HINTS, KvmError
from pyvcpu.kvm.hints import RARE_HINTS
from tools import abi_table, gen_kvm_api

ENTRIES = entries()

# What no host of these tests can serve, and what each answers instead.
UNSERVED: dict[str, Set[str]] = {
    "KVM_MEMORY_ENCRYPT_OP": {"ENOTTY", "EINVAL"},
    "KVM_MEMORY_ENCRYPT_REG_REGION": {"ENOTTY"},
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": {"ENOTTY"},
    "KVM_SET_MEMORY_ATTRIBUTES": {"ENOTTY", "EINVAL"},
    "KVM_PRE_FAULT_MEMORY": {"ENOTSUP", "EINVAL"},
    "KVM_GET_DEVICE_ATTR": {"EPERM", "ENXIO"},
    "KVM_SET_DEVICE_ATTR": {"EBADF", "ENXIO"},
    **dict.fromkeys(
        (
            "KVM_XEN_HVM_CONFIG",
            "KVM_XEN_HVM_GET_ATTR",
            "KVM_XEN_HVM_SET_ATTR",
            "KVM_XEN_HVM_EVTCHN_SEND",
            "KVM_XEN_VCPU_GET_ATTR",
            "KVM_XEN_VCPU_SET_ATTR",
        ),
        frozenset({"ENOTTY", "EINVAL"}),
    ),
}


def ids(entry: Entry) -> str:
    return f"{entry.kind}.{entry.method}"


def method_of(entry: Entry) -> Any:
    return getattr(getattr(pyvcpu.kvm, entry.kind), entry.method)


def test_the_size_of_the_api() -> None:
    counts = {kind: sum(entry.kind == kind for entry in ENTRIES) for kind in gen_kvm_api.KINDS}
    assert counts == {"Kvm": 13, "VmFd": 49, "VcpuFd": 55, "DeviceFd": 3}


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_the_method_says_what_it_is(entry: Entry) -> None:
    method = method_of(entry)
    assert entry.request in method.__doc__
    if entry.capability:
        assert f"KVM_CAP_{entry.capability}" in method.__doc__
        assert entry.capability in Cap.__members__
    request = getattr(abi, entry.request)
    assert isinstance(request, Ioctl)
    assert inspect.getsource(method)
    assert next(iter(inspect.signature(method).parameters)) in ("self", "kvm", "vm", "vcpu", "fd")


def test_every_request_of_the_abi_has_a_method() -> None:
    requests = {name for name, value in abi_table.names().items() if isinstance(value, Ioctl)}
    assert requests == {entry.request for entry in ENTRIES}


def test_nothing_is_listed_twice() -> None:
    assert len({(entry.kind, entry.request) for entry in ENTRIES}) == len(ENTRIES)
    assert len({(entry.kind, entry.method) for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_every_request_was_tried_on_a_real_kvm(entry: Entry) -> None:
    """It worked on one of the hosts, or is known to need what none of them has."""
    key = f"{entry.kind} {entry.request}"
    seen = {answers[key] for answers in gen_kvm_api.answers().values() if key in answers}
    assert seen, "tools/gen_kvm_api.py --record HOST"
    assert "works" in seen or seen <= UNSERVED.get(entry.request, set())


def test_nothing_is_called_unserved_that_some_host_serves() -> None:
    for request in UNSERVED:
        answers = [
            {host.get(f"{entry.kind} {request}") for host in gen_kvm_api.answers().values()}
            for entry in ENTRIES
            if entry.request == request
        ]
        assert any("works" not in seen for seen in answers), request


def test_the_page_is_up_to_date() -> None:
    assert gen_kvm_api.PAGE.read_text(encoding="utf-8") == gen_kvm_api.page(), "tools/gen_kvm_api.py"


def test_hints_are_for_requests_and_errors_that_exist() -> None:
    requests = {entry.request for entry in ENTRIES}
    assert {request for request, _ in RARE_HINTS} <= requests
    assert {code for _, code in RARE_HINTS} <= set(errno.errorcode)
    assert not RARE_HINTS.keys() & HINTS.keys()
    assert all(hint and not hint.endswith(".") and "\n" not in hint for hint in RARE_HINTS.values())


def test_a_rare_hint_is_told() -> None:
    assert "boot CPU" in str(KvmError("KVM_SET_BOOT_CPU_ID", errno.EBUSY))


def test_names_that_come_later() -> None:
    assert pyvcpu.kvm.MsiRoute(1, 2, 3).gsi == 1
    assert {"MsrError", "IrqchipRoute", "StatsFd", "Kvm"} <= set(dir(pyvcpu.kvm))
    misspelt = "MsiRoot"
    with pytest.raises(AttributeError, match="MsiRoot"):
        getattr(pyvcpu.kvm, misspelt)
