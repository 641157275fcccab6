"""The part of the KVM ABI that every boot needs: system, memory, registers, CPUID, MP state.

A module of its own because a boot is measured in milliseconds and each ctypes structure costs some microseconds.
The names and the order of fields are those of linux/kvm.h and asm/kvm.h.
"""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from .base import IO, IOR, IOW, IOWR, Struct

KVM_API_VERSION = 12

# Capabilities that the launcher itself asks for (abi.capabilities has them all).
KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_EXT_CPUID = 7
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_MCE = 31
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_TSC_CONTROL = 60
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_SYNC_REGS = 74
KVM_CAP_X86_SMM = 117
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_X2APIC_API = 129
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_COALESCED_PIO = 162
KVM_CAP_DIRTY_LOG_RING = 192
KVM_CAP_XSAVE2 = 208
KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223

# Exit reasons that the run loop looks for (abi.Exit has them all).
KVM_EXIT_IO = 2
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26

# kvm_run.kvm_valid_regs, kvm_dirty_regs (asm/kvm.h).
KVM_SYNC_X86_REGS = 1 << 0
KVM_SYNC_X86_SREGS = 1 << 1
KVM_SYNC_X86_EVENTS = 1 << 2

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1

KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0  # the kernel's spelling


class kvm_userspace_memory_region(Struct):
    """KVM_SET_USER_MEMORY_REGION argument (linux/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


class kvm_regs(Struct):
    """KVM_GET_REGS, KVM_SET_REGS: the general registers (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("rax", c_uint64),
        ("rbx", c_uint64),
        ("rcx", c_uint64),
        ("rdx", c_uint64),
        ("rsi", c_uint64),
        ("rdi", c_uint64),
        ("rsp", c_uint64),
        ("rbp", c_uint64),
        ("r8", c_uint64),
        ("r9", c_uint64),
        ("r10", c_uint64),
        ("r11", c_uint64),
        ("r12", c_uint64),
        ("r13", c_uint64),
        ("r14", c_uint64),
        ("r15", c_uint64),
        ("rip", c_uint64),
        ("rflags", c_uint64),
    ]


class kvm_segment(Struct):
    """A segment register with its descriptor cache (asm/kvm.h). A limit above 1 MiB needs g=1."""

    __slots__ = ()
    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    ]


class kvm_dtable(Struct):
    """GDTR or IDTR (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class kvm_sregs(Struct):
    """KVM_GET_SREGS, KVM_SET_SREGS: segments, control registers, EFER, APIC base (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("cs", kvm_segment),
        ("ds", kvm_segment),
        ("es", kvm_segment),
        ("fs", kvm_segment),
        ("gs", kvm_segment),
        ("ss", kvm_segment),
        ("tr", kvm_segment),
        ("ldt", kvm_segment),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        ("cr0", c_uint64),
        ("cr2", c_uint64),
        ("cr3", c_uint64),
        ("cr4", c_uint64),
        ("cr8", c_uint64),
        ("efer", c_uint64),
        ("apic_base", c_uint64),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class kvm_translation(Struct):
    """KVM_TRANSLATE argument: a linear address in, where it is in guest physical memory out (linux/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    ]


class kvm_mp_state(Struct):
    """KVM_GET_MP_STATE, KVM_SET_MP_STATE (linux/kvm.h)."""

    __slots__ = ()
    _fields_ = [("mp_state", c_uint32)]


class kvm_cpuid_entry2(Struct):
    """One CPUID leaf (asm/kvm.h); `index` counts only with KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""

    __slots__ = ()
    _fields_ = [
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    ]


class kvm_cpuid2(Struct):
    """Head of KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2: `nent` entries follow it (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [("nent", c_uint32), ("padding", c_uint32), ("entries", kvm_cpuid_entry2 * 0)]


class kvm_enable_cap(Struct):
    """KVM_ENABLE_CAP argument (linux/kvm.h)."""

    __slots__ = ()
    _fields_ = [("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64)]


KVM_GET_API_VERSION = IO("KVM_GET_API_VERSION", 0x00)
KVM_CREATE_VM = IO("KVM_CREATE_VM", 0x01)
KVM_CHECK_EXTENSION = IO("KVM_CHECK_EXTENSION", 0x03)
KVM_GET_VCPU_MMAP_SIZE = IO("KVM_GET_VCPU_MMAP_SIZE", 0x04)
KVM_GET_SUPPORTED_CPUID = IOWR("KVM_GET_SUPPORTED_CPUID", 0x05, kvm_cpuid2)

KVM_CREATE_VCPU = IO("KVM_CREATE_VCPU", 0x41)
KVM_SET_USER_MEMORY_REGION = IOW("KVM_SET_USER_MEMORY_REGION", 0x46, kvm_userspace_memory_region)
KVM_SET_TSS_ADDR = IO("KVM_SET_TSS_ADDR", 0x47)
KVM_SET_IDENTITY_MAP_ADDR = IOW("KVM_SET_IDENTITY_MAP_ADDR", 0x48, c_uint64)
KVM_CREATE_IRQCHIP = IO("KVM_CREATE_IRQCHIP", 0x60)

KVM_RUN = IO("KVM_RUN", 0x80)
KVM_GET_REGS = IOR("KVM_GET_REGS", 0x81, kvm_regs)
KVM_SET_REGS = IOW("KVM_SET_REGS", 0x82, kvm_regs)
KVM_GET_SREGS = IOR("KVM_GET_SREGS", 0x83, kvm_sregs)
KVM_SET_SREGS = IOW("KVM_SET_SREGS", 0x84, kvm_sregs)
KVM_TRANSLATE = IOWR("KVM_TRANSLATE", 0x85, kvm_translation)
KVM_SET_CPUID2 = IOW("KVM_SET_CPUID2", 0x90, kvm_cpuid2)
KVM_GET_CPUID2 = IOWR("KVM_GET_CPUID2", 0x91, kvm_cpuid2)
KVM_GET_MP_STATE = IOR("KVM_GET_MP_STATE", 0x98, kvm_mp_state)
KVM_SET_MP_STATE = IOW("KVM_SET_MP_STATE", 0x99, kvm_mp_state)
KVM_ENABLE_CAP = IOW("KVM_ENABLE_CAP", 0xA3, kvm_enable_cap)
KVM_GET_TSC_KHZ = IO("KVM_GET_TSC_KHZ", 0xA3)
KVM_X86_SETUP_MCE = IOW("KVM_X86_SETUP_MCE", 0x9C, c_uint64)
KVM_X86_GET_MCE_CAP_SUPPORTED = IOR("KVM_X86_GET_MCE_CAP_SUPPORTED", 0x9D, c_uint64)
