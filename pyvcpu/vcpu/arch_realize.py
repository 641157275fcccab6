"""Before the thread: what makes a processor of what was asked for (QEMU: x86_cpu_realizefn).

docs/lifecycle.md has QEMU's eleven steps and these side by side. All processors of a machine are alike but for their
ids, so steps 1 to 5 are done once, for the first one that is realized.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..x86 import paravirt
from ..x86.cpuid import (
    ADDRESS_SIZES,
    AMD_CACHES,
    CACHES,
    EAX,
    ECX,
    EDX,
    EXTENDED_FEATURES,
    FEATURES,
    TOPOEXT,
    X2APIC,
    Leaves,
    Template,
    set_topology,
    share_caches,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..x86.cpu import Cpu
    from ..x86.topology import Topology
    from .accel import Accel
    from .vcpu import Vcpu

HYPERVISOR, TSC_DEADLINE = 1 << 31, 1 << 24  # leaf 1 ECX
MCE, MCA = 1 << 7, 1 << 14  # leaf 1 EDX
LONG_MODE = 1 << 29  # leaf 0x80000001 EDX
LAST_XAPIC_ID = 254  # 255 is the broadcast
KVM_CAP_TSC_DEADLINE_TIMER = 72  # a number: the table of all capabilities takes a millisecond to load
FEWEST_PHYS_BITS = 32
GUEST_PHYS_BITS = 0xFF << 16  # leaf 0x80000008 EAX: how many of them nested paging has

# IA32_MCG_CAP as QEMU has it: ten banks, and no more than KVM supports of the rest (SDM vol. 3B section 16.3.1.1).
MCG_CTL_P, MCG_SER_P = 1 << 8, 1 << 24
MCE_BANKS = 10
MCE_FAMILY = 6  # the first that has the banks

# IA32_APIC_BASE (SDM vol. 3A section 11.4.4).
APIC_BASE, APIC_ENABLED, APIC_BOOT_PROCESSOR = 0xFEE0_0000, 1 << 11, 1 << 8


def realize(vcpu: Vcpu) -> None:
    """Prepare the processor in the caller's thread, up to the start of its own.

    Raise ConfigError for a processor that this KVM cannot be.
    """
    accel = vcpu.accel
    if accel.template is None:
        accel.template = Template(_realize_all(accel), accel.topology)
    exec_realize(vcpu)  # 6
    mce_init(vcpu)  # 7


def _realize_all(accel: Accel) -> Leaves:
    cpu, supported = accel.cpu, supported_leaves(accel)
    leaves = expand_features(cpu, supported)  # 1
    missing = filter_features(cpu, leaves, supported)  # 2
    check_features(accel, missing)  # 3
    set_phys_bits(accel, leaves)  # 4
    set_topology(leaves, accel.topology)
    init_cache_info(leaves, accel.topology)  # 5
    accel.leaves = leaves
    return leaves


def supported_leaves(accel: Accel) -> Leaves:
    """Return what KVM supports, corrected where KVM_GET_SUPPORTED_CPUID cannot know.

    Whether there is a local APIC in the kernel is up to the machine (QEMU: kvm_arch_get_supported_cpuid).
    """
    leaves = Leaves.unpack(bytes(accel.supported_cpuid()))
    accel.paravirtual = paravirt.split(leaves)
    shown = HYPERVISOR
    if accel.irqchip == "none":
        hidden = X2APIC | TSC_DEADLINE
    else:
        hidden = 0
        shown |= TSC_DEADLINE if accel.kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER) else 0
    leaves.change(FEATURES, ECX, shown | hidden, shown)
    if leaves.is_amd:  # the leaves of this feature are made here, whatever the host has
        leaves.change(EXTENDED_FEATURES, ECX, TOPOEXT, TOPOEXT)
    return leaves


def expand_features(cpu: Cpu, supported: Leaves) -> Leaves:
    """1. Make leaves of the model and of the features turned on and off (QEMU: x86_cpu_expand_features)."""
    if cpu.is_plain:
        return supported
    from ..x86 import models

    return models.expand_features(cpu, supported)


def filter_features(cpu: Cpu, leaves: Leaves, supported: Leaves) -> list[str]:
    """2. Hide what KVM does not support; return what of it was asked for (QEMU: x86_cpu_filter_features)."""
    if cpu.is_plain:
        return []
    from ..x86 import models

    missing = models.filter_features(cpu, leaves, supported)
    models.settle(leaves, supported)
    return missing


def check_features(accel: Accel, missing: list[str]) -> None:
    """3. Warn of missing features with `check`, refuse them with `enforce` (QEMU: check_cpuid, enforce_cpuid)."""
    cpu = accel.cpu
    if not missing or not cpu.policy:
        return
    what = f"this host's KVM lacks {' '.join(missing)}"
    if cpu.policy == "enforce":
        raise ConfigError(f"--cpu {cpu.model} cannot be had in full: {what}")
    accel.warn(f"--cpu {cpu.model}: {what}")


def set_phys_bits(accel: Accel, leaves: Leaves) -> None:
    """4. Set the width of a physical address: the host's, or what `phys-bits` says; RAM must fit.

    Leaf 0x80000008 EAX bits 7-0 (QEMU: guest physical bits).
    """
    sizes = leaves.read(ADDRESS_SIZES, EAX)
    host = sizes & 0xFF or FEWEST_PHYS_BITS
    bits = accel.cpu.phys_bits or host
    if bits > host:
        raise ConfigError(f"--cpu phys-bits= must be at most the host's {host}, not {bits}")
    end = accel.memory.ranges[-1][1]
    if end > 1 << bits:
        raise ConfigError(
            f"RAM ends at {end:#x}, which takes {(end - 1).bit_length()} bits of physical address; "
            f"the processor has {bits}: ask for less --memory" + (" or for more phys-bits" if bits < host else "")
        )
    if accel.cpu.phys_bits:
        leaves.change(ADDRESS_SIZES, EAX, 0xFF, bits)
        if sizes & GUEST_PHYS_BITS:
            leaves.change(ADDRESS_SIZES, EAX, GUEST_PHYS_BITS, min(sizes >> 16 & 0xFF, bits) << 16)


def init_cache_info(leaves: Leaves, topology: Topology) -> None:
    """5. Describe the caches, and who shares each, as the topology has it ("Cache information initialization")."""
    share_caches(leaves, CACHES, topology)
    if leaves.has_topoext:
        from ..x86.caches import complete_amd_caches

        complete_amd_caches(leaves)
        share_caches(leaves, AMD_CACHES, topology)
    else:
        leaves.drop(AMD_CACHES)


def exec_realize(vcpu: Vcpu) -> None:
    """6. See that KVM can run such a processor (QEMU: cpu_exec_realizefn): its APIC id, the mode it starts in."""
    accel = vcpu.accel
    if vcpu.apic_id >= accel.vcpu_ids:
        raise ConfigError(
            f"vCPU {vcpu.index} has APIC id {vcpu.apic_id} in this topology; KVM's ids go up to {accel.vcpu_ids - 1}"
            " (KVM_CAP_MAX_VCPU_ID)"
        )
    if vcpu.apic_id > LAST_XAPIC_ID and accel.irqchip != "none" and not accel.leaves.read(FEATURES, ECX) & X2APIC:
        raise ConfigError(f"APIC ids above {LAST_XAPIC_ID}, as of vCPU {vcpu.index}, need the feature x2apic")
    long = vcpu.start is not None and vcpu.start.mode == "long"
    told = (EXTENDED_FEATURES, 0) in accel.leaves.entries
    if long and told and not accel.leaves.read(EXTENDED_FEATURES, EDX) & LONG_MODE:
        # KVM refuses to enter long mode without it, and says only EINVAL.
        raise ConfigError("the guest starts in long mode, which needs the feature lm")


def enable_x2apic_api(accel: Accel) -> None:
    """Let the interrupt controllers know APIC ids beyond 8 bits, before the first vCPU (KVM_CAP_X2APIC_API)."""
    topology = accel.topology
    if topology.apic_id(topology.maxcpus - 1) <= LAST_XAPIC_ID:
        return
    from ..kvm.abi import features
    from ..kvm.abi.caps import Cap

    if not accel.kvm.check_extension(Cap.X2APIC_API):
        raise ConfigError(
            f"APIC ids above {LAST_XAPIC_ID} need KVM_CAP_X2APIC_API, which this KVM lacks; ask for fewer vCPUs"
        )
    accel.vm.enable_cap(
        Cap.X2APIC_API, features.KVM_X2APIC_API_USE_32BIT_IDS | features.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
    )


def mce_init(vcpu: Vcpu) -> None:
    """7. Decide on the machine-check banks: ten, where the processor shows MCE and MCA (QEMU: mce_init)."""
    leaves = vcpu.accel.leaves
    family = leaves.read(FEATURES, EAX) >> 8 & 0xF
    shown = leaves.read(FEATURES, EDX) & (MCE | MCA) == MCE | MCA
    vcpu.mcg_cap = MCG_CTL_P | MCG_SER_P | MCE_BANKS if shown and family >= MCE_FAMILY else 0


def apic_realize(vcpu: Vcpu) -> None:
    """9. Put the local APIC at its address, enabled; the first processor is the boot processor.

    In the vCPU's thread, because KVM makes the APIC together with the vCPU (QEMU: x86_cpu_apic_realize).
    """
    sregs = vcpu.fd.get_sregs()
    if vcpu.accel.irqchip != "none":
        sregs.apic_base = APIC_BASE | APIC_ENABLED | (APIC_BOOT_PROCESSOR if vcpu.apic_id == 0 else 0)
        put_apic(vcpu)
    vcpu.reset_sregs = bytes(sregs)


def put_apic(vcpu: Vcpu) -> None:
    """Write the local APIC's registers as they are, which makes KVM look at all APICs anew (QEMU: kvm_put_apic_state).

    It keeps a table of them by id, and a processor that was only created is not yet in it: nobody could reach that one.
    """
    from ..kvm.abi.state import KVM_GET_LAPIC, KVM_SET_LAPIC, kvm_lapic_state

    page = kvm_lapic_state()
    vcpu.fd.ioctl(KVM_GET_LAPIC, page)
    vcpu.fd.ioctl(KVM_SET_LAPIC, page)
