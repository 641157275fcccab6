"""The state of x87, MMX and SSE: registers, control and status (SDM vol. 1 chapters 8 to 10)."""

from __future__ import annotations

from .exceptions import MF, NM, UD, XM, Fault

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn

EM, TS, MP, NE = 1 << 2, 1 << 3, 1 << 1, 1 << 5  # CR0
OSFXSR, OSXMMEXCPT = 1 << 9, 1 << 10  # CR4

C0, C1, C2, C3 = 1 << 8, 1 << 9, 1 << 10, 1 << 14
SF, ES, BUSY = 1 << 6, 1 << 7, 1 << 15
IE = 1
INDEFINITE = 0xFFFF << 64 | 3 << 62

MXCSR_MASK = 0xFFFF
MXCSR_RESET = 0x1F80


class Fpu:
    """The registers. `r` are the eight 80-bit registers by number (not by place on the stack), `valid` has a bit for
    each that is not empty, `top` is kept apart from `sw`. `xmm` are 128-bit numbers.
    """

    __slots__ = ("cw", "fcs", "fdp", "fds", "fip", "fop", "mxcsr", "r", "sw", "top", "valid", "xmm")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Take the state after RESET (SDM vol. 3A table 10-1): it differs from FNINIT's."""
        self.init()
        self.cw = 0x40
        self.valid = 0xFF  # the tag word is 5555H: all zero
        self.r = [0] * 8
        self.xmm = [0] * 16
        self.mxcsr = MXCSR_RESET

    def init(self) -> None:
        """Do what FNINIT does: the registers keep their contents."""
        self.cw, self.sw, self.top, self.valid = 0x37F, 0, 0, 0
        self.fip = self.fcs = self.fdp = self.fds = self.fop = 0

    def status(self) -> int:
        """Return the status word with TOP in its place."""
        return self.sw | self.top << 11

    def set_status(self, value: int) -> None:
        """Set the status word; ES and B follow from the exceptions and their masks."""
        self.top = value >> 11 & 7
        self.sw = value & 0x477F
        self.update_summary()

    def set_control(self, value: int) -> None:
        """Set the control word."""
        self.cw = value & 0x1F7F | 0x40
        self.update_summary()

    def update_summary(self) -> None:
        """Set ES and B where an exception is pending that is not masked."""
        if self.sw & ~self.cw & 0x3F:
            self.sw |= ES | BUSY
        else:
            self.sw &= ~(ES | BUSY)

    def signal(self, flags: int) -> int:
        """Note exceptions, and C1 as UP in `flags` has it. Returns those that are not masked."""
        self.sw = self.sw & ~C1 | flags & 0x27F
        unmasked = flags & ~self.cw & 0x3F
        if unmasked:
            self.sw |= ES | BUSY
        return unmasked

    def tags(self) -> int:
        """Return the full tag word (two bits a register: valid, zero, special, empty)."""
        word = 0
        for number in range(8):
            if not self.valid >> number & 1:
                tag = 3
            else:
                value = self.r[number]
                exponent = value >> 64 & 0x7FFF
                if exponent == 0x7FFF or not value >> 63 & 1:
                    tag = 1 if not value & ((1 << 79) - 1) else 2
                else:
                    tag = 0 if exponent else 2
            word |= tag << number * 2
        return word

    def set_tags(self, word: int) -> None:
        """Set the tags from a full tag word: only empty or not is kept, the rest follows from the contents."""
        self.valid = sum(1 << n for n in range(8) if word >> n * 2 & 3 != 3)

    # The stack. Callers have called one of the checks below.
    def empty(self, place: int) -> bool:
        """Tell whether ST(place) is empty."""
        return not self.valid >> (self.top + place & 7) & 1

    def st(self, place: int) -> int:
        """Return ST(place), whether empty or not."""
        return self.r[self.top + place & 7]

    def put(self, place: int, value: int) -> None:
        """Set ST(place)."""
        number = self.top + place & 7
        self.r[number] = value
        self.valid |= 1 << number

    def pop(self) -> None:
        """Free ST(0) and move the top."""
        self.valid &= ~(1 << self.top)
        self.top = self.top + 1 & 7

    def push(self, value: int) -> None:
        """Push without a look at whether there is room."""
        self.top = top = self.top - 1 & 7
        self.r[top] = value
        self.valid |= 1 << top

    def overflow(self) -> bool:
        """Note a stack overflow. Returns True where it is masked, so that the indefinite is to be stored."""
        return not self.signal(IE | SF | C1)

    def underflow(self) -> bool:
        """Note a stack underflow. Returns True where it is masked."""
        return not self.signal(IE | SF)


def waiting(cpu: Cpu) -> None:
    """Raise what is due before an x87 or MMX instruction: #NM, or #MF for an error that is pending."""
    if cpu.cr0 & (EM | TS):
        raise Fault(NM)
    if cpu.fpu.sw & ES and cpu.cr0 & NE:
        raise Fault(MF)


def present(cpu: Cpu) -> None:
    """Raise what is due before an instruction that does not wait for errors: #NM."""
    if cpu.cr0 & (EM | TS):
        raise Fault(NM)


def remember(cpu: Cpu, i: Insn) -> None:
    """Note the instruction for FSTENV, after `waiting`."""
    fpu = cpu.fpu
    fpu.fip, fpu.fcs = i.rip, cpu.segs[1].selector
    fpu.fop = (i.op & 7) << 8 | i.modrm


def remember_operand(cpu: Cpu, i: Insn, offset: int) -> None:
    """Note the instruction and its memory operand for FSTENV."""
    remember(cpu, i)
    cpu.fpu.fdp, cpu.fpu.fds = offset, cpu.segs[i.seg].selector


def check_mmx(cpu: Cpu) -> None:
    """Raise what is due before an MMX instruction."""
    if cpu.cr0 & EM:
        raise Fault(UD)
    if cpu.cr0 & TS:
        raise Fault(NM)
    if cpu.fpu.sw & ES and cpu.cr0 & NE:
        raise Fault(MF)


def check_sse(cpu: Cpu) -> None:
    """Raise what is due before an SSE instruction."""
    if cpu.cr0 & EM or not cpu.cr4 & OSFXSR:
        raise Fault(UD)
    if cpu.cr0 & TS:
        raise Fault(NM)


def simd_exception(cpu: Cpu) -> Fault:
    """Return the fault of an unmasked SIMD exception."""
    return Fault(XM if cpu.cr4 & OSXMMEXCPT else UD)
