"""The FPU's state as FXSAVE, XSAVE and kvm_fpu lay it out (SDM vol. 1 sections 10.5 and 13.4; linux/kvm.h)."""

from __future__ import annotations

from struct import Struct

from .fpu import MXCSR_MASK, MXCSR_RESET, Fpu

X87, SSE = 1, 2
SUPPORTED = X87 | SSE
LEGACY, HEADER = 512, 64
AREA = LEGACY + HEADER  # bytes of an XSAVE area with x87 and SSE: CPUID leaf 0xD

HEAD = Struct("<HHBxHQQ")
HEAD_32 = Struct("<HHBxHIHxxIHxx")
KVM_HEAD = Struct("<HHBxHQQ")
MASKS = Struct("<II")
KVM_FPU = 416


def registers(fpu: Fpu) -> bytes:
    """Return ST(0) to ST(7), 16 bytes each."""
    return b"".join(fpu.st(place).to_bytes(16, "little") for place in range(8))


def set_registers(fpu: Fpu, data: bytes) -> None:
    """Take ST(0) to ST(7), after TOP."""
    for place in range(8):
        fpu.r[fpu.top + place & 7] = int.from_bytes(data[place * 16 : place * 16 + 10], "little")


def xmm(fpu: Fpu, count: int = 16) -> bytes:
    """Return the first XMM registers."""
    return b"".join(value.to_bytes(16, "little") for value in fpu.xmm[:count])


def set_xmm(fpu: Fpu, data: bytes, count: int = 16) -> None:
    """Take the first XMM registers."""
    for number in range(count):
        fpu.xmm[number] = int.from_bytes(data[number * 16 : number * 16 + 16], "little")


def x87_head(fpu: Fpu, wide: bool = True) -> bytes:
    """Return the first 24 bytes; `wide` has 64-bit pointers in place of selectors."""
    status = fpu.status()
    if wide:
        return HEAD.pack(fpu.cw, status, fpu.valid, fpu.fop, fpu.fip, fpu.fdp)
    low = 0xFFFFFFFF
    return HEAD_32.pack(fpu.cw, status, fpu.valid, fpu.fop, fpu.fip & low, fpu.fcs, fpu.fdp & low, fpu.fds)


def set_x87_head(fpu: Fpu, data: bytes, wide: bool = True) -> None:
    """Take the first 24 bytes."""
    if wide:
        cw, sw, fpu.valid, fop, fpu.fip, fpu.fdp = HEAD.unpack(data[:24])
        fpu.fcs = fpu.fds = 0
    else:
        cw, sw, fpu.valid, fop, fpu.fip, fpu.fcs, fpu.fdp, fpu.fds = HEAD_32.unpack(data[:24])
    fpu.fop = fop & 0x7FF
    fpu.cw = cw & 0x1F7F | 0x40
    fpu.set_status(sw)


def in_use(fpu: Fpu) -> int:
    """Return the components that are not in their initial state (XINUSE)."""
    used = 0
    fresh = fpu.cw == 0x37F and not (fpu.sw or fpu.top or fpu.valid or fpu.fip or fpu.fdp or fpu.fop)
    if not fresh or any(fpu.r):
        used |= X87
    if any(fpu.xmm):
        used |= SSE
    return used


def init_x87(fpu: Fpu) -> None:
    """Put x87 into its initial state (SDM vol. 1 section 13.6): as FNINIT, the registers zero."""
    fpu.init()
    fpu.r = [0] * 8


def check_mxcsr(value: int) -> int:
    """Return MXCSR. Raise ValueError for reserved bits."""
    if value & ~MXCSR_MASK:
        raise ValueError(f"MXCSR has no bits {value & ~MXCSR_MASK:#x}")
    return value


def legacy(fpu: Fpu, wide: bool = True, count: int = 16) -> bytes:
    """Return the 416 bytes that FXSAVE writes (it leaves the other 96 of 512 alone)."""
    return x87_head(fpu, wide) + MASKS.pack(fpu.mxcsr, MXCSR_MASK) + registers(fpu) + xmm(fpu, count)


def set_legacy(fpu: Fpu, data: bytes, wide: bool = True, count: int = 16) -> None:
    """Take what FXRSTOR reads. Raise ValueError for reserved bits of MXCSR, with nothing changed."""
    mxcsr = check_mxcsr(int.from_bytes(data[24:28], "little"))
    set_x87_head(fpu, data, wide)
    set_registers(fpu, data[32:160])
    set_xmm(fpu, data[160:416], count)
    fpu.mxcsr = mxcsr


def get_fpu(fpu: Fpu) -> bytes:
    """Return a kvm_fpu (KVM_GET_FPU)."""
    head = KVM_HEAD.pack(fpu.cw, fpu.status(), fpu.valid, fpu.fop, fpu.fip, fpu.fdp)
    return registers(fpu) + head + xmm(fpu) + MASKS.pack(fpu.mxcsr, 0)


def set_fpu(fpu: Fpu, data: bytes) -> None:
    """Take a kvm_fpu (KVM_SET_FPU). Bits of MXCSR that there are not are dropped."""
    set_x87_head(fpu, data[128:152])
    set_registers(fpu, data[:128])
    set_xmm(fpu, data[152:408])
    fpu.mxcsr = int.from_bytes(data[408:412], "little") & MXCSR_MASK


def get_xsave(fpu: Fpu, xcr0: int = SUPPORTED, size: int = 4096) -> bytes:
    """Return an XSAVE area in the standard format (KVM_GET_XSAVE), with both components."""
    header = (xcr0 & SUPPORTED & in_use(fpu)).to_bytes(8, "little")
    return (legacy(fpu).ljust(LEGACY, b"\0") + header).ljust(size, b"\0")


def set_xsave(fpu: Fpu, data: bytes) -> None:
    """Take an XSAVE area in the standard format (KVM_SET_XSAVE). Raise ValueError, with nothing changed, for others."""
    state, compact = (int.from_bytes(data[at : at + 8], "little") for at in (LEGACY, LEGACY + 8))
    if state & ~SUPPORTED:
        raise ValueError(f"XSAVE area with components {state:#x}: there are x87 and SSE only")
    if compact:
        raise ValueError("XSAVE area in the compacted format")
    mxcsr = check_mxcsr(int.from_bytes(data[24:28], "little"))
    restore(fpu, data, SUPPORTED, state)
    fpu.mxcsr = mxcsr if state & SSE or mxcsr else MXCSR_RESET


def restore(fpu: Fpu, data: bytes, requested: int, state: int, wide: bool = True, count: int = 16) -> None:
    """Load the requested components, or put those that `state` lacks into their initial state. MXCSR is not set."""
    if requested & X87:
        if state & X87:
            set_x87_head(fpu, data, wide)
            set_registers(fpu, data[32:160])
        else:
            init_x87(fpu)
    if requested & SSE:
        if state & SSE:
            set_xmm(fpu, data[160:416], count)
        else:
            fpu.xmm[:count] = [0] * count
