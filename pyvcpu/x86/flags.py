"""Bits of the control registers (Intel SDM vol. 3A section 2.5; AMD APM vol. 2 section 3.1)."""

from __future__ import annotations

from enum import IntFlag


class CR0(IntFlag):
    """Control register 0."""

    PE = 1 << 0  # protected mode
    MP = 1 << 1  # WAIT traps together with TS
    EM = 1 << 2  # no FPU: emulate
    TS = 1 << 3  # task switched
    ET = 1 << 4  # always 1
    NE = 1 << 5  # FPU errors as #MF
    WP = 1 << 16  # CPL0 heeds read-only pages
    AM = 1 << 18  # alignment mask
    NW = 1 << 29  # not write-through
    CD = 1 << 30  # cache disable
    PG = 1 << 31  # paging


class CR4(IntFlag):
    """Control register 4."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4  # 4 MiB pages without PAE
    PAE = 1 << 5  # 64-bit page-table entries
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22


class EFER(IntFlag):
    """Extended feature enable register, MSR 0xC0000080."""

    SCE = 1 << 0  # SYSCALL
    LME = 1 << 8  # long mode enable
    LMA = 1 << 10  # long mode active
    NXE = 1 << 11  # no-execute pages
    SVME = 1 << 12  # SVM


class PTE(IntFlag):
    """Page-table entry (SDM vol. 3A section 4.5)."""

    P = 1 << 0  # present
    RW = 1 << 1  # writable
    US = 1 << 2  # user
    PS = 1 << 7  # a large page, not a table
