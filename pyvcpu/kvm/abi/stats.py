"""Binary statistics of a VM or vCPU, read from a file descriptor of their own (linux/kvm.h)."""

from __future__ import annotations

from .base import IO, Struct, s16, u8, u16, u32

KVM_STATS_TYPE_SHIFT = 0
KVM_STATS_TYPE_MASK = 0xF
KVM_STATS_TYPE_CUMULATIVE = 0
KVM_STATS_TYPE_INSTANT = 1
KVM_STATS_TYPE_PEAK = 2
KVM_STATS_TYPE_LINEAR_HIST = 3
KVM_STATS_TYPE_LOG_HIST = 4
KVM_STATS_TYPE_MAX = 4
KVM_STATS_UNIT_SHIFT = 4
KVM_STATS_UNIT_MASK = 0xF0
KVM_STATS_UNIT_NONE = 0x00
KVM_STATS_UNIT_BYTES = 0x10
KVM_STATS_UNIT_SECONDS = 0x20
KVM_STATS_UNIT_CYCLES = 0x30
KVM_STATS_UNIT_BOOLEAN = 0x40
KVM_STATS_UNIT_MAX = 0x40
KVM_STATS_BASE_SHIFT = 8
KVM_STATS_BASE_MASK = 0xF00
KVM_STATS_BASE_POW10 = 0x000
KVM_STATS_BASE_POW2 = 0x100
KVM_STATS_BASE_MAX = 0x100


class kvm_stats_header(Struct):
    """The head of the file: how many statistics there are, and where their parts lie."""

    __slots__ = ()
    _fields_ = [
        ("flags", u32),
        ("name_size", u32),
        ("num_desc", u32),
        ("id_offset", u32),
        ("desc_offset", u32),
        ("data_offset", u32),
    ]


class kvm_stats_desc(Struct):
    """One statistic; kvm_stats_header.name_size bytes of name follow it."""

    __slots__ = ()
    _fields_ = [
        ("flags", u32),
        ("exponent", s16),
        ("size", u16),
        ("offset", u32),
        ("bucket_size", u32),
        ("name", u8 * 0),
    ]


KVM_GET_STATS_FD = IO("KVM_GET_STATS_FD", 0xCE)
