"""Write the Python source of a region: its frame, its blocks and the ways between them."""

from __future__ import annotations

from .interp import carry, condition
from .translate import CPU, DYNAMIC, Site
from .translate_flow import COLD, M16, M32, M64, is_jcc, plan, successors, target_of
from .translate_insns import write_exit_condition
from .translate_moves import WRITERS
from .translate_scribe import Scribe

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .blocks import Block
    from .decode import Insn

STRINGS = (0xA4, 0xA5, 0xAA, 0xAB, 0xA6, 0xA7, 0xAE, 0xAF)
MASKS = {1: 0xFF, 2: M16, 4: M32, 8: M64}


def number(value: int) -> str:
    """Write a constant; small ones in decimal."""
    return str(value) if -1 < value < 1024 else hex(value)


class Writer(Scribe):
    """The source of one region: its frame, its blocks and the ways between them."""

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
        self.current = block
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
