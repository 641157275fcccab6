"""Write the Python source of a region: its frame, its blocks and the ways between them."""

from __future__ import annotations

from .interp import carry, condition
from .translate import CPU, DYNAMIC, LEFT, NO_OPERANDS, NO_RESULT, Region, Site
from .translate_flow import COLD, M16, M32, M64, is_jcc, plan, successors, target_of
from .translate_insns import WRITERS, write_exit_condition

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from .blocks import Block
    from .cpu import Cpu
    from .decode import Insn
    from .translate import Flags

STRINGS = (0xA4, 0xA5, 0xAA, 0xAB, 0xA6, 0xA7, 0xAE, 0xAF)
MASKS = {1: 0xFF, 2: M16, 4: M32, 8: M64}


def number(value: int) -> str:
    """Write a constant; small ones in decimal."""
    return str(value) if -1 < value < 1024 else hex(value)


class Writer:
    """The source of one region while it grows, and what is known at the place that is being written."""

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
        self.insn: Insn = entry.insns[0]
        self.done = 0  # instructions of the block that are complete
        self.need = True
        self.returns: set[int] = set()
        self.final: dict[int, tuple[Flags, int | None, dict[int, int]]] = {}
        self.loops = len(blocks) > 1 or entry.rip in successors(entry)
        self.writes_tlb = self.reads_tlb = False

    # Lines.
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
        self.site = Site(self.insn, self.flag_code(), self.done, cold)

    # Registers.
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

    # Memory.
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

    # The flags.
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

    # Frames.
    def load_registers(self) -> list[str]:
        """Return the lines that take the registers from the Cpu."""
        if len(self.used) > 5:
            return [", ".join(f"r{reg}" if reg in self.used else "_" for reg in range(16)) + " = R"]
        return [f"r{reg} = R[{reg}]" for reg in sorted(self.used)]

    def put_marker(self, kind: str) -> None:
        """Add a line that depends on the whole region, and is made in source()."""
        self.put("@" + kind)

    def cold_call(self, insn: Insn, last: bool) -> None:
        """Write the call of the cold tier's operation."""
        at = len(self.names)
        self.names[f"f{at}"], self.names[f"i{at}"] = insn.fn, insn
        self.put_marker("save")
        self.store_flags()
        self.put(f"cpu.rip = {insn.next:#x}")
        self.flags = CPU
        self.at(cold=True)
        self.put(f"f{at}(cpu, i{at})")
        self.flags = CPU
        self.known = {}
        self.done += 1
        self.at(cold=True)
        if last and insn.op in STRINGS:
            self.put(f"if cpu.after or cpu.rip != {insn.next:#x}: return {self.ran()}")
        elif last:
            self.put(f"return {self.ran()}")
            return
        else:
            self.put(f"if cpu.after: return {self.ran()}")
        self.put_marker("load")

    def ran(self) -> str:
        """Return the expression for the number of instructions that were run."""
        if not self.loops:
            return str(self.done)
        return f"start - left + {self.done}"

    # Ways out of a block.
    def edge(self, rip: int) -> str:
        """Return the statement that goes to an address: another block of the region, or out."""
        at = self.index.get(rip)
        if at is None:
            return f"b = -1; rip = {rip:#x}"
        return f"b = {at}"

    def leave(self, target: str) -> None:
        """Write the end of a function without loops."""
        self.put_marker("save")
        self.store_flags()
        self.put(f"cpu.rip = {target}")
        self.put(f"return {self.done}")

    def checked_target(self, name: str) -> None:
        """Write the check of an indirect branch's target."""
        if self.bits == 64:
            self.put(f"if {name} >> 47 and {name} >> 47 != 131071: raise SLOW")
        elif self.limit < (M32 if self.stack_mask != M16 or self.bits == 32 else M16) or self.bits == 16:
            self.put(f"if {name} > {self.limit:#x}: raise SLOW")

    def go(self, rip: int) -> None:
        """Write an unconditional way to a fixed address."""
        if not self.loops:
            self.leave(f"{rip:#x}")
            return
        self.settle_flags()
        self.remember(rip)
        self.put(f"left -= {self.done}")
        self.put(self.edge(rip))

    def go_dynamic(self, name: str, known: bool) -> None:
        """Write the way to an address that is only known at run time."""
        if not self.loops:
            self.leave(name)
            return
        self.settle_flags()
        self.put(f"left -= {self.done}")
        if known and self.returns:
            table = {rip: at for rip, at in self.index.items() if rip in self.returns}
            self.names["returns"] = table
            self.put(f"b = returns.get({name}, -1); rip = {name}")
        else:
            self.put(f"b = -1; rip = {name}")

    def remember(self, rip: int) -> None:
        """Note what is known on the way to a block."""
        if rip in self.index:
            self.final[rip] = (self.flags, self.cw, dict(self.known))

    def branch(self, test: str, target: int, other: int, own: int) -> None:
        """Write a conditional branch."""
        if not self.loops:
            self.leave(f"{target:#x} if {test} else {other:#x}")
            return
        self.settle_flags()
        self.remember(target)
        self.remember(other)
        self.put(f"left -= {self.done}")
        if own in (target, other):
            # the block's own loop: stay in it while `left` lasts
            stay, out = (test, other) if target == own else (f"not ({test})", target)
            self.put(f"if {stay}:")
            self.put("    if left > 0: continue")
            self.put(f"    {self.edge(own)}")
            self.put(f"else: {self.edge(out)}")
            return
        self.put(f"if {test}: {self.edge(target)}")
        self.put(f"else: {self.edge(other)}")

    # Blocks.
    def predecessors(self) -> dict[int, int]:
        """Count the ways within the region that lead to each block."""
        counts = dict.fromkeys(self.index, 0)
        for block in self.blocks:
            for rip in successors(block):
                if rip in counts:
                    counts[rip] += 1
            last = block.insns[-1]
            if last.op == 0xE8 or (last.op == 0xFF and last.modrm >> 3 & 7 == 2):
                self.returns.add(last.next)
        counts[self.entry.rip] += 1
        for rip in self.returns & set(counts):
            counts[rip] += 1
        return counts

    def write(self) -> None:
        """Write all blocks."""
        counts = self.predecessors()
        if not self.loops:
            self.flags = CPU
            self.block(self.entry)
            return
        if len(self.blocks) == 1:
            self.depth = 3
            self.flags = DYNAMIC
            self.block(self.entry)
            self.depth = 3
            self.site = None
            self.put("break")
            return
        self.tree(0, len(self.blocks), 3, counts)
        self.site = None
        self.depth = 3
        self.put("if b < 0: break")
        self.put("if left <= 0:")
        self.put("    rip = rips[b]")
        self.put("    break")
        self.names["rips"] = [block.rip for block in self.blocks]

    def tree(self, first: int, end: int, depth: int, counts: dict[int, int]) -> None:
        """Write the blocks first..end behind tests of b, as a tree where there are many."""
        if end - first > 4:
            middle = (first + end) // 2
            for low, high, test in ((first, middle, f"if b < {middle}:"), (middle, end, f"if b >= {middle}:")):
                self.site, self.depth = None, depth
                self.put(test)
                self.tree(low, high, depth + 1, counts)
            return
        for at in range(first, end):
            block = self.blocks[at]
            self.depth, self.site = depth, None
            self.put(f"if b == {at}:")
            self.depth += 1
            self.known = {}
            self.flags, self.cw = DYNAMIC, None
            if counts[block.rip] == 1 and block.rip in self.final and block.rip not in successors(block):
                self.flags, self.cw, known = self.final[block.rip]
                self.known = dict(known)
            own = block.rip in successors(block)
            if own:
                self.put("while True:")
                self.depth += 1
            self.block(block)
            if own:
                self.depth, self.site = depth + 2, None
                self.put("break")

    def block(self, block: Block) -> None:
        """Write one block."""
        self.done = 0
        steps = plan(block, self.entry.careful)
        last = block.insns[-1]
        for insn, (what, need) in zip(block.insns, steps, strict=True):
            self.insn, self.need = insn, need
            self.at()
            final = insn is last
            if what & COLD:
                self.cold_call(insn, final and insn.ends)
                if final and (not insn.ends or insn.op in STRINGS):
                    self.go(insn.next)
                continue
            if final and insn.ends:
                self.end(block, insn)
                return
            WRITERS[insn.op](self, insn)
            self.done += 1
            if final:
                self.at()
                self.go(insn.next)

    def end(self, block: Block, insn: Insn) -> None:
        """Write the branch at a block's end."""
        op = insn.op
        if is_jcc(op) or op == 0xE2:
            target = target_of(insn, self.bits)
            if self.bits != 64 and target > self.limit:
                self.put("raise SLOW")
                self.at_end()
                return
            test = write_exit_condition(self, insn)
            self.done += 1
            self.at_end()
            self.branch(test, target, insn.next, block.rip)
            return
        if op in (0xE9, 0xEB):
            target = target_of(insn, self.bits)
            if self.bits != 64 and target > self.limit:
                self.put("raise SLOW")
                return
            self.done += 1
            self.at_end()
            if target == block.rip and self.loops:
                self.branch("True", target, insn.next, block.rip)
            else:
                self.go(target)
            return
        WRITERS[op](self, insn)

    def at_end(self) -> None:
        """Lines after a block's last instruction cannot raise; they need no site of their own."""
        self.site = None

    # The whole.
    def widths(self) -> dict[int, int]:
        """Return which registers may be taken to be narrow all the time, if they are at the entry."""
        narrow = 16 if self.bits == 16 else 32
        return {
            reg: narrow
            for reg in self.used
            if self.written_bits.get(reg, 0) <= narrow and reg in self.narrow_reads and (reg != 4 or narrow == 16)
        }

    def source(self) -> str:
        """Put the function together, and fill in which line belongs to which instruction."""
        saved = sorted(self.saved)
        self.region.saved = saved
        check = ""
        if self.assumed:
            by_width = sorted(self.assumed.items())
            check = " or ".join(f"r{reg} > {(1 << width) - 1:#x}" for reg, width in by_width if reg in self.used)
        lines: list[tuple[int, str, Site | None]] = []

        def add(depth: int, text: str, site: Site | None = None) -> None:
            lines.append((depth, text, site))

        add(0, "def run(cpu, left):")
        if self.loops:
            add(1, "start = left")
        add(1, "R = cpu.regs; RT = cpu.read_tlb; WT = cpu.write_tlb")
        for text in self.load_registers():
            add(1, text)
        if check:
            add(1, f"if {check}: return unlucky(cpu, block)")
        for seg in sorted(self.bases):
            add(1, f"s{seg} = cpu.segs[{seg}].base")
        for seg, size, write in sorted(self.segments):
            way = "write" if write else "read"
            add(1, f"s = cpu.segs[{seg}]")
            add(1, f"l{seg}{size}{way[0]} = s.{way}_high - {size - 1} if not s.{way}_low else -1")
        if self.loops:
            add(1, "fw = cpu.fw; fr = cpu.fr; fa = cpu.fa; fb = cpu.fb; fc = cpu.fc; cw = 0")
            add(1, "b = 0; rip = 0")
        add(1, "try:")
        if self.loops:
            add(2, "while True:")
        for depth, text, site in self.body:
            if text == "@save":
                if saved:
                    add(depth, "; ".join(f"R[{reg}] = r{reg}" for reg in saved), site)
            elif text == "@load":
                for line in self.load_registers():
                    add(depth, line, site)
                if check:
                    assert site is not None
                    ran = f"start - left + {site.ran}" if self.loops else str(site.ran)
                    add(depth, f"if {check}: return {ran}", site)
            else:
                add(depth, text, site)
        add(1, "except Exception as problem:")
        add(2, "return recover(cpu, problem, locals(), region)")
        if self.loops:
            if len(self.blocks) == 1:
                add(1, f"if b >= 0: rip = {self.entry.rip:#x}")
            if saved:
                add(1, "; ".join(f"R[{reg}] = r{reg}" for reg in saved))
            add(1, "if fw > 65535: fw, fr, fa, fb = normal(fw, fr, fa, fb)")
            add(1, "cpu.fw = fw; cpu.fr = fr; cpu.fa = fa; cpu.fb = fb; cpu.fc = fc; cpu.rip = rip")
            add(1, "return start - left")
        self.region.lines = [None, *(site for _, _, site in lines)]
        self.names.update(carry=carry, condition=condition)
        return "\n".join("    " * depth + text for depth, text, _ in lines)
