"""Measurements within the library: kicks, pauses, creation, registers. Each function returns figures by name."""

from __future__ import annotations

import statistics
import sys
import time
from json import dumps

from pyvcpu import Machine
from pyvcpu.vcpu import Vcpu

from .guests import MARK, MARKS, PIO_LOOP, PORT, SPIN

KICKS = 10_000
PLUGS = 500
REGISTER_READS = 20_000
PAUSED = (4, 64, 254)
CREATED = (1, 64, 1024)


def silent(memory: str, smp: int, code: bytes) -> Machine:
    machine = Machine(memory, smp, output=lambda data: None)
    machine.load(code, format="flat", mode="long" if smp > 64 else "real")
    return machine


def kicks() -> dict[str, float]:
    """Return, in us, how long it takes from a post to its run on the vCPU's thread, out of a spinning guest."""
    latencies = []
    with silent("1M", 1, SPIN) as machine:
        machine.start()
        machine.resume()
        vcpu = machine.vcpus[0]
        for _ in range(KICKS):
            start = time.perf_counter_ns()
            latencies.append(vcpu.run_on_cpu(lambda vcpu: time.perf_counter_ns(), 10) - start)
    latencies.sort()
    return {
        "kick median, us": statistics.median(latencies) / 1000,
        "kick p99, us": latencies[KICKS * 99 // 100] / 1000,
        "kick worst, us": latencies[-1] / 1000,
        "kicks lost": KICKS - len(latencies),
    }


def pauses() -> dict[str, float]:
    """Return, in ms, how long pause() and resume() take for many running vCPUs."""
    figures = {}
    for smp in PAUSED:
        with Machine("64M", smp, output=lambda data: None) as machine:
            machine.load(MARK, format="flat", mode="long")
            machine.start()
            marks = machine.memory.view(MARKS, smp)
            pausing, resuming = [], []
            for _ in range(11):
                marks[:] = bytes(smp)
                start = time.perf_counter()
                machine.resume()
                resumed = time.perf_counter()
                while not all(marks):  # until all of them run in the guest
                    time.sleep(0.01)
                stop = time.perf_counter()
                machine.pause()
                pausing.append(time.perf_counter() - stop)
                resuming.append(resumed - start)
            figures[f"pause of {smp}, ms"] = statistics.median(pausing) * 1000
            figures[f"resume of {smp}, ms"] = statistics.median(resuming) * 1000
    return figures


def creation() -> dict[str, float]:
    """Return, in ms, how long start() takes: realize, threads, KVM_CREATE_VCPU and all that follows."""
    figures = {}
    for smp in CREATED:
        with silent("256M", smp, SPIN) as machine:
            start = time.perf_counter()
            machine.start()
            figures[f"creation of {smp}, ms"] = (time.perf_counter() - start) * 1000
    return figures


def plugs() -> dict[str, float]:
    """Return, in ms, how long unplug() and plug() take for one vCPU of four that run; the first plug has more to do."""
    unplugging, plugging = [], []
    with silent("1M", 4, SPIN) as machine:
        machine.start()
        machine.resume()
        for _ in range(PLUGS + 1):
            start = time.perf_counter()
            machine.unplug(2)
            unplugged = time.perf_counter()
            machine.plug(2)
            unplugging.append(unplugged - start)
            plugging.append(time.perf_counter() - unplugged)
    figures = {"first plug, ms": plugging.pop(0) * 1000}
    for name, took in (("unplug", sorted(unplugging[1:])), ("plug", sorted(plugging))):
        figures[f"{name} median, ms"] = statistics.median(took) * 1000
        figures[f"{name} p99, ms"] = took[PLUGS * 99 // 100] * 1000
    return figures


def registers() -> dict[str, float]:
    """Return, in us, how long a handler takes to get all general registers: shared page, and KVM_GET_REGS."""
    took: dict[str, float] = {}

    def measure(vcpu: Vcpu, data: bytes) -> None:
        for name, read in (
            ("SYNC_REGS, us", vcpu.registers._shared),  # the structure in the shared page, as the attributes read it
            ("registers.copy(), us", vcpu.registers.copy),
            ("KVM_GET_REGS, us", vcpu.fd.get_regs),
        ):
            read()
            start = time.perf_counter()
            for _ in range(REGISTER_READS):
                read()
            took[name] = (time.perf_counter() - start) / REGISTER_READS * 1e6
        machine.stop()

    with silent("1M", 1, PIO_LOOP) as machine:
        machine.on_port(PORT, write=measure)
        machine.run(timeout=60)
    took["KVM_GET_REGS / SYNC_REGS"] = took["KVM_GET_REGS, us"] / took["SYNC_REGS, us"]
    return took


KINDS = {"kicks": kicks, "pauses": pauses, "creation": creation, "plugs": plugs, "registers": registers}

if __name__ == "__main__":
    print(dumps(KINDS[sys.argv[1]]()))
