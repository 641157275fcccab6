"""What a vCPU can do: CPUID of old, features that can be turned on or off, PMU events (asm/kvm.h, linux/kvm.h)."""

from __future__ import annotations

from .base import IOW, IOWR, Struct, u32, u64
from .basic import kvm_cpuid2

KVM_CPUID_FLAG_STATEFUL_FUNC = 1 << 1
KVM_CPUID_FLAG_STATE_READ_NEXT = 1 << 2

# Types of VM, for KVM_CREATE_VM.
KVM_X86_DEFAULT_VM = 0
KVM_X86_SW_PROTECTED_VM = 1
KVM_X86_SEV_VM = 2
KVM_X86_SEV_ES_VM = 3
KVM_X86_SNP_VM = 4
KVM_X86_TDX_VM = 5

# Arguments of KVM_ENABLE_CAP, by capability: X86_DISABLE_EXITS, DISABLE_QUIRKS2, X2APIC_API, X86_BUS_LOCK_EXIT,
# PMU_CAPABILITY, X86_NOTIFY_VMEXIT.
KVM_X86_DISABLE_EXITS_MWAIT = 1 << 0
KVM_X86_DISABLE_EXITS_HLT = 1 << 1
KVM_X86_DISABLE_EXITS_PAUSE = 1 << 2
KVM_X86_DISABLE_EXITS_CSTATE = 1 << 3
KVM_X86_DISABLE_EXITS_APERFMPERF = 1 << 4
KVM_X86_QUIRK_LINT0_REENABLED = 1 << 0
KVM_X86_QUIRK_CD_NW_CLEARED = 1 << 1
KVM_X86_QUIRK_LAPIC_MMIO_HOLE = 1 << 2
KVM_X86_QUIRK_OUT_7E_INC_RIP = 1 << 3
KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT = 1 << 4
KVM_X86_QUIRK_FIX_HYPERCALL_INSN = 1 << 5
KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS = 1 << 6
KVM_X86_QUIRK_SLOT_ZAP_ALL = 1 << 7
KVM_X86_QUIRK_STUFF_FEATURE_MSRS = 1 << 8
KVM_X86_QUIRK_IGNORE_GUEST_PAT = 1 << 9
KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM = 1 << 10
KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT = 1 << 11
KVM_X2APIC_API_USE_32BIT_IDS = 1 << 0
KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1
KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST = 1 << 2
KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST = 1 << 3
KVM_BUS_LOCK_DETECTION_OFF = 1 << 0
KVM_BUS_LOCK_DETECTION_EXIT = 1 << 1
KVM_PMU_CAP_DISABLE = 1 << 0
KVM_X86_NOTIFY_VMEXIT_ENABLED = 1 << 0
KVM_X86_NOTIFY_VMEXIT_USER = 1 << 1

KVM_PMU_EVENT_ALLOW = 0
KVM_PMU_EVENT_DENY = 1
KVM_PMU_EVENT_FLAG_MASKED_EVENTS = 1 << 0
KVM_PMU_EVENT_FLAGS_VALID_MASK = 1
KVM_PMU_MASKED_ENTRY_EVENT_SELECT = 0xF_0000_00FF
KVM_PMU_MASKED_ENTRY_UMASK_MASK = 0xFF << 56
KVM_PMU_MASKED_ENTRY_UMASK_MATCH = 0xFF << 8
KVM_PMU_MASKED_ENTRY_EXCLUDE = 1 << 55
KVM_PMU_MASKED_ENTRY_UMASK_MASK_SHIFT = 56


class kvm_cpuid_entry(Struct):
    """A CPUID leaf without subleaves."""

    __slots__ = ()
    _fields_ = [("function", u32), ("eax", u32), ("ebx", u32), ("ecx", u32), ("edx", u32), ("padding", u32)]


class kvm_cpuid(Struct):
    """Head of KVM_SET_CPUID: `nent` entries follow it."""

    __slots__ = ()
    _fields_ = [("nent", u32), ("padding", u32), ("entries", kvm_cpuid_entry * 0)]


class kvm_pmu_event_filter(Struct):
    """Head of KVM_SET_PMU_EVENT_FILTER: `nevents` events follow it."""

    __slots__ = ()
    _fields_ = [
        ("action", u32),
        ("nevents", u32),
        ("fixed_counter_bitmap", u32),
        ("flags", u32),
        ("pad", u32 * 4),
        ("events", u64 * 0),
    ]


KVM_GET_EMULATED_CPUID = IOWR("KVM_GET_EMULATED_CPUID", 0x09, kvm_cpuid2)
KVM_SET_CPUID = IOW("KVM_SET_CPUID", 0x8A, kvm_cpuid)
KVM_SET_PMU_EVENT_FILTER = IOW("KVM_SET_PMU_EVENT_FILTER", 0xB2, kvm_pmu_event_filter)
KVM_GET_SUPPORTED_HV_CPUID = IOWR("KVM_GET_SUPPORTED_HV_CPUID", 0xC1, kvm_cpuid2)
