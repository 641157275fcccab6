"""The lines of a region while they grow: registers, memory and flags, and what is known of them at each place."""

from __future__ import annotations

from .translate import CPU, DYNAMIC, LEFT, NO_OPERANDS, NO_RESULT, Region, Site
from .translate_flow import M16, M32, M64, successors

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from .blocks import Block
    from .cpu import Cpu
    from .decode import Insn
    from .translate import Flags

MASKS = {1: 0xFF, 2: M16, 4: M32, 8: M64}


def number(value: int) -> str:
    """Write a constant; small ones in decimal."""
    return str(value) if -1 < value < 1024 else hex(value)


class Scribe:
    """Lines of Python, and what is known at the place that is being written."""

    def __init__(self, cpu: Cpu, entry: Block, blocks: list[Block], widths: dict[int, int]) -> None:
        self.bits = cpu.bits
        self.stack_mask = cpu.stack_mask
        self.flat: int = 0x3F if cpu.bits == 64 else cpu.code_key[2]  # type: ignore[assignment]
        self.limit = M64 if cpu.bits == 64 else cpu.segs[1].limit
        self.entry, self.blocks, self.assumed = entry, blocks, widths
        self.index = {block.rip: at for at, block in enumerate(blocks)}
        self.region = Region(entry)
        self.body: list[tuple[int, str, Site | None]] = []
        self.names: dict[str, Any] = {}
        self.used: set[int] = set()
        self.saved: set[int] = set()
        self.written_bits: dict[int, int] = {}
        self.narrow_reads: set[int] = set()
        self.segments: set[tuple[int, int, bool]] = set()
        self.bases: set[int] = set()
        self.depth = 2
        self.site: Site | None = None
        self.flags: Flags = DYNAMIC
        self.cw: int | None = None  # where CF is in fc: a bit number plus 1, None: the local cw has it
        self.known: dict[int, int] = {}
        self.current, self.insn = entry, entry.insns[0]
        self.done = 0  # instructions of the block that are complete
        self.need = True
        self.returns: set[int] = set()
        self.final: dict[int, tuple[Flags, int | None, dict[int, int]]] = {}
        self.loops = len(blocks) > 1 or entry.rip in successors(entry)
        self.writes_tlb = self.reads_tlb = False

    def put(self, text: str) -> None:
        """Add a line at the current depth, for the current instruction."""
        self.body.append((self.depth, text, self.site))

    def flag_code(self) -> int | None:
        """Return what recover() must know of the flags here: None, -1 (the local fw) or a fixed fw."""
        kind, width = self.flags
        if self.flags == CPU:
            return None
        if self.flags == DYNAMIC:
            return -1
        if kind == "sub":
            return width | NO_RESULT
        if kind in ("logic", "shifted"):
            return width | NO_OPERANDS
        if kind == "left":
            return width | LEFT
        if kind in ("inc", "dec"):
            return width | (self.cw << 8 if self.cw is not None else 0xFF00)
        return width

    def at(self, cold: bool = False) -> None:
        """Say that the lines to come belong to the current instruction, in the state that is known now."""
        self.site = Site(self.current, self.insn, self.flag_code(), self.done, cold)

    def width(self, reg: int) -> int:
        """Return how many bits a register has at most here."""
        return self.known.get(reg, self.assumed.get(reg, 64 if self.bits == 64 else 32))

    def get(self, reg: int, size: int) -> str:
        """Return the expression for a register operand."""
        if reg >= 20:
            reg -= 20
            self.used.add(reg)
            return f"(r{reg} >> 8 & 255)" if self.width(reg) > 16 else f"(r{reg} >> 8)"
        self.used.add(reg)
        if size < 8:
            self.narrow_reads.add(reg)
        if self.width(reg) <= size * 8:
            return f"r{reg}"
        return f"(r{reg} & {MASKS[size]:#x})"

    def set(self, reg: int, size: int, value: str, bits: int = 64) -> None:
        """Write a register; `value` fits the size, and has at most `bits` bits."""
        high = reg >= 20
        reg = reg - 20 if high else reg
        self.used.add(reg)
        self.saved.add(reg)
        if size >= 4:
            bits = min(bits, size * 8)
            self.written_bits[reg] = max(self.written_bits.get(reg, 0), 64 if size == 8 else 32)
            self.known[reg] = bits
            self.put(f"r{reg} = {value}")
            return
        self.written_bits[reg] = max(self.written_bits.get(reg, 0), 16)
        width = self.width(reg)
        if high:
            keep, width, value = (1 << max(width, 16)) - 1 & ~0xFF00, max(width, 16), f"({value}) << 8"
        elif size == 2:
            keep, width = (1 << width) - 1 & ~M16 if width > 16 else 0, max(width, 16)
        else:
            keep, width = (1 << width) - 1 & ~0xFF if width > 8 else 0, max(width, 8)
        self.put(f"r{reg} = r{reg} & {keep:#x} | ({value})" if keep else f"r{reg} = {value}")
        self.known[reg] = width

    def effective(self, i: Insn) -> tuple[str, bool]:
        """Return the expression of an effective address, and whether it is sure to be wrapped already."""
        if i.base < 0 and i.index < 0:
            return number(i.disp & i.amask), True
        parts = []
        total = 0
        for reg, scale in ((i.base, 0), (i.index, i.scale)):
            if reg >= 0:
                self.used.add(reg)
                part = f"r{reg}"
                if self.width(reg) > 8 * i.asize:
                    part = f"(r{reg} & {i.amask:#x})" if scale and i.asize < 8 else part
                parts.append(f"{part} * {1 << scale}" if scale else part)
                total += (1 << self.width(reg)) - 1 << scale
        text = " + ".join(parts)
        if i.disp:
            text += f" + {number(i.disp)}" if i.disp > 0 else f" - {number(-i.disp)}"
        wrapped = i.disp >= 0 and total + i.disp <= i.amask
        return text, wrapped

    def address(self, i: Insn, size: int, write: bool) -> str:
        """Write what computes the linear address of the memory operand; returns its name or constant."""
        text, wrapped = self.effective(i)
        single = i.base >= 0 and i.index < 0 and i.asize * 8 == self.bits
        return self.linear(text, wrapped, single, i.seg, size, write, i.amask)

    def linear(self, text: str, wrapped: bool, single: bool, seg: int, size: int, write: bool, mask: int) -> str:
        """Write what turns an offset into a linear address. `single`: one register and a constant may go unwrapped."""
        flat = seg < 4 if self.bits == 64 else bool(self.flat >> seg & 1 and seg in (0, 2, 3))
        if flat:
            if not wrapped and not single:
                text = f"{text} & {mask:#x}"
            if text.isidentifier() or text.isdigit() or text.startswith("0x"):
                return text
            self.put(f"a = {text}")
            return "a"
        if not wrapped:
            text = f"{text} & {mask:#x}"
        self.bases.add(seg)
        if self.bits == 64:
            self.put(f"a = ({text}) + s{seg} & 0xFFFFFFFFFFFFFFFF")
            return "a"
        self.segments.add((seg, size, write))
        if not text.isidentifier():
            self.put(f"o = {text}")
            text = "o"
        self.put(f"if {text} > l{seg}{size}{'w' if write else 'r'}: raise SLOW")
        self.put(f"a = {text} + s{seg}")
        return "a"

    def load_at(self, place: str, size: int, target: str) -> None:
        """Write a load from a linear address."""
        if size == 1:
            self.put(f"{target} = RT[{place} >> 12][{place} & 4095]")
        else:
            self.put(f"{target}, = u{size}(RT[{place} >> 12], {place} & 4095)")

    def store_at(self, place: str, size: int, value: str) -> None:
        """Write a store to a linear address."""
        page = self.page_to_write(place, size)
        if size == 1:
            self.put(f"{page}[{place} & 4095] = {value}")
        else:
            self.put(f"p{size}({page}, {place} & 4095, {value})")

    def page_to_write(self, place: str, size: int) -> str:
        """Return the expression for the page that a store goes to."""
        if self.insn.rip in self.entry.careful:
            return f"mixed_page(cpu, {place}, {size})"
        return f"WT[{place} >> 12]"

    def load(self, i: Insn, size: int, target: str = "v") -> str:
        """Write the load of the memory operand into a local."""
        self.load_at(self.address(i, size, False), size, target)
        return target

    def operand(self, i: Insn, size: int) -> tuple[str, int]:
        """Return the expression of r/m, read, and how many bits it has at most."""
        if i.mod == 3:
            text = self.get(i.rm, size)
            return text, min(size * 8, self.width(i.rm) if i.rm < 20 else 8)
        return self.load(i, size), size * 8

    def store_flags(self) -> None:
        """Write the flags into the Cpu, in its own form."""
        kind, width = self.flags
        if self.flags == CPU:
            return
        if self.flags == DYNAMIC:
            self.put("cpu.fw, cpu.fr, cpu.fa, cpu.fb = normal(fw, fr, fa, fb) if fw > 65535 else (fw, fr, fa, fb)")
            self.put("cpu.fc = fc")
        elif kind == "sub":
            self.put(f"cpu.fw = {width}; cpu.fr = fa - fb; cpu.fa = fa; cpu.fb = fb")
        elif kind in ("logic", "shifted"):
            self.put(f"cpu.fw = {width}; cpu.fr = cpu.fa = fr; cpu.fb = 0")
        elif kind == "left":
            self.put(f"cpu.fw, cpu.fr, cpu.fa, cpu.fb = normal({width | LEFT}, fr, 0, 0)")
        else:
            code = str(width)
            if kind in ("inc", "dec"):
                code = f"{width} | cw" if self.cw is None else str(width | self.cw << 8)
                self.put("cpu.fc = fc")
            self.put(f"cpu.fw = {code}; cpu.fr = fr; cpu.fa = fa; cpu.fb = fb")

    def load_flags(self) -> None:
        """Write what takes the flags from the Cpu into the locals."""
        self.put("fw = cpu.fw; fr = cpu.fr; fa = cpu.fa; fb = cpu.fb; fc = cpu.fc")
        self.flags = DYNAMIC

    def settle_flags(self) -> None:
        """Bring the flags into the locals in the form that every block can take over."""
        if self.flags == DYNAMIC:
            return
        if self.flags == CPU:
            self.load_flags()
            return
        code = self.flag_code()
        kind, width = self.flags
        if kind in ("inc", "dec") and self.cw is None:
            self.put(f"fw = {width} | cw")
        else:
            self.put(f"fw = {code}")
