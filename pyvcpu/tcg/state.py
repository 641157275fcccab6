"""A vCPU's state in the structures of KVM_GET_x and KVM_SET_x, and in kvm_run for KVM_CAP_SYNC_REGS.

Called on the vCPU's thread, or under its mutex while it is not in KVM_RUN.
"""

from __future__ import annotations

import errno
from struct import Struct

from .contract import EVENT_EXCEPTION, EVENT_INTERRUPT, EVENT_NMI, EVENT_SOFTWARE, Event

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .contract import Segment
    from .platform import Platform

REGS = Struct("<18Q")
SREGS = Struct("<" + "QIH9Bx" * 8 + "QH6x" * 2 + "7Q4Q")
SREGS2 = Struct("<" + "QIH9Bx" * 8 + "QH6x" * 2 + "7Q5Q")
EVENTS = Struct("<4BI4B4BII4BB26xBQ")
DEBUGREGS = Struct("<16Q")
# kvm_regs and kvm_sregs have other orders than the processor (asm/kvm.h).
REG_ORDER = (0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)
SEG_ORDER = (1, 3, 0, 4, 5, 2, 7, 6)  # cs ds es fs gs ss tr ldt of ES CS SS DS FS GS LDTR TR
RF, FIXED_FLAG = 1 << 16, 2
M32 = 0xFFFF_FFFF
PE, PG, NW, CD, PAE, LME, LMA = 1, 1 << 31, 1 << 29, 1 << 30, 1 << 5, 1 << 8, 1 << 10
CR0_BITS = 0xE005003F
CR4_BITS = 0x3F9FF8 | 0x7  # what the processor has at most; Cpu.cr4_allowed is what CPUID shows of it
EFER_BITS = 0xD01
VALID_NMI, VALID_SIPI, VALID_SHADOW, VALID_SMM, VALID_PAYLOAD, VALID_TRIPLE = 1, 2, 4, 8, 16, 32
SHADOW_MOV_SS, SHADOW_STI = 1, 2
SREGS2_PDPTRS = 1


def get_regs(vcpu: Platform) -> bytes:
    """Return kvm_regs."""
    cpu = vcpu.cpu
    regs = cpu.regs
    return REGS.pack(*[regs[n] for n in REG_ORDER], cpu.rip, cpu.get_rflags())


def set_regs(vcpu: Platform, data: bytes) -> None:
    """Take kvm_regs."""
    cpu = vcpu.cpu
    values = REGS.unpack(data)
    for number, value in zip(REG_ORDER, values, strict=False):
        cpu.regs[number] = value
    moved, cpu.rip = cpu.rip != values[16], values[16]
    cpu.set_rflags(values[17] & 0x3F7FD5 | FIXED_FLAG)
    if cpu.pending is not None and cpu.pending.kind == EVENT_EXCEPTION:
        cpu.pending = None
    if moved:
        vcpu.drop_completion()  # what was to be finished is not the next instruction any more


def pack_segment(segment: Segment) -> tuple[int, ...]:
    """Return a segment in the order of kvm_segment."""
    s = segment
    return (s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable)


def _unpack_segment(segment: Segment, values: tuple[int, ...]) -> None:
    s = segment
    (s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable) = values
    s.type, s.dpl = s.type & 15, s.dpl & 3
    s.present, s.db, s.s, s.l, s.g, s.avl = s.present & 1, s.db & 1, s.s & 1, s.l & 1, s.g & 1, s.avl & 1
    s.unusable = int(bool(s.unusable) or not s.present)


def _sregs(vcpu: Platform) -> list[int]:
    """Return what kvm_sregs and kvm_sregs2 share."""
    cpu = vcpu.cpu
    values: list[int] = []
    for number in SEG_ORDER:
        values += pack_segment(cpu.segs[number])
    values += [cpu.gdt_base, cpu.gdt_limit, cpu.idt_base, cpu.idt_limit]
    values += [cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, vcpu.get_cr8(), cpu.efer, vcpu.apic_base]
    return values


def get_sregs(vcpu: Platform) -> bytes:
    """Return kvm_sregs."""
    bitmap = [0, 0, 0, 0]
    event = vcpu.cpu.pending
    if event is not None and event.kind == EVENT_INTERRUPT:
        bitmap[event.vector >> 6] |= 1 << (event.vector & 63)
    return SREGS.pack(*_sregs(vcpu), *bitmap)


def set_sregs(vcpu: Platform, data: bytes) -> None:
    """Take kvm_sregs. Raise OSError EINVAL as KVM does."""
    values = SREGS.unpack(data)
    bitmap = sum(word << 64 * at for at, word in enumerate(values[-4:]))
    _set_sregs(vcpu, values)
    if bitmap:
        vcpu.cpu.pending = Event((bitmap & -bitmap).bit_length() - 1)
    vcpu.changed()


def get_sregs2(vcpu: Platform) -> bytes:
    """Return kvm_sregs2."""
    cpu = vcpu.cpu
    pae = cpu.cr0 & PG and cpu.cr4 & PAE and not cpu.efer & LMA
    return SREGS2.pack(*_sregs(vcpu), *((SREGS2_PDPTRS, *cpu.pdptr) if pae else (0, 0, 0, 0, 0)))


def set_sregs2(vcpu: Platform, data: bytes) -> None:
    """Take kvm_sregs2. Raise OSError EINVAL as KVM does."""
    values = SREGS2.unpack(data)
    flags, *pdptrs = values[-5:]
    pae = values[-12] & PG and values[-9] & PAE and not values[-7] & LMA
    if flags & ~SREGS2_PDPTRS or (flags and not pae):
        raise OSError(errno.EINVAL, "flags")
    _set_sregs(vcpu, (*values[:-5], 0, 0, 0, 0))
    vcpu.changed()
    if flags:
        vcpu.cpu.pdptr = list(pdptrs)


def _set_sregs(vcpu: Platform, values: tuple[int, ...]) -> None:
    cpu = vcpu.cpu
    cr0, cr2, cr3, cr4, cr8, efer, apic_base = values[-11:-4]
    long_code = values[8]
    if efer & LME and cr0 & PG:
        if not cr4 & PAE or not efer & LMA or cr3 >> cpu.phys_bits & ~(1 << 63 - cpu.phys_bits):
            raise OSError(errno.EINVAL, "long mode")
    elif efer & LMA or long_code:
        raise OSError(errno.EINVAL, "long mode")
    if cr4 & ~(CR4_BITS & cpu.cr4_allowed) or cr0 >> 32 or (cr0 & NW and not cr0 & CD) or (cr0 & PG and not cr0 & PE):
        raise OSError(errno.EINVAL, "control registers")
    if apic_base != vcpu.apic_base and not vcpu.set_apic_base(apic_base, True):
        raise OSError(errno.EINVAL, "APIC base")
    for at, number in enumerate(SEG_ORDER):
        _unpack_segment(cpu.segs[number], values[12 * at : 12 * at + 12])
    cpu.gdt_base, cpu.gdt_limit, cpu.idt_base, cpu.idt_limit = values[96:100]
    cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer = cr0 & CR0_BITS, cr2, cr3, cr4, efer & EFER_BITS
    vcpu.restore_cr8(cr8)
    if cpu.rip == 0xFFF0 and vcpu.is_bsp() and values[2] == 0xF000 and values[0] == 0xFFFF0000 and not cr0 & PE:
        vcpu.mp_state = 0  # KVM, too, takes this for a reset by older user space


def get_events(vcpu: Platform) -> bytes:
    """Return kvm_vcpu_events."""
    cpu = vcpu.cpu
    event = cpu.pending
    exception = interrupt = nmi = 0
    vector = error = has_error = soft = number = 0
    if event is not None:
        if event.kind == EVENT_EXCEPTION:
            exception, vector, has_error, error = 1, event.vector, int(event.error is not None), event.error or 0
        elif event.kind == EVENT_NMI:
            nmi = 1
        else:
            interrupt, number, soft = 1, event.vector, int(event.kind == EVENT_SOFTWARE)
    shadow = vcpu.shadow_kind or SHADOW_STI if cpu.interrupt_shadow else 0
    flags = VALID_NMI | VALID_SHADOW | VALID_SMM
    if vcpu.vm.exception_payload:
        flags |= VALID_PAYLOAD
    if vcpu.vm.triple_fault_event:
        flags |= VALID_TRIPLE
    return EVENTS.pack(
        exception, vector, has_error, 0, error, interrupt, number, soft, shadow, nmi, int(cpu.nmi_pending),
        int(cpu.nmi_blocked), 0, vcpu.sipi_vector, flags, 0, 0, 0, int(vcpu.init_pending), int(vcpu.triple_fault), 0, 0,
    )  # fmt: skip


def set_events(vcpu: Platform, data: bytes) -> None:
    """Take kvm_vcpu_events. Raise OSError EINVAL as KVM does."""
    (
        exception, vector, has_error, pending, error, interrupt, number, soft, shadow, nmi, nmi_pending, nmi_masked, _,
        sipi_vector, flags, smm, smi_pending, _smi_in_nmi, latched_init, triple_fault, _has_payload, _payload,
    ) = EVENTS.unpack(data)  # fmt: skip
    allowed = VALID_NMI | VALID_SIPI | VALID_SHADOW | VALID_SMM | VALID_PAYLOAD | VALID_TRIPLE
    if flags & ~allowed:
        raise OSError(errno.EINVAL, "flags")
    if flags & VALID_PAYLOAD:
        if not vcpu.vm.exception_payload or (pending and exception):
            raise OSError(errno.EINVAL, "payload")
    else:
        pending = 0
    if (exception or pending) and (vector > 31 or vector == 2):
        raise OSError(errno.EINVAL, "vector")
    if flags & VALID_SMM and (smm or smi_pending):
        raise OSError(errno.EINVAL, "there is no system management mode")
    if flags & VALID_TRIPLE:
        if not vcpu.vm.triple_fault_event:
            raise OSError(errno.EINVAL, "triple fault")
        vcpu.triple_fault = bool(triple_fault)
    cpu = vcpu.cpu
    cpu.pending = None
    if exception or pending:
        cpu.pending = Event(vector, error if has_error else None, EVENT_EXCEPTION)
    elif nmi:
        cpu.pending = Event(2, None, EVENT_NMI)
    elif interrupt:
        cpu.pending = Event(number, None, EVENT_SOFTWARE if soft else EVENT_INTERRUPT)
    if flags & VALID_SHADOW:
        cpu.interrupt_shadow = bool(shadow)
        vcpu.shadow_kind = shadow & 3
    if flags & VALID_NMI:
        cpu.nmi_pending = bool(nmi_pending)
    cpu.nmi_blocked = bool(nmi_masked)
    if flags & VALID_SIPI and vcpu.lapic is not None:
        vcpu.sipi_vector = sipi_vector & 0xFF
    if flags & VALID_SMM:
        vcpu.init_pending = bool(latched_init and vcpu.lapic is not None)
    cpu.wake = 1


def get_debugregs(vcpu: Platform) -> bytes:
    """Return kvm_debugregs."""
    dr = vcpu.cpu.dr
    return DEBUGREGS.pack(*dr[:4], dr[6], dr[7], *(0,) * 10)


def set_debugregs(vcpu: Platform, data: bytes) -> None:
    """Take kvm_debugregs. Raise OSError EINVAL as KVM does."""
    *db, dr6, dr7, flags = DEBUGREGS.unpack(data)[:7]
    if flags or dr6 >> 32 or dr7 >> 32:
        raise OSError(errno.EINVAL, "bits that are not there")
    cpu = vcpu.cpu
    cpu.dr[:4] = db
    cpu.dr[6], cpu.dr[7] = dr6, dr7
    cpu.update_breakpoints()
