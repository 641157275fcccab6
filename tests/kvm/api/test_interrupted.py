"""A Ctrl-C at random moments while fds are opened, made and closed: none is left open.

A signal that arrives during a system call has its handler run right behind it, so these are moments that are often met.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DEVICE

ROOT = Path(__file__).resolve().parents[3]

# One alarm for each round, whose handler raises as a Ctrl-C does; SIGALRM because it can be timed.
SCRIPT = """
import gc, os, random, signal, sys, warnings
from pyvcpu.kvm import Kvm

warnings.simplefilter("ignore")
sys.unraisablehook = lambda unraisable: None  # one that comes in a finalizer is swallowed there
signal.signal(signal.SIGALRM, signal.default_int_handler)

def fds():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

def use():
    with Kvm(sys.argv[1]) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0):
        pass

use()
before, met, moments = fds(), 0, random.Random(1)
for _ in range(1000):
    try:
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 6e-4))
        try:
            use()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        met += 1
print(met, fds() - before)
"""


@pytest.mark.timeout(120)
def test_no_fd_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, DEVICE], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    met, lost = map(int, done.stdout.split())
    assert met > 100, "the alarms come while something is under way"
    assert lost == 0
