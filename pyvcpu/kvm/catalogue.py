"""Every request of the KVM API on x86: which class has it under which name, what it needs, how old it is.

When a request failed, lacking() uses it to name the capability that this KVM lacks. The generator of docs/kvm-api.md
and the tests read it, too.
"""

from __future__ import annotations

from .abi import capabilities
from .errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from .fd import Fd

# class: method, request, capability (- for none), kernel that brought the request to x86.
_TABLE = {
    "Kvm": """
        get_api_version             KVM_GET_API_VERSION             -                       2.6.20
        create_vm                   KVM_CREATE_VM                   -                       2.6.20
        check_extension             KVM_CHECK_EXTENSION             -                       2.6.22
        get_vcpu_mmap_size          KVM_GET_VCPU_MMAP_SIZE          -                       2.6.22
        get_supported_cpuid         KVM_GET_SUPPORTED_CPUID         EXT_CPUID               2.6.25
        get_emulated_cpuid          KVM_GET_EMULATED_CPUID          EXT_EMUL_CPUID          3.13
        get_supported_hv_cpuid      KVM_GET_SUPPORTED_HV_CPUID      SYS_HYPERV_CPUID        5.11
        get_msr_index_list          KVM_GET_MSR_INDEX_LIST          -                       2.6.20
        get_msr_feature_index_list  KVM_GET_MSR_FEATURE_INDEX_LIST  GET_MSR_FEATURES        4.17
        get_msrs                    KVM_GET_MSRS                    GET_MSR_FEATURES        4.17
        x86_get_mce_cap_supported   KVM_X86_GET_MCE_CAP_SUPPORTED   MCE                     2.6.32
        get_device_attr             KVM_GET_DEVICE_ATTR             SYS_ATTRIBUTES          5.17
        has_device_attr             KVM_HAS_DEVICE_ATTR             SYS_ATTRIBUTES          5.17
    """,
    "VmFd": """
        check_extension             KVM_CHECK_EXTENSION             CHECK_EXTENSION_VM      3.17
        create_vcpu                 KVM_CREATE_VCPU                 -                       2.6.20
        enable_cap                  KVM_ENABLE_CAP                  ENABLE_CAP_VM           4.2
        set_user_memory_region      KVM_SET_USER_MEMORY_REGION      USER_MEMORY             2.6.25
        set_user_memory_region2     KVM_SET_USER_MEMORY_REGION2     USER_MEMORY2            6.8
        set_memory_attributes       KVM_SET_MEMORY_ATTRIBUTES       MEMORY_ATTRIBUTES       6.8
        create_guest_memfd          KVM_CREATE_GUEST_MEMFD          GUEST_MEMFD             6.8
        get_dirty_log               KVM_GET_DIRTY_LOG               -                       2.6.20
        clear_dirty_log             KVM_CLEAR_DIRTY_LOG             MANUAL_DIRTY_LOG_PROTECT2  5.0
        reset_dirty_rings           KVM_RESET_DIRTY_RINGS           DIRTY_LOG_RING          5.11
        set_nr_mmu_pages            KVM_SET_NR_MMU_PAGES            MMU_SHADOW_CACHE_CONTROL  2.6.25
        get_nr_mmu_pages            KVM_GET_NR_MMU_PAGES            -                       2.6.25
        set_tss_addr                KVM_SET_TSS_ADDR                SET_TSS_ADDR            2.6.25
        set_identity_map_addr       KVM_SET_IDENTITY_MAP_ADDR       SET_IDENTITY_MAP_ADDR   2.6.32
        create_irqchip              KVM_CREATE_IRQCHIP              IRQCHIP                 2.6.24
        get_irqchip                 KVM_GET_IRQCHIP                 IRQCHIP                 2.6.24
        set_irqchip                 KVM_SET_IRQCHIP                 IRQCHIP                 2.6.24
        irq_line                    KVM_IRQ_LINE                    IRQCHIP                 2.6.24
        irq_line_status             KVM_IRQ_LINE_STATUS             IRQ_INJECT_STATUS       2.6.30
        create_pit                  KVM_CREATE_PIT                  PIT                     2.6.26
        create_pit2                 KVM_CREATE_PIT2                 PIT2                    2.6.32
        get_pit                     KVM_GET_PIT                     PIT                     2.6.26
        set_pit                     KVM_SET_PIT                     PIT                     2.6.26
        get_pit2                    KVM_GET_PIT2                    PIT_STATE2              2.6.32
        set_pit2                    KVM_SET_PIT2                    PIT_STATE2              2.6.32
        reinject_control            KVM_REINJECT_CONTROL            REINJECT_CONTROL        2.6.30
        set_boot_cpu_id             KVM_SET_BOOT_CPU_ID             SET_BOOT_CPU_ID         2.6.32
        set_gsi_routing             KVM_SET_GSI_ROUTING             IRQ_ROUTING             2.6.30
        irqfd                       KVM_IRQFD                       IRQFD                   2.6.32
        ioeventfd                   KVM_IOEVENTFD                   IOEVENTFD               2.6.32
        signal_msi                  KVM_SIGNAL_MSI                  SIGNAL_MSI              3.5
        register_coalesced_mmio     KVM_REGISTER_COALESCED_MMIO     COALESCED_MMIO          2.6.27
        unregister_coalesced_mmio   KVM_UNREGISTER_COALESCED_MMIO   COALESCED_MMIO          2.6.27
        create_device               KVM_CREATE_DEVICE               DEVICE_CTRL             3.10
        get_stats_fd                KVM_GET_STATS_FD                BINARY_STATS_FD         5.14
        get_clock                   KVM_GET_CLOCK                   ADJUST_CLOCK            2.6.33
        set_clock                   KVM_SET_CLOCK                   ADJUST_CLOCK            2.6.33
        get_tsc_khz                 KVM_GET_TSC_KHZ                 VM_TSC_CONTROL          5.18
        set_tsc_khz                 KVM_SET_TSC_KHZ                 VM_TSC_CONTROL          5.18
        x86_set_msr_filter          KVM_X86_SET_MSR_FILTER          X86_MSR_FILTER          5.10
        set_pmu_event_filter        KVM_SET_PMU_EVENT_FILTER        PMU_EVENT_FILTER        5.3
        xen_hvm_config              KVM_XEN_HVM_CONFIG              XEN_HVM                 2.6.33
        xen_hvm_get_attr            KVM_XEN_HVM_GET_ATTR            XEN_HVM                 5.12
        xen_hvm_set_attr            KVM_XEN_HVM_SET_ATTR            XEN_HVM                 5.12
        xen_hvm_evtchn_send         KVM_XEN_HVM_EVTCHN_SEND         XEN_HVM                 5.19
        hyperv_eventfd              KVM_HYPERV_EVENTFD              HYPERV_EVENTFD          4.17
        memory_encrypt_op           KVM_MEMORY_ENCRYPT_OP           -                       4.16
        memory_encrypt_reg_region   KVM_MEMORY_ENCRYPT_REG_REGION   -                       4.16
        memory_encrypt_unreg_region KVM_MEMORY_ENCRYPT_UNREG_REGION -                       4.16
    """,
    "VcpuFd": """
        run                         KVM_RUN                         -                       2.6.20
        get_regs                    KVM_GET_REGS                    -                       2.6.20
        set_regs                    KVM_SET_REGS                    -                       2.6.20
        get_sregs                   KVM_GET_SREGS                   -                       2.6.20
        set_sregs                   KVM_SET_SREGS                   -                       2.6.20
        get_sregs2                  KVM_GET_SREGS2                  SREGS2                  5.14
        set_sregs2                  KVM_SET_SREGS2                  SREGS2                  5.14
        translate                   KVM_TRANSLATE                   -                       2.6.20
        interrupt                   KVM_INTERRUPT                   -                       2.6.20
        nmi                         KVM_NMI                         USER_NMI                2.6.28
        smi                         KVM_SMI                         X86_SMM                 4.2
        get_msrs                    KVM_GET_MSRS                    -                       2.6.20
        set_msrs                    KVM_SET_MSRS                    -                       2.6.20
        set_cpuid                   KVM_SET_CPUID                   -                       2.6.22
        set_cpuid2                  KVM_SET_CPUID2                  EXT_CPUID               2.6.25
        get_cpuid2                  KVM_GET_CPUID2                  EXT_CPUID               2.6.25
        get_supported_hv_cpuid      KVM_GET_SUPPORTED_HV_CPUID      HYPERV_CPUID            5.0
        set_signal_mask             KVM_SET_SIGNAL_MASK             -                       2.6.22
        get_fpu                     KVM_GET_FPU                     -                       2.6.22
        set_fpu                     KVM_SET_FPU                     -                       2.6.22
        get_lapic                   KVM_GET_LAPIC                   IRQCHIP                 2.6.24
        set_lapic                   KVM_SET_LAPIC                   IRQCHIP                 2.6.24
        tpr_access_reporting        KVM_TPR_ACCESS_REPORTING        VAPIC                   2.6.25
        set_vapic_addr              KVM_SET_VAPIC_ADDR              VAPIC                   2.6.25
        get_mp_state                KVM_GET_MP_STATE                MP_STATE                2.6.26
        set_mp_state                KVM_SET_MP_STATE                MP_STATE                2.6.26
        set_guest_debug             KVM_SET_GUEST_DEBUG             SET_GUEST_DEBUG         2.6.30
        x86_setup_mce               KVM_X86_SETUP_MCE               MCE                     2.6.32
        x86_set_mce                 KVM_X86_SET_MCE                 MCE                     2.6.32
        get_vcpu_events             KVM_GET_VCPU_EVENTS             VCPU_EVENTS             2.6.33
        set_vcpu_events             KVM_SET_VCPU_EVENTS             VCPU_EVENTS             2.6.33
        get_debugregs               KVM_GET_DEBUGREGS               DEBUGREGS               2.6.35
        set_debugregs               KVM_SET_DEBUGREGS               DEBUGREGS               2.6.35
        enable_cap                  KVM_ENABLE_CAP                  ENABLE_CAP              4.5
        get_xsave                   KVM_GET_XSAVE                   XSAVE                   2.6.36
        set_xsave                   KVM_SET_XSAVE                   XSAVE                   2.6.36
        get_xsave2                  KVM_GET_XSAVE2                  XSAVE2                  5.17
        get_xcrs                    KVM_GET_XCRS                    XCRS                    2.6.36
        set_xcrs                    KVM_SET_XCRS                    XCRS                    2.6.36
        get_tsc_khz                 KVM_GET_TSC_KHZ                 GET_TSC_KHZ             2.6.39
        set_tsc_khz                 KVM_SET_TSC_KHZ                 TSC_CONTROL             2.6.39
        kvmclock_ctrl               KVM_KVMCLOCK_CTRL               KVMCLOCK_CTRL           3.5
        get_nested_state            KVM_GET_NESTED_STATE            NESTED_STATE            4.19
        set_nested_state            KVM_SET_NESTED_STATE            NESTED_STATE            4.19
        get_device_attr             KVM_GET_DEVICE_ATTR             VCPU_ATTRIBUTES         5.16
        set_device_attr             KVM_SET_DEVICE_ATTR             VCPU_ATTRIBUTES         5.16
        has_device_attr             KVM_HAS_DEVICE_ATTR             VCPU_ATTRIBUTES         5.16
        xen_vcpu_get_attr           KVM_XEN_VCPU_GET_ATTR           XEN_HVM                 5.12
        xen_vcpu_set_attr           KVM_XEN_VCPU_SET_ATTR           XEN_HVM                 5.12
        get_stats_fd                KVM_GET_STATS_FD                BINARY_STATS_FD         5.14
        memory_encrypt_op           KVM_MEMORY_ENCRYPT_OP           -                       6.16
        pre_fault_memory            KVM_PRE_FAULT_MEMORY            PRE_FAULT_MEMORY        6.11
        get_one_reg                 KVM_GET_ONE_REG                 ONE_REG                 6.18
        set_one_reg                 KVM_SET_ONE_REG                 ONE_REG                 6.18
        get_reg_list                KVM_GET_REG_LIST                ONE_REG                 6.18
    """,
    "DeviceFd": """
        get_device_attr             KVM_GET_DEVICE_ATTR             DEVICE_CTRL             3.10
        set_device_attr             KVM_SET_DEVICE_ATTR             DEVICE_CTRL             3.10
        has_device_attr             KVM_HAS_DEVICE_ATTR             DEVICE_CTRL             3.10
    """,
}


class Entry:
    """One request on one kind of fd. `capability` is without KVM_CAP_, or empty; `since` is a version of Linux."""

    __slots__ = ("capability", "kind", "method", "request", "since")

    def __init__(self, kind: str, method: str, request: str, capability: str, since: str) -> None:
        self.kind = kind
        self.method = method
        self.request = request
        self.capability = capability
        self.since = since

    def __repr__(self) -> str:
        return f"<{self.kind}.{self.method}: {self.request}>"


def entries() -> list[Entry]:
    """Return the whole catalogue."""
    found = []
    for kind, table in _TABLE.items():
        for line in table.strip().splitlines():
            method, request, capability, since = line.split()
            found.append(Entry(kind, method, request, capability.strip("-"), since))
    return found


def lacking(fd: Fd, request: str) -> str:
    """Return a hint that names the capability that `request` on `fd` needs and this KVM lacks, or ""."""
    kind = type(fd).__name__
    needed = [e.capability for e in entries() if e.kind == kind and e.request == request and e.capability]
    if not needed:
        return ""
    name = f"KVM_CAP_{needed[0]}"
    present = _check(fd, vars(capabilities)[name])
    if present is None:
        return f"it needs {name}"
    return "" if present else f"this KVM lacks {name}, which this needs"


def _check(fd: Fd, cap: int) -> int | None:
    """Return what KVM says about the capability, None when it cannot be asked."""
    asked: Any = fd
    while asked is not None and not hasattr(asked, "check_extension"):
        asked = asked.parent
    try:
        return None if asked is None else int(asked.check_extension(cap))
    except KvmError:
        return None
