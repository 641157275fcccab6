"""Registers as gdb knows them: target descriptions, and packing from and to one dict of registers by name. Pure.

GDB manual, appendix G (Target Descriptions) and G.5.6 (i386 Features). The dict that a Target gives has
  rax rbx rcx rdx rsi rdi rbp rsp, r8 to r15 (on processors with long mode), rip, rflags;
  cs ss ds es fs gs tr ldtr: selectors, with NAME_base, NAME_limit, NAME_access as in x86/segments.py;
  gdtr_base gdtr_limit idtr_base idtr_limit cr0 cr2 cr3 cr4 cr8 efer; if it likes k_gs_base, xcr0, dr0 to dr3, dr6, dr7;
  st0 to st7 (80 bits), fctrl fstat ftag (two bits a register) fiseg fioff foseg fooff fop;
  xmm0 to xmm15 (128 bits) and mxcsr; with AVX ymm0h to ymm15h (the upper 128 bits); with AVX-512 k0 to k7, zmm0h to
  zmm31h (the upper 256), xmm16 to xmm31, ymm16h to ymm31h.
A description offers those that are there. gdb's general registers are always there.
"""

from __future__ import annotations

from ..x86 import segments
from . import types
from .target import TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Container, Iterable, Mapping

    ReadLinear = Callable[[int, int], bytes]

ARCHITECTURES = {16: "i8086", 32: "i386", 64: "i386:x86-64"}
CORE, SSE, SEGMENTS, AVX, AVX512 = (f"org.gnu.gdb.i386.{name}" for name in ("core", "sse", "segments", "avx", "avx512"))
SYSTEM = "org.pyvcpu.x86.system"

GENERAL64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
GENERAL32 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
FPU = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
TABLES = ("gdtr", "idtr")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
# What lldb calls registers that have a meaning in every architecture.
GENERIC = {"rip": "pc", "rsp": "sp", "rbp": "fp", "rflags": "flags"}
LOW_4G, SELECTOR_MAX = 0xFFFF_FFFF, 0xFFFF


class Register:
    """One register of a description: gdb's `name`, `type` and `feature`, `size` in bytes, its `key` in the dict."""

    __slots__ = ("feature", "group", "key", "name", "size", "type")

    def __init__(self, name: str, key: str, size: int, type: str, feature: str, group: str = "") -> None:
        self.name = name
        self.key = key
        self.size = size
        self.type = type
        self.feature = feature
        self.group = group


class Layout:
    """The registers of one target description, in gdb's order. `bits`: 16, 32 or 64, what architecture it names."""

    __slots__ = ("bits", "by_key", "registers", "xml")

    def __init__(self, bits: int, present: Container[str]) -> None:
        self.bits = bits
        self.registers = list(_registers(bits == 64, present))
        self.by_key = {register.key: number for number, register in enumerate(self.registers)}
        self.xml = _description(ARCHITECTURES[bits], self.registers).encode()

    def pack(self, values: Mapping[str, int], number: int) -> bytes:
        """Return the bytes of one register, as view() gives it."""
        register = self.registers[number]
        return (values.get(register.key, 0) & ((1 << 8 * register.size) - 1)).to_bytes(register.size, "little")

    def pack_all(self, values: Mapping[str, int]) -> bytes:
        """Return all of them, as a g packet has them."""
        return b"".join(self.pack(values, number) for number in range(len(self.registers)))

    def changed(self, values: Mapping[str, int], data: bytes) -> dict[str, int]:
        """Return what differs from view() in the bytes of a G packet, which may end early at a whole register."""
        changes, at = {}, 0
        for number, register in enumerate(self.registers):
            part = data[at : at + register.size]
            if not part:
                break
            if len(part) < register.size:
                raise ValueError(f"{register.name} has {register.size} bytes, not {len(part)}")
            if part != self.pack(values, number):
                changes[register.key] = int.from_bytes(part, "little")
            at += register.size
        if at < len(data):
            raise ValueError(f"{len(data)} bytes are more than there are registers")
        return changes


def view(values: Mapping[str, int]) -> dict[str, int]:
    """Return the registers as a debugger is to see them.

    gdb knows no segments: rip is the linear address of the instruction, so that it can be disassembled, and compared
    with those of breakpoints. Outside 64-bit code the upper halves of the eight old registers mean nothing, and are 0.
    """
    seen = dict(values)
    if segments.code_bits(values) != 64:
        for name in GENERAL32:
            seen[name] = seen.get(name, 0) & LOW_4G
    seen["rip"] = segments.linear(values, "cs", values.get("rip", 0))
    return seen


def changes(values: Mapping[str, int], key: str, new: int, read_linear: ReadLinear) -> dict[str, int]:
    """Return what changes in the dict when a debugger sets register `key`; raise TargetError for what cannot be.

    A selector brings its segment's hidden part along, in protected mode from the table in the guest.
    """
    if key == "rip":
        return {key: _offset(values, new)}
    if key in segments.SEGMENTS:
        if new > SELECTOR_MAX:
            raise TargetError(f"{key} has 16 bits, which {new:#x} does not fit")
        try:
            return segments.load(values, key, new, read_linear)
        except segments.SegmentError as error:
            raise TargetError(str(error)) from None
    if key in GENERAL32 and segments.code_bits(values) != 64:
        return {key: new & LOW_4G}
    return {key: new}


def _offset(values: Mapping[str, int], address: int) -> int:
    """Return what rip must be for the instruction at linear `address`."""
    if segments.code_bits(values) == 64:
        return address
    base, limit = values.get("cs_base", 0), values.get("cs_limit", LOW_4G)
    offset = (address - base) & LOW_4G
    if address > LOW_4G or offset > limit:
        raise TargetError(
            f"{address:#x} is not in the code segment, which is {base:#x}-{base + limit:#x}; set cs first"
        )
    return offset


def _registers(long: bool, present: Container[str]) -> Iterable[Register]:
    yield from _core(long)
    count = 16 if long else 8
    if "xmm0" in present:
        for n in range(count):
            yield Register(f"xmm{n}", f"xmm{n}", 16, "vec128", SSE)
        yield Register("mxcsr", "mxcsr", 4, "i386_mxcsr", SSE, "vector")
    word, number = (8, "int64") if long else (4, "int32")
    if long:
        for name in ("fs_base", "gs_base"):
            yield Register(name, name, word, number, SEGMENTS)
    if "ymm0h" in present:
        for n in range(count):
            yield Register(f"ymm{n}h", f"ymm{n}h", 16, "uint128", AVX)
    if "zmm0h" in present and "ymm0h" in present:
        yield from _avx512(long)
    yield from _system(long, word, number, present)


def _core(long: bool) -> Iterable[Register]:
    for key in GENERAL64 if long else GENERAL32:
        pointer = key in ("rsp", "rbp")
        if long:
            yield Register(key, key, 8, "data_ptr" if pointer else "int64", CORE)
        else:
            yield Register("e" + key[1:], key, 4, "data_ptr" if pointer else "int32", CORE)
    yield Register("rip" if long else "eip", "rip", 8 if long else 4, "code_ptr", CORE)
    yield Register("eflags", "rflags", 4, "i386_eflags", CORE)
    for name in segments.SEGMENTS:
        yield Register(name, name, 4, "int32", CORE)
    for n in range(8):
        yield Register(f"st{n}", f"st{n}", 10, "i387_ext", CORE)
    for name in FPU:
        yield Register(name, name, 4, "int", CORE, "float")


def _avx512(long: bool) -> Iterable[Register]:
    for n in range(8):
        yield Register(f"k{n}", f"k{n}", 8, "uint64", AVX512)
    for n in range(16 if long else 8):
        yield Register(f"zmm{n}h", f"zmm{n}h", 32, "vec256", AVX512)
    if long:
        for prefix, suffix, size, kind in (
            ("xmm", "", 16, "vec128"),
            ("ymm", "h", 16, "uint128"),
            ("zmm", "h", 32, "vec256"),
        ):
            for n in range(16, 32):
                yield Register(f"{prefix}{n}{suffix}", f"{prefix}{n}{suffix}", size, kind, AVX512)


def _system(long: bool, word: int, number: str, present: Container[str]) -> Iterable[Register]:
    for name in (*segments.SEGMENTS, *segments.SYSTEM_SEGMENTS):
        if name in segments.SYSTEM_SEGMENTS and name in present:
            yield Register(name, name, 4, "int32", SYSTEM, "system")
        if f"{name}_base" in present and not (long and name in ("fs", "gs")):  # which SEGMENTS has
            yield Register(f"{name}_base", f"{name}_base", word, number, SYSTEM, "system")
        for part in (f"{name}_limit", f"{name}_access"):
            if part in present:
                yield Register(part, part, 4, "int32", SYSTEM, "system")
    if long and "k_gs_base" in present:
        yield Register("k_gs_base", "k_gs_base", word, number, SYSTEM, "system")
    for name in TABLES:
        if f"{name}_base" in present:
            yield Register(f"{name}_base", f"{name}_base", word, number, SYSTEM, "system")
            yield Register(f"{name}_limit", f"{name}_limit", 4, "int32", SYSTEM, "system")
    for name in CONTROL:
        if name in present:
            kind = f"x86_{name}" if name in types.FLAGS else number
            yield Register(name, name, word, kind, SYSTEM, "system")


def _description(architecture: str, registers: list[Register]) -> str:
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        "<target>",
        f"<architecture>{architecture}</architecture>",
        "<osabi>none</osabi>",
    ]
    feature = ""
    for number, register in enumerate(registers):
        if register.feature != feature:
            lines += ["</feature>"] if feature else []
            feature = register.feature
            used = {r.type: r.size for r in registers if r.feature == feature}
            lines += [f'<feature name="{feature}">', *types.definitions(used)]
        group = f' group="{register.group}"' if register.group else ""
        size = f'bitsize="{8 * register.size}"'
        lines.append(f'<reg name="{register.name}" {size} type="{register.type}" regnum="{number}"{group}/>')
    return "\n".join([*lines, "</feature>", "</target>", ""])
