"""Put a machine into the state of a snapshot: memory, interrupt controllers, devices, vCPUs, clocks, in that order."""

from __future__ import annotations

import os
from struct import pack
from time import time_ns

from ..errors import PyvcpuError
from ..kvm.abi.capabilities import KVM_CAP_ADJUST_CLOCK
from ..kvm.abi.clock import KVM_CLOCK_REALTIME, kvm_clock_data
from ..vcpu import state
from ..vcpu.standin import StandIn
from ..vcpu.states import NO_THREAD
from ..x86.reset import IA32_TSC
from .fits import check_devices, check_machine
from .plain import ID_BYTES, SnapshotError, msr_pairs
from .quick import Quick
from .tracker import Tracker
from .vcpu_reset import settle

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from ..vcpu.core import Cpu
    from ..vcpu.thread import VcpuThread
    from .data import Snapshot
    from .target import Target

TIMES = ("continue", "frozen")
FIRST = ("irqchip", "ioapic")  # those behind their lines drive them to the same levels afterwards
WALL_CLOCKS = (0x11, 0x4B56_4D00)  # MSR_KVM_WALL_CLOCK and its newer form: KVM writes to memory when they are set
ADDRESS = ~0xFFF & (1 << 64) - 1
TSC_TOLERANCE = 250  # parts per million, as when a vCPU is made
U64 = (1 << 64) - 1


def restore(
    machine: Target,
    snapshot: Snapshot,
    *,
    time: str = "continue",
    any_disk: bool = False,
    again: bool = True,
) -> None:
    """Do what Machine.restore() does. `again`: prepare for doing it again, quickly."""
    control = machine.control
    with control.start_lock:
        if time not in TIMES:
            raise SnapshotError(f"time must be one of {', '.join(TIMES)}, not {time!r}")
        check_machine(snapshot, machine, any_disk)
        machine.start()
        check_devices(snapshot, machine, any_disk)
        machine._quick = None
        try:
            _match_vcpus(machine, snapshot)
            with machine.paused("restore"):
                _restore(machine, snapshot, Time(machine, snapshot, time))
                if again and Quick.can(snapshot):
                    _prepare(machine, snapshot)
        except (PyvcpuError, ValueError, OverflowError) as error:
            if isinstance(error, SnapshotError):
                raise
            raise SnapshotError(f"the snapshot cannot be restored: {error}") from error
        control.forget_end()


def _prepare(machine: Target, snapshot: Snapshot) -> None:
    """Get ready to reset the machine to `snapshot`, again and again; the world is held still."""
    if machine._tracker is None:
        machine._tracker = Tracker(machine.vm, machine.memory)
    machine._quick = Quick(machine, snapshot, machine._tracker)
    if machine._stand_in is None and len(machine.vcpus) == 1:
        machine._stand_in = StandIn(machine._threads[0])


class Time:
    """What is to become of the clocks of a machine: which values they get, or None where they go on by themselves."""

    def __init__(self, machine: Target, snapshot: Snapshot, wanted: str) -> None:
        clock = snapshot.data["clock"]
        self.goes_on = wanted == "continue"
        self.leave = self.goes_on and machine._clock_line == clock["line"]
        self.elapsed = max(time_ns() - clock["realtime"], 0)  # ns
        self._clock = clock
        self._machine = machine

    def tsc(self, saved: int, khz: int) -> int:
        """Return what a time-stamp counter is to show that showed `saved`."""
        return (saved + (self.elapsed * khz // 1_000_000 if self.goes_on else 0)) & U64

    def set_clock(self) -> None:
        """Set kvmclock, after the vCPUs; note which clocks the machine's go with now."""
        if self.leave:
            return
        machine, ns = self._machine, self._clock["ns"]
        value = kvm_clock_data(clock=ns)
        if self.goes_on and machine.kvm.check_extension(KVM_CAP_ADJUST_CLOCK) & KVM_CLOCK_REALTIME:
            value.flags, value.realtime = KVM_CLOCK_REALTIME, self._clock["realtime"]
        elif self.goes_on:
            value.clock = (ns + self.elapsed) & U64
        machine.vm.set_clock(value)
        machine._clock_line = self._clock["line"] if self.goes_on else os.urandom(ID_BYTES)


def _match_vcpus(machine: Target, snapshot: Snapshot) -> None:
    """Plug and unplug, so that the same vCPUs are there."""
    for vcpu, saved in zip(machine.vcpus, snapshot.data["vcpus"], strict=True):
        is_there = vcpu.state not in NO_THREAD
        if is_there and saved is None:
            machine.unplug(vcpu.index)
        elif saved is not None and not is_there:
            machine.plug(vcpu.index)


def _restore(machine: Target, snapshot: Snapshot, clock: Time) -> None:
    put_memory(machine, snapshot)
    states = snapshot.data["devices"]
    for name, device in sorted(machine.devices.items(), key=lambda item: item[0] not in FIRST):
        if name == "irqchip":
            device.restore(states[name], clock=False)
        else:
            device.restore(states[name] if clock.goes_on else _frozen(name, states[name], clock))
    for thread, saved in zip(machine._threads, snapshot.data["vcpus"], strict=True):
        if saved is not None:
            thread.vcpu.run_on_cpu(lambda vcpu, thread=thread, saved=saved: load_vcpu(thread, saved, clock))  # type: ignore[misc]
    _rewrite_wall_clocks(machine, snapshot)
    clock.set_clock()
    machine._parent = snapshot


def put_memory(machine: Target, snapshot: Snapshot) -> None:
    """Make the machine's memory the snapshot's."""
    tracker = machine._tracker
    if tracker is not None and tracker.rewind(snapshot.image):
        return
    snapshot.image.put_into(machine.memory)


def _frozen(name: str, data: Any, clock: Time) -> Any:
    """Return the state of a device that tells the time, as if none had passed."""
    if name == "rtc" and type(data) is dict and type(data.get("offset")) is int:
        return {**data, "offset": data["offset"] - clock.elapsed // 1_000_000_000}
    return data


def load_vcpu(thread: VcpuThread, saved: dict[str, Any], clock: Time) -> None:
    """Load the state of a vCPU, on its thread."""
    state.load(thread, fitted(thread, saved["state"], clock))
    if not thread.has_apic:
        settle(thread, saved["state"])
    thread.vcpu._interrupts.clear()
    thread.vcpu._interrupts.extend(saved["interrupts"])


def fitted(cpu: Cpu, saved: dict[str, bytes], clock: Time) -> dict[str, bytes]:
    """Return the state as this host can take it: pieces that only one of the two hosts has, clocks, rates."""
    there = {piece.name: piece for piece in state.PIECES if piece.is_there(cpu)}
    unknown = [name for name in saved if name not in there]
    if unknown:
        raise SnapshotError(f"vCPU {cpu.index} cannot have the piece of state {unknown[0][:40]!r} here")
    found = {name: saved[name] if name in saved else piece.get(cpu) for name, piece in there.items()}
    khz = int.from_bytes(found["tsc_khz"], "little") if "tsc_khz" in found else 0
    if "tsc_khz" in found and abs(khz - cpu.tsc_khz) * 1_000_000 <= khz * TSC_TOLERANCE:
        found["tsc_khz"] = cpu.tsc_khz.to_bytes(8, "little")
    if "debugregs" in saved and len(saved["debugregs"]) != len(there["debugregs"].get(cpu)):
        raise SnapshotError(f"vCPU {cpu.index} cannot have debug registers of {len(saved['debugregs'])} bytes")
    values = []
    for index, value in msr_pairs(found["msrs"]):
        if index != IA32_TSC:
            values.append((index, value))
        elif not clock.leave:
            values.append((index, clock.tsc(value, khz)))
    found["msrs"] = b"".join(pack("<QQ", *pair) for pair in values)
    return found


def _rewrite_wall_clocks(machine: Target, snapshot: Snapshot) -> None:
    """Put back the pages to which KVM has just written the time of its start."""
    for saved in snapshot.data["vcpus"]:
        for index, value in msr_pairs(saved["state"].get("msrs", b"")) if saved is not None else ():
            if index in WALL_CLOCKS and value:
                number = machine.memory.page_number(value & ADDRESS)
                if number is not None:
                    snapshot.image.copy_pages(machine.memory, [number])
