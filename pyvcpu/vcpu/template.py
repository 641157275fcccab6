"""CpuTemplate: what all processors of a machine have in common. Realize fills it in."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..kvm.cpuid import CpuidTable
    from ..kvm.system import Kvm
    from ..x86.cpu import Cpu as CpuModel
    from ..x86.cpuid import Key, Leaves, Template
    from ..x86.topology import Topology


class CpuTemplate:
    """The model that was asked for, the topology, and what realize makes of the two.

    `leaves` are those that all processors show, `paravirtual` those of the hypervisor that KVM offers, `ready` the
    leaves prepared for each processor; the first realize() sets them, before any vCPU has a thread. `reset_msrs`, what
    MSRs hold after reset, is found out by the first vCPU that is used again; the machine's lock guards it.
    """

    def __init__(self, model: CpuModel, topology: Topology) -> None:
        self.model = model
        self.topology = topology
        self.leaves: Leaves
        self.paravirtual: dict[Key, list[int]] = {}
        self.ready: Template | None = None
        self.reset_msrs: dict[int, int] | None = None
        self._supported: CpuidTable | None = None

    def supported_cpuid(self, kvm: Kvm) -> CpuidTable:
        """Return what KVM_GET_SUPPORTED_CPUID says, asked once; the table is not to be changed."""
        if self._supported is None:
            self._supported = kvm.get_supported_cpuid()
        return self._supported
