"""Arguments of the wrong kind are refused at the door, in words, and change nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest

from pyvcpu import ConfigError, Machine, Outcome
from pyvcpu.exits import Shutdown
from tests.kvm.support import HLT, machine
from tests.threads import DEADLINE

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Machine(memory=cast(Any, [])), TypeError, "a size is a number of bytes or a text such as 64M"),
        (lambda: Machine(memory=True), TypeError, "a size is a number of bytes"),
        (lambda: Machine(memory="9" * 5000), ConfigError, "5000 digits"),
        (lambda: Machine(memory="4096k5"), ConfigError, "such as 64M or 2G"),
        (lambda: Machine(memory="1000"), ConfigError, "QEMU's -m 1000 is 1000M here"),
        (lambda: Machine(kvm=cast(Any, set())), TypeError, "the name of a device or an open Kvm"),
        (lambda: Machine(accel="kvm", kvm=cast(Any, 3)), TypeError, "the name of a device"),
        (lambda: Machine(accel="nothing"), ConfigError, "takes kvm, tcg, dummy"),
        (lambda: Machine(accel="hvf"), ConfigError, "which macOS has"),
        (lambda: Machine(accel="tcg", kvm="/dev/kvm"), ConfigError, "contradict each other"),
    ],
)
def test_a_machine_that_cannot_be(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda made: made.load(1), TypeError, "bytes or the name of a file, not int"),
        (lambda made: made.load(made.vm.fd), TypeError, "bytes or the name of a file"),
        (lambda made: made.load(None), TypeError, "bytes or the name of a file"),
        (lambda made: made.on_port(1.5), TypeError, "whole number, not 1.5"),
        (lambda made: made.on_port("80"), TypeError, "whole number, not '80'"),
        (lambda made: made.on_port(80, write=3), TypeError, "must be callable, not 3"),
        (lambda made: made.on_mmio(0xD0000000, "4"), TypeError, "whole number, not '4'"),
        (lambda made: made.on_exit(5, None), TypeError, "must be callable"),
        (lambda made: made.run(float("nan")), ValueError, "not nan"),
        (lambda made: made.run("5"), TypeError, "a number of seconds or None, not '5'"),
        (lambda made: made.pause([]), TypeError, "a number of seconds"),
        (lambda made: made.unplug("0"), TypeError, "named by its index"),
        (lambda made: made.plug(9), ConfigError, "room for vCPUs 0 to 0"),
        (lambda made: made.set_line(99, True), ConfigError, "from 0 to 23, not 99"),
    ],
)
def test_a_call_that_cannot_be_leaves_the_machine_as_it_was(
    call: Callable[[Any], object], error: type[Exception], words: str
) -> None:
    with machine(HLT) as made:
        regions = made.ports.regions, made.mmio.regions
        with pytest.raises(error, match=words):
            call(made)
        assert (made.ports.regions, made.mmio.regions) == regions
        assert made.run(DEADLINE).reason == "halted"


def test_an_outcome_is_copied_without_its_vcpu() -> None:
    with machine(HLT) as made:
        outcome = made.run(DEADLINE)
    assert outcome.vcpu is not None
    for twin in (pickle.loads(pickle.dumps(outcome)), copy.copy(outcome), copy.deepcopy(outcome)):
        assert (twin.reason, twin.status, twin.vcpu, twin.report) == ("halted", 0, None, "")
    crash = pickle.loads(pickle.dumps(Outcome("crashed", exit=Shutdown(), report="why")))
    assert (crash.status, crash.exit, crash.report) == (6, Shutdown(), "why")
