"""Every public method with wild arguments, on a real KVM: an error of ours or an answer, never a crash.

The process that makes the calls is a child: were it to be killed, the test would say so.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from pyvcpu.kvm import DeviceFd, Kvm, KvmError, VcpuFd, VmFd, abi
from pyvcpu.kvm.catalogue import entries

from .conftest import DEVICE

EXAMPLES = 4 if os.environ.get("PYVCPU_HOST") else 40  # an emulated host is slow
# Not called: what ends the test (close), what waits for a guest (run), what hands out raw access (ioctl).
LEFT_OUT = {"close", "run", "ioctl"}
METHODS = sorted(
    {(e.kind, e.method) for e in entries() if e.method not in LEFT_OUT}
    | {
        ("VcpuFd", "map_run"),
        ("VcpuFd", "map_dirty_ring"),
        ("VcpuFd", "coalesced_ring"),
    }
)

NUMBERS = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 255, 256, 4095, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32]),
    st.sampled_from([1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 31), -(1 << 63), 1 << 200]),
    st.integers(-(1 << 70), 1 << 70),
)
STRUCTURES = st.sampled_from(
    ["kvm_regs", "kvm_sregs", "kvm_irqchip", "kvm_pit_state2", "kvm_vcpu_events", "kvm_xen_hvm_attr", "kvm_sev_cmd"]
).map(lambda name: getattr(abi, name)())
THINGS = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text("a7\0é", max_size=5),
    st.binary(max_size=5000),
    STRUCTURES,
    st.just(object()),
)
WILD = st.one_of(
    NUMBERS, NUMBERS, THINGS, st.lists(NUMBERS, max_size=3), st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3)
)


def calls(target: Any, method: str) -> None:
    """Call `method` many times with what hypothesis thinks of."""
    function = getattr(target, method)
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: WILD for p in parameters if p.kind is p.KEYWORD_ONLY}
    places = [WILD for p in parameters if p.kind is not p.KEYWORD_ONLY]

    @hypothesis.settings(max_examples=EXAMPLES, database=None, deadline=None, derandomize=True)
    @hypothesis.given(st.tuples(*places), st.fixed_dictionaries(keywords))
    def once(positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        try:
            result = function(*positional, **named)
        except (ValueError, TypeError, KvmError):
            return
        if hasattr(result, "close"):
            result.close()

    once()


def try_all() -> None:
    """Try every method, on a VM of its own; say which one is next, for whoever finds this process dead."""
    for kind, method in METHODS:
        print(f"{kind}.{method}", flush=True)
        with (
            Kvm(DEVICE) as kvm,
            kvm.create_vm() as vm,
            vm.create_vcpu(0x7F) as vcpu,
            DeviceFd(vm.kernel, os.open(os.devnull, os.O_RDWR), "no device", vm) as device,
        ):
            targets: dict[str, Any] = {"Kvm": kvm, "VmFd": vm, "VcpuFd": vcpu, "DeviceFd": device}
            calls(targets[kind], method)
    print("done", flush=True)


@pytest.mark.timeout(240)
def test_wild_arguments() -> None:
    code = "from tests.kvm.api.test_wild import try_all; try_all()"
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True)
    last = done.stdout.split()[-1:]
    assert done.returncode == 0, f"{last}: {done.returncode}\n{done.stderr[-3000:]}"
    assert last == ["done"]
    assert len(done.stdout.split()) == len(METHODS) + 1 > 110


def test_every_class_is_there() -> None:
    assert {kind for kind, _ in METHODS} == {"Kvm", "VmFd", "VcpuFd", "DeviceFd"}
    for kind, method in METHODS:
        cls: Any = {"Kvm": Kvm, "VmFd": VmFd, "VcpuFd": VcpuFd, "DeviceFd": DeviceFd}[kind]
        assert callable(getattr(cls, method))
