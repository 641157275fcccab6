"""Before the thread: what makes a processor of what was asked for (QEMU: x86_cpu_realizefn).

docs/lifecycle.md has QEMU's eleven steps and these side by side. All processors of a machine are alike but for their
ids, so steps 1 to 5 are done once, for the first one that is realized.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..kvm.abi import basic as abi
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
    from ..x86.cpu import Cpu as CpuModel
    from ..x86.topology import Topology
    from .context import KvmContext
    from .core import Cpu
    from .template import CpuTemplate

HYPERVISOR, TSC_DEADLINE = 1 << 31, 1 << 24  # leaf 1 ECX
MCE, MCA = 1 << 7, 1 << 14  # leaf 1 EDX
LONG_MODE = 1 << 29  # leaf 0x80000001 EDX
LAST_XAPIC_ID = 254  # 255 is the broadcast
FEWEST_PHYS_BITS = 32
GUEST_PHYS_BITS = 0xFF << 16  # leaf 0x80000008 EAX: how many of them nested paging has

# IA32_MCG_CAP as QEMU has it: ten banks, and no more than KVM supports of the rest (SDM vol. 3B section 16.3.1.1).
MCG_CTL_P, MCG_SER_P = 1 << 8, 1 << 24
MCE_BANKS = 10
MCE_FAMILY = 6  # the first that has the banks

# IA32_APIC_BASE (SDM vol. 3A section 11.4.4).
APIC_BASE, APIC_ENABLED, APIC_BOOT_PROCESSOR = 0xFEE0_0000, 1 << 11, 1 << 8


def realize(cpu: Cpu) -> None:
    """Prepare the processor in the caller's thread, up to the start of its own.

    Raise ConfigError for a processor that this KVM cannot be.
    """
    if cpu.template.ready is None:
        _realize_all(cpu)
    cpu.step("cpu_exec_realizefn", lambda: exec_realize(cpu))  # 6
    cpu.step("mce_init", lambda: mce_init(cpu))  # 7


def _realize_all(cpu: Cpu) -> None:
    context, template, step = cpu.context, cpu.template, cpu.step
    model = template.model
    supported = supported_leaves(context, template)
    leaves = step("x86_cpu_expand_features", lambda: expand_features(model, supported))  # 1
    missing = step("x86_cpu_filter_features", lambda: filter_features(model, leaves, supported))  # 2
    step("check_features", lambda: check_features(context, model, missing))  # 3
    step("guest_phys_bits", lambda: set_phys_bits(context, model, leaves))  # 4
    set_topology(leaves, template.topology)
    step("cache_info", lambda: init_cache_info(leaves, template.topology))  # 5
    template.leaves = leaves
    template.ready = Template(leaves, template.topology)


def supported_leaves(context: KvmContext, template: CpuTemplate) -> Leaves:
    """Return what KVM supports, corrected where KVM_GET_SUPPORTED_CPUID cannot know.

    Whether there is a local APIC in the kernel is up to the machine (QEMU: kvm_arch_get_supported_cpuid).
    """
    leaves = Leaves.unpack(bytes(template.supported_cpuid(context.kvm)))
    template.paravirtual = paravirt.split(leaves)
    shown = HYPERVISOR
    if context.irqchip == "none":
        hidden = X2APIC | TSC_DEADLINE
    else:
        hidden = 0
        shown |= TSC_DEADLINE if context.has(abi.KVM_CAP_TSC_DEADLINE_TIMER) else 0
    leaves.change(FEATURES, ECX, shown | hidden, shown)
    if leaves.is_amd:  # the leaves of this feature are made here, whatever the host has
        leaves.change(EXTENDED_FEATURES, ECX, TOPOEXT, TOPOEXT)
    return leaves


def expand_features(model: CpuModel, supported: Leaves) -> Leaves:
    """1. Make leaves of the model and of the features turned on and off (QEMU: x86_cpu_expand_features)."""
    if model.is_plain:
        return supported
    from ..x86 import models

    return models.expand_features(model, supported)


def filter_features(model: CpuModel, leaves: Leaves, supported: Leaves) -> list[str]:
    """2. Hide what KVM does not support; return what of it was asked for (QEMU: x86_cpu_filter_features)."""
    if model.is_plain:
        return []
    from ..x86 import models

    missing = models.filter_features(model, leaves, supported)
    models.settle(leaves, supported)
    return missing


def check_features(context: KvmContext, model: CpuModel, missing: list[str]) -> None:
    """3. Warn of missing features with `check`, refuse them with `enforce` (QEMU: check_cpuid, enforce_cpuid)."""
    if not missing or not model.policy:
        return
    what = f"this host's KVM lacks {' '.join(missing)}"
    if model.policy == "enforce":
        raise ConfigError(f"--cpu {model.model} cannot be had in full: {what}")
    context.warn(f"--cpu {model.model}: {what}")


def set_phys_bits(context: KvmContext, model: CpuModel, leaves: Leaves) -> None:
    """4. Set the width of a physical address: the host's, or what `phys-bits` says; RAM must fit.

    Leaf 0x80000008 EAX bits 7-0 (QEMU: guest physical bits).
    """
    sizes = leaves.read(ADDRESS_SIZES, EAX)
    host = sizes & 0xFF or FEWEST_PHYS_BITS
    bits = model.phys_bits or host
    if bits > host:
        raise ConfigError(f"--cpu phys-bits= must be at most the host's {host}, not {bits}")
    end = context.memory.ranges[-1][1]
    if end > 1 << bits:
        raise ConfigError(
            f"RAM ends at {end:#x}, which takes {(end - 1).bit_length()} bits of physical address; "
            f"the processor has {bits}: ask for less --memory" + (" or for more phys-bits" if bits < host else "")
        )
    if model.phys_bits:
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


def exec_realize(cpu: Cpu) -> None:
    """6. See that KVM can run such a processor (QEMU: cpu_exec_realizefn): its APIC id, the mode it starts in."""
    context, leaves, start = cpu.context, cpu.template.leaves, cpu.vcpu.start
    if cpu.apic_id >= context.vcpu_ids:
        raise ConfigError(
            f"vCPU {cpu.index} has APIC id {cpu.apic_id} in this topology; KVM's ids go up to {context.vcpu_ids - 1}"
            " (KVM_CAP_MAX_VCPU_ID)"
        )
    if cpu.apic_id > LAST_XAPIC_ID and context.irqchip != "none" and not leaves.read(FEATURES, ECX) & X2APIC:
        raise ConfigError(f"APIC ids above {LAST_XAPIC_ID}, as of vCPU {cpu.index}, need the feature x2apic")
    long = start is not None and start.mode == "long"
    told = (EXTENDED_FEATURES, 0) in leaves.entries
    if long and told and not leaves.read(EXTENDED_FEATURES, EDX) & LONG_MODE:
        # KVM refuses to enter long mode without it, and says only EINVAL.
        raise ConfigError("the guest starts in long mode, which needs the feature lm")


def enable_x2apic_api(context: KvmContext, topology: Topology) -> None:
    """Let the interrupt controllers know APIC ids beyond 8 bits, before the first vCPU (KVM_CAP_X2APIC_API)."""
    if topology.apic_id(topology.maxcpus - 1) <= LAST_XAPIC_ID:
        return
    from ..kvm.abi import features

    if not context.has(abi.KVM_CAP_X2APIC_API):
        raise ConfigError(
            f"APIC ids above {LAST_XAPIC_ID} need KVM_CAP_X2APIC_API, which this KVM lacks; ask for fewer vCPUs"
        )
    context.vm.enable_cap(
        abi.KVM_CAP_X2APIC_API,
        features.KVM_X2APIC_API_USE_32BIT_IDS | features.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    )


def mce_init(cpu: Cpu) -> None:
    """7. Decide on the machine-check banks: ten, where the processor shows MCE and MCA (QEMU: mce_init)."""
    leaves = cpu.template.leaves
    family = leaves.read(FEATURES, EAX) >> 8 & 0xF
    shown = leaves.read(FEATURES, EDX) & (MCE | MCA) == MCE | MCA
    cpu.mcg_cap = MCG_CTL_P | MCG_SER_P | MCE_BANKS if shown and family >= MCE_FAMILY else 0


def apic_realize(cpu: Cpu) -> None:
    """9. Put the local APIC at its address, enabled; the first processor is the boot processor.

    In the vCPU's thread, because KVM makes the APIC together with the vCPU (QEMU: x86_cpu_apic_realize).
    """
    sregs = cpu.fd.get_sregs()
    if cpu.has_apic:
        sregs.apic_base = APIC_BASE | APIC_ENABLED | (APIC_BOOT_PROCESSOR if cpu.apic_id == 0 else 0)
        put_apic(cpu)
    cpu.reset_sregs = bytes(sregs)


def put_apic(cpu: Cpu) -> None:
    """Write the local APIC's registers as they are, which makes KVM look at all APICs anew (QEMU: kvm_put_apic_state).

    It keeps a table of them by id, and a processor that was only created is not yet in it: nobody could reach that one.
    """
    from ..kvm.abi.state import KVM_GET_LAPIC, KVM_SET_LAPIC, kvm_lapic_state

    page = kvm_lapic_state()
    cpu.fd.ioctl(KVM_GET_LAPIC, page)
    cpu.fd.ioctl(KVM_SET_LAPIC, page)
