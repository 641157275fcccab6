"""The state of a processor after reset: what its registers hold when it has done nothing yet. Data.

SDM vol. 3A section 10.1.1 (table 10-1), 12.4.7.1 for the local APIC, vol. 1 section 13.6 for XSAVE; APM vol. 2
section 14.1.3. A few MSRs differ from vendor to vendor and from KVM to KVM; those are read from a vCPU that never ran.
"""

from __future__ import annotations

import struct

DR6, DR7 = 0xFFFF_0FF0, 0x400
XCR0 = 1  # x87, nothing else
FCW, MXCSR = 0x37F, 0x1F80  # as FNINIT and LDMXCSR users expect it, and as KVM and QEMU have it (the manual: 0x40)
XSAVE_SIZE = 4096
FTWX = 0  # FXSAVE form: all registers empty

# MSRs beside those that KVM lists: memory types (variable ranges, fixed ranges, default), machine checks.
MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)
MCG_STATUS, MCG_CTL, MC0_CTL = 0x17A, 0x17B, 0x400
PER_BANK = 4
IA32_TSC = 0x10
TSC_TO_SYNCHRONIZE = 0  # KVM takes a 0 from the host for "as the other vCPUs", which a plugged processor wants

IA32_TSC_DEADLINE = 0x6E0
LAST_MSRS = (IA32_TSC_DEADLINE,)  # to be set after the time-stamp counter and the local APIC, which it refers to

HV_VP_INDEX = 0x4000_0002  # the number of a processor, which only the host can change
# MSRs that are the machine's, not the processor's: KVM's wall clock; Hyper-V's guest id, hypercall page, reference
# clock, crash and re-enlightenment registers. One processor's reset leaves them alone.
OF_MACHINE = frozenset(
    (0x11, 0x4B56_4D00, 0x4000_0000, 0x4000_0001, 0x4000_0020, 0x4000_0021, *range(0x4000_0100, 0x4000_0109))
)

# Registers of the local APIC, by their offset in its page.
APIC_ID, APIC_VERSION, APIC_DFR, APIC_SVR = 0x20, 0x30, 0xE0, 0xF0
LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x2F0, *range(0x320, 0x380, 0x10)
APIC_SIZE = 0x400
MASKED, EXT_INT = 1 << 16, 7 << 8
LVT_ENTRIES_WITH_CMCI = 7


def machine_check_msrs(banks: int) -> tuple[int, ...]:
    """Return the MSRs of `banks` machine-check banks: status and control, then four for each."""
    return (MCG_STATUS, MCG_CTL, *range(MC0_CTL, MC0_CTL + PER_BANK * banks)) if banks else ()


def xsave_area() -> bytes:
    """Return an XSAVE area in which every component has its initial state (XSTATE_BV is 0)."""
    area = bytearray(XSAVE_SIZE)
    struct.pack_into("<H", area, 0, FCW)
    struct.pack_into("<I", area, 24, MXCSR)
    return bytes(area)


def apic_page(apic_id: int, version: int, boot_processor: bool) -> bytes:
    """Return the registers of a local APIC in xAPIC mode after reset.

    `version`: its version register, which tells how many entries of the local vector table there are. Those are
    masked; LINT0 of the boot processor lets the 8259's interrupts through, as firmware would leave it.
    """
    page = bytearray(APIC_SIZE)
    values = {
        APIC_ID: (apic_id & 0xFF) << 24,
        APIC_VERSION: version,
        APIC_DFR: 0xFFFF_FFFF,
        APIC_SVR: 0xFF,
        **dict.fromkeys((LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR), MASKED),
    }
    if (version >> 16 & 0xFF) + 1 >= LVT_ENTRIES_WITH_CMCI:
        values[LVT_CMCI] = MASKED
    if boot_processor:
        values[LVT_LINT0] = EXT_INT
    for offset, value in values.items():
        struct.pack_into("<I", page, offset, value)
    return bytes(page)
