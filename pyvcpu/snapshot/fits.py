"""Whether a host can run what is in a snapshot, and whether a machine is of its kind; asked before anything is done."""

from __future__ import annotations

from ..kvm.abi import capabilities
from ..vcpu import state
from ..x86.cpuid import Leaves
from .plain import SnapshotError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..kvm.system import Kvm
    from .data import Snapshot
    from .target import Target

# What KVM_GET_SUPPORTED_CPUID does not tell: it depends on the machine, or is KVM's own doing.
ALWAYS = frozenset({"x2apic", "tsc_deadline_timer", "hypervisor", "osxsave", "ospke", "topoext", "apic", "ht", "mwait"})
# Not in KVM's list, and yet in a vCPU's state: memory types and machine checks.
ARCHITECTURAL = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF, 0x17A, 0x17B)
BANKS = range(0x400, 0x480)


def check_host(snapshot: Snapshot, kvm: Kvm) -> None:
    """Raise SnapshotError, which names what is missing, unless this host's KVM can run the snapshot."""
    vcpus = [vcpu["state"] for vcpu in snapshot.data["vcpus"] if vcpu is not None]
    for name in sorted({name for pieces in vcpus for name in pieces}):
        piece = state.BY_NAME.get(name)
        if piece is None:
            raise SnapshotError(f"its vCPUs have a state {name[:40]!r}, which this version does not know")
        if piece.cap and not kvm.check_extension(piece.cap):
            raise SnapshotError(f"this host's KVM lacks {cap_name(piece.cap)}, which the snapshot needs for {name}")
    if snapshot.data["irqchip"] == "split" and not kvm.check_extension(capabilities.KVM_CAP_SPLIT_IRQCHIP):
        raise SnapshotError("this host's KVM lacks KVM_CAP_SPLIT_IRQCHIP, which the snapshot needs")
    if vcpus:
        _check_cpuid(vcpus[0].get("cpuid", b""), kvm)
        _check_msrs(vcpus[0].get("msrs", b""), kvm)


def cap_name(cap: int) -> str:
    """Return the kernel's name of a capability."""
    from ..kvm.abi.caps import Cap

    return f"KVM_CAP_{Cap(cap).name}"


def needed_capabilities(snapshot: Snapshot) -> list[str]:
    """Return the names of the capabilities that a KVM must have to run the snapshot."""
    names = {name for vcpu in snapshot.data["vcpus"] if vcpu is not None for name in vcpu["state"]}
    caps = [cap_name(piece.cap) for piece in state.PIECES if piece.name in names and piece.cap]
    return caps + (["KVM_CAP_SPLIT_IRQCHIP"] if snapshot.data["irqchip"] == "split" else [])


def _check_cpuid(table: bytes, kvm: Kvm) -> None:
    from ..x86.features import shown

    if len(table) % 40:
        raise SnapshotError("its CPUID table does not consist of entries of 40 bytes")
    wanted = shown(Leaves.unpack(table))
    supported = set(shown(Leaves.unpack(bytes(kvm.get_supported_cpuid())))) | ALWAYS
    missing = [name for name in wanted if name not in supported]
    if missing:
        raise SnapshotError(
            f"this host's KVM lacks the CPU features {' '.join(missing)}, which the snapshot's guest has"
        )


def _check_msrs(pairs: bytes, kvm: Kvm) -> None:
    known = {*kvm.get_msr_index_list(), *ARCHITECTURAL, *BANKS}
    for at in range(0, len(pairs), 16):
        index, value = int.from_bytes(pairs[at : at + 8], "little"), pairs[at + 8 : at + 16]
        if index not in known and any(value):
            raise SnapshotError(f"this host's KVM lacks MSR {index:#x}, which the snapshot's guest uses")


def check_machine(snapshot: Snapshot, machine: Target, any_disk: bool) -> None:
    """Raise SnapshotError, which names the difference, unless `machine` is of the kind that the snapshot is of."""
    data, topology = snapshot.data, machine.topology
    smp = [topology.cpus, topology.sockets, topology.cores, topology.threads, topology.maxcpus]
    if machine.memory.size != snapshot.memory_size:
        raise SnapshotError(f"the snapshot is of {snapshot.memory_size} bytes of memory, not of {machine.memory.size}")
    if data["smp"][1:] != smp[1:]:
        raise SnapshotError(
            f"the snapshot's processors are {data['smp'][1:]} (sockets, cores, threads, all), not {smp[1:]}"
        )
    if machine.context.irqchip not in ("", data["irqchip"]):
        raise SnapshotError(f"the snapshot has irqchip {data['irqchip']}, not {machine.context.irqchip}")
    if machine.context.irqchip:
        check_devices(snapshot, machine, any_disk)


def check_devices(snapshot: Snapshot, machine: Target, any_disk: bool) -> None:
    """Raise SnapshotError unless the devices are the same, and the disks have not changed since."""
    wanted, there = snapshot.data["devices"], machine.devices
    for name in wanted:
        if name not in there:
            raise SnapshotError(f"the snapshot has a device {name[:40]}, which the machine lacks")
    for name in there:
        if name not in wanted:
            raise SnapshotError(f"the machine has a device {name}, which the snapshot lacks")
    if any_disk:
        return
    from .take import disks

    for name, identity in disks(machine).items():
        before = snapshot.data["disks"].get(name)
        if before is not None and before != identity:
            what = next(key for key in identity if identity[key] != before.get(key))
            raise SnapshotError(
                f"the disk of {name} is not as it was in the snapshot: its {WORDS[what]}; if it must be, "
                "say that any disk will do"
            )


WORDS = {
    "size": "size is another",
    "device": "file lies elsewhere",
    "inode": "file is another",
    "modified": "file was written to since",
}
