"""Take a snapshot: everything that a machine is, read while the world stands still."""

from __future__ import annotations

import time

from ..kvm.abi.clock import KVM_CLOCK_REALTIME
from ..vcpu import state
from ..vcpu.states import NO_THREAD
from .data import Snapshot
from .image import capture, capture_layer

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from ..vcpu.thread import VcpuThread
    from ..x86.cpu import Cpu as CpuModel
    from ..x86.start import StartState
    from .target import Target

SOFTWARE = "pyvcpu"
# What a start state consists of, as the table in data.py has it.
START_FIELDS = ("mode", "entry", "stack", "stack_base", "code_base", "gdt", "page_table")


def take(machine: Target) -> Snapshot:
    """Return a snapshot of `machine`, which is started where it was not, and goes on afterwards if it ran."""
    control = machine.control
    with control.start_lock:
        machine.start()
        with machine.paused("snapshot"):
            return _take(machine)


def _take(machine: Target) -> Snapshot:
    topology = machine.topology
    plan = machine._plan
    assert plan is not None, "the machine is started"
    vcpus = [save_vcpu(thread) for thread in machine._threads]
    data: dict[str, Any] = {
        "software": SOFTWARE,
        "created": time.time_ns(),
        "memory": machine.memory.size,
        "smp": [topology.cpus, topology.sockets, topology.cores, topology.threads, topology.maxcpus],
        "cpu": cpu_text(machine._threads[0].template.model),
        "irqchip": machine.context.irqchip,
        "format": plan.format,
        "starts": [None if vcpu.start is None else start_data(vcpu.start) for vcpu in machine.vcpus],
        "vcpus": vcpus,
        "clock": clock(machine),
        "devices": {name: device.state() for name, device in machine.devices.items()},
        "disks": disks(machine),
    }
    parent = machine._parent
    if parent is None:
        return Snapshot(data, capture(machine.memory))
    return Snapshot(data, capture_layer(machine.memory, parent.image), parent)


def save_vcpu(thread: VcpuThread) -> dict[str, Any] | None:
    """Return the state of one vCPU, None for one that is not in the machine."""
    if thread.vcpu.state in NO_THREAD:
        return None
    return thread.vcpu.run_on_cpu(lambda vcpu: {"state": state.save(thread), "interrupts": list(vcpu._interrupts)})


def clock(machine: Target) -> dict[str, Any]:
    """Return the guest's clock in ns, the real time at which it was read, and which clocks go with it."""
    found = machine.vm.get_clock()
    real = found.realtime if found.flags & KVM_CLOCK_REALTIME else time.time_ns()
    return {"ns": found.clock, "realtime": real, "line": machine._clock_line}


def disks(machine: Target) -> dict[str, Any]:
    """Return the identity of each disk: by that another one is known."""
    found = {}
    for name, device in machine.devices.items():
        identity = getattr(getattr(getattr(device, "device", None), "_backend", None), "identity", None)
        if identity is not None:
            found[name] = identity()
    return found


def start_data(start: StartState) -> dict[str, Any]:
    """Return a start state as plain data."""
    values = {name: getattr(start, name) for name in START_FIELDS}
    selectors = None if start.selectors is None else list(start.selectors)
    return values | {"selectors": selectors, "registers": dict(start.registers)}


def cpu_text(model: CpuModel) -> str:
    """Return a processor as `--cpu` would ask for it."""
    parts = [model.model, *sorted(f"+{name}" for name in model.plus), *sorted(f"-{name}" for name in model.minus)]
    parts += [model.policy] if model.policy else []
    parts += [f"phys-bits={model.phys_bits}"] if model.phys_bits else []
    parts += [] if model.kvm else ["kvm=off"]
    parts += ["hv=on"] if model.hv else []
    parts += [f"tsc-khz={model.tsc_khz}"] if model.tsc_khz else []
    return ",".join(parts)
