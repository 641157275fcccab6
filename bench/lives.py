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
    """Return, in ms, how long unplug() and plug() take for one vCPU of four that run; the first plug has more to do.

    And the longest that one of the others stood still meanwhile, beside the same while nothing was plugged: that is how
    long the host let it wait for a processor. `waits`: how often one of them went to sleep, which a lock would show.
    """
    unplugging, plugging = [], []
    with silent("1M", 4, GAPS) as machine:
        machine.start()
        machine.resume()
        time.sleep(0.5)  # into the guest, all of them
        stalls_of_others(machine)
        started, slept = time.perf_counter(), waits_of_others(machine)
        for _ in range(PLUGS + 1):
            start = time.perf_counter()
            machine.unplug(2)
            unplugged = time.perf_counter()
            machine.plug(2)
            unplugging.append(unplugged - start)
            plugging.append(time.perf_counter() - unplugged)
        took = time.perf_counter() - started
        figures = {
            "waits of the others": waits_of_others(machine) - slept,
            "stall of the others, ms": stalls_of_others(machine),
        }
        time.sleep(took)
        figures["stall without plugs, ms"] = stalls_of_others(machine)
    figures["first plug, ms"] = plugging.pop(0) * 1000
    for name, times in (("unplug", sorted(unplugging[1:])), ("plug", sorted(plugging))):
        figures[f"{name} median, ms"] = statistics.median(times) * 1000
        figures[f"{name} p99, ms"] = times[PLUGS * 99 // 100] * 1000
    return figures


# Real mode: each vCPU compares the time-stamp counter with what it was the last time round, and keeps the longest step.
GAPS = bytes.fromhex(
    "66 c1 e7 03"  # shl $3,%edi
    "81 c7 00 80"  # add $0x8000,%di
    "0f 31"  # rdtsc
    "66 89 c3"  # mov %eax,%ebx
    "0f 31"  # 1: rdtsc
    "66 89 c1"  # mov %eax,%ecx
    "66 29 d9"  # sub %ebx,%ecx
    "66 89 c3"  # mov %eax,%ebx
    "66 3b 0d"  # cmp (%di),%ecx
    "76 f0"  # jbe 1b
    "66 89 0d"  # mov %ecx,(%di)
    "eb eb"  # jmp 1b
)
OTHERS = (0, 1, 3)


def stalls_of_others(machine: Machine) -> float:
    """Return the longest step, in ms, of the vCPUs that stay plugged, and let them begin anew."""
    longest = max(machine.memory.read_int(0x8000 + 8 * index) for index in OTHERS) / machine.vcpus[0].tsc_khz
    for index in OTHERS:
        machine.memory.write_int(0x8000 + 8 * index, 0)
    return longest


def waits_of_others(machine: Machine) -> int:
    """Return how often the threads of the vCPUs that stay plugged have gone to sleep."""
    total = 0
    for index in OTHERS:
        with open(f"/proc/self/task/{machine.vcpus[index].thread_id}/status") as status:
            total += sum(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))
    return total


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
