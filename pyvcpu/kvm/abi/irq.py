"""Interrupts: the controllers in the kernel, lines, messages, routes and event file descriptors (linux/kvm.h)."""

from __future__ import annotations

from .base import IO, IOR, IOW, IOWR, Struct, Union, s32, s64, u8, u16, u32, u64

KVM_NR_INTERRUPTS = 256
KVM_IOAPIC_NUM_PINS = 24

# kvm_irqchip.chip_id
KVM_IRQCHIP_PIC_MASTER = 0
KVM_IRQCHIP_PIC_SLAVE = 1
KVM_IRQCHIP_IOAPIC = 2
KVM_NR_IRQCHIPS = 3

# kvm_irq_routing_entry.type
KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_IRQ_ROUTING_HV_SINT = 4
KVM_IRQ_ROUTING_XEN_EVTCHN = 5
KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL = 0xFFFF_FFFF

KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1
KVM_MSI_VALID_DEVID = 1 << 0

KVM_PIT_SPEAKER_DUMMY = 1 << 0
KVM_PIT_FLAGS_HPET_LEGACY = 1 << 0
KVM_PIT_FLAGS_SPEAKER_DATA_ON = 1 << 1


class _irq_or_status(Union):
    __slots__ = ()
    _fields_ = [("irq", u32), ("status", s32)]


class kvm_irq_level(Struct):
    """KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS argument: a GSI and its level."""

    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("u", _irq_or_status), ("level", u32)]


class kvm_pic_state(Struct):
    """One 8259A (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("last_irr", u8),
        ("irr", u8),
        ("imr", u8),
        ("isr", u8),
        ("priority_add", u8),
        ("irq_base", u8),
        ("read_reg_select", u8),
        ("poll", u8),
        ("special_mask", u8),
        ("init_state", u8),
        ("auto_eoi", u8),
        ("rotate_on_auto_eoi", u8),
        ("special_fully_nested_mode", u8),
        ("init4", u8),
        ("elcr", u8),
        ("elcr_mask", u8),
    ]


class _redirection_fields(Struct):
    __slots__ = ()
    _fields_ = [
        ("vector", u8),
        ("delivery_mode", u8, 3),
        ("dest_mode", u8, 1),
        ("delivery_status", u8, 1),
        ("polarity", u8, 1),
        ("remote_irr", u8, 1),
        ("trig_mode", u8, 1),
        ("mask", u8, 1),
        ("reserve", u8, 7),
        ("reserved", u8 * 4),
        ("dest_id", u8),
    ]


class _redirection(Union):
    __slots__ = ()
    _fields_ = [("bits", u64), ("fields", _redirection_fields)]


class kvm_ioapic_state(Struct):
    """The IOAPIC (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("base_address", u64),
        ("ioregsel", u32),
        ("id", u32),
        ("irr", u32),
        ("pad", u32),
        ("redirtbl", _redirection * KVM_IOAPIC_NUM_PINS),
    ]


class _chip(Union):
    __slots__ = ()
    _fields_ = [("dummy", u8 * 512), ("pic", kvm_pic_state), ("ioapic", kvm_ioapic_state)]


class kvm_irqchip(Struct):
    """KVM_GET_IRQCHIP, KVM_SET_IRQCHIP argument."""

    __slots__ = ()
    _fields_ = [("chip_id", u32), ("pad", u32), ("chip", _chip)]


class kvm_pit_config(Struct):
    """KVM_CREATE_PIT2 argument."""

    __slots__ = ()
    _fields_ = [("flags", u32), ("pad", u32 * 15)]


class kvm_pit_channel_state(Struct):
    """One of the three counters of the 8254; count_load_time is in ns (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("count", u32),
        ("latched_count", u16),
        ("count_latched", u8),
        ("status_latched", u8),
        ("status", u8),
        ("read_state", u8),
        ("write_state", u8),
        ("write_latch", u8),
        ("rw_mode", u8),
        ("mode", u8),
        ("bcd", u8),
        ("gate", u8),
        ("count_load_time", s64),
    ]


class kvm_pit_state(Struct):
    """KVM_GET_PIT, KVM_SET_PIT argument (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [("channels", kvm_pit_channel_state * 3)]


class kvm_pit_state2(Struct):
    """KVM_GET_PIT2, KVM_SET_PIT2 argument (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [("channels", kvm_pit_channel_state * 3), ("flags", u32), ("reserved", u32 * 9)]


class kvm_reinject_control(Struct):
    """KVM_REINJECT_CONTROL argument (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [("pit_reinject", u8), ("reserved", u8 * 31)]


class kvm_irq_routing_irqchip(Struct):
    """A route to a pin of a controller in the kernel."""

    __slots__ = ()
    _fields_ = [("irqchip", u32), ("pin", u32)]


class _pad_or_devid(Union):
    __slots__ = ()
    _fields_ = [("pad", u32), ("devid", u32)]


class kvm_irq_routing_msi(Struct):
    """A route to a message."""

    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("address_lo", u32), ("address_hi", u32), ("data", u32), ("u", _pad_or_devid)]


class kvm_irq_routing_hv_sint(Struct):
    """A route to a synthetic interrupt source of Hyper-V."""

    __slots__ = ()
    _fields_ = [("vcpu", u32), ("sint", u32)]


class kvm_irq_routing_xen_evtchn(Struct):
    """A route to a Xen event channel; KVM_XEN_HVM_EVTCHN_SEND argument."""

    __slots__ = ()
    _fields_ = [("port", u32), ("vcpu", u32), ("priority", u32)]


class _route(Union):
    __slots__ = ()
    _fields_ = [
        ("irqchip", kvm_irq_routing_irqchip),
        ("msi", kvm_irq_routing_msi),
        ("hv_sint", kvm_irq_routing_hv_sint),
        ("xen_evtchn", kvm_irq_routing_xen_evtchn),
        ("pad", u32 * 8),
    ]


class kvm_irq_routing_entry(Struct):
    """Where a GSI goes."""

    __slots__ = ()
    _fields_ = [("gsi", u32), ("type", u32), ("flags", u32), ("pad", u32), ("u", _route)]


class kvm_irq_routing(Struct):
    """Head of KVM_SET_GSI_ROUTING: `nr` entries follow it."""

    __slots__ = ()
    _fields_ = [("nr", u32), ("flags", u32), ("entries", kvm_irq_routing_entry * 0)]


class kvm_irqfd(Struct):
    """KVM_IRQFD argument."""

    __slots__ = ()
    _fields_ = [("fd", u32), ("gsi", u32), ("flags", u32), ("resamplefd", u32), ("pad", u8 * 16)]


class kvm_msi(Struct):
    """KVM_SIGNAL_MSI argument."""

    __slots__ = ()
    _fields_ = [
        ("address_lo", u32),
        ("address_hi", u32),
        ("data", u32),
        ("flags", u32),
        ("devid", u32),
        ("pad", u8 * 12),
    ]


class kvm_interrupt(Struct):
    """KVM_INTERRUPT argument: a vector."""

    __slots__ = ()
    _fields_ = [("irq", u32)]


class kvm_tpr_access_ctl(Struct):
    """KVM_TPR_ACCESS_REPORTING argument."""

    __slots__ = ()
    _fields_ = [("enabled", u32), ("flags", u32), ("reserved", u32 * 8)]


class kvm_vapic_addr(Struct):
    """KVM_SET_VAPIC_ADDR argument: a guest physical address."""

    __slots__ = ()
    _fields_ = [("vapic_addr", u64)]


KVM_IRQ_LINE = IOW("KVM_IRQ_LINE", 0x61, kvm_irq_level)
KVM_GET_IRQCHIP = IOWR("KVM_GET_IRQCHIP", 0x62, kvm_irqchip)
KVM_SET_IRQCHIP = IOR("KVM_SET_IRQCHIP", 0x63, kvm_irqchip)
KVM_CREATE_PIT = IO("KVM_CREATE_PIT", 0x64)
KVM_GET_PIT = IOWR("KVM_GET_PIT", 0x65, kvm_pit_state)
KVM_SET_PIT = IOR("KVM_SET_PIT", 0x66, kvm_pit_state)
KVM_IRQ_LINE_STATUS = IOWR("KVM_IRQ_LINE_STATUS", 0x67, kvm_irq_level)
KVM_SET_GSI_ROUTING = IOW("KVM_SET_GSI_ROUTING", 0x6A, kvm_irq_routing)
KVM_REINJECT_CONTROL = IO("KVM_REINJECT_CONTROL", 0x71)
KVM_IRQFD = IOW("KVM_IRQFD", 0x76, kvm_irqfd)
KVM_CREATE_PIT2 = IOW("KVM_CREATE_PIT2", 0x77, kvm_pit_config)
KVM_SET_BOOT_CPU_ID = IO("KVM_SET_BOOT_CPU_ID", 0x78)
KVM_INTERRUPT = IOW("KVM_INTERRUPT", 0x86, kvm_interrupt)
KVM_TPR_ACCESS_REPORTING = IOWR("KVM_TPR_ACCESS_REPORTING", 0x92, kvm_tpr_access_ctl)
KVM_SET_VAPIC_ADDR = IOW("KVM_SET_VAPIC_ADDR", 0x93, kvm_vapic_addr)
KVM_NMI = IO("KVM_NMI", 0x9A)
KVM_GET_PIT2 = IOR("KVM_GET_PIT2", 0x9F, kvm_pit_state2)
KVM_SET_PIT2 = IOW("KVM_SET_PIT2", 0xA0, kvm_pit_state2)
KVM_SIGNAL_MSI = IOW("KVM_SIGNAL_MSI", 0xA5, kvm_msi)
KVM_SMI = IO("KVM_SMI", 0xB7)
