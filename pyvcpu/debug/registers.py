"""All registers of a vCPU by name, in one dict, as debuggers take them; on the vCPU's thread, through its state table.

The names are those of x86/names.py and x86/fpu.py, and k_gs_base, xcr0, dr0 to dr3, dr6, dr7.
"""

from __future__ import annotations

from ..errors import PyvcpuError
from ..kvm.abi import basic as abi
from ..vcpu import state
from ..x86 import fpu, names
from ..x86.cpuid import EBX, EDX, EXTENDED_FEATURES, XSAVE

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Mapping

    from ..vcpu.core import Cpu

LONG_MODE = 1 << 29  # CPUID leaf 0x80000001 EDX
KERNEL_GS_BASE = 0xC000_0102  # IA32_KERNEL_GS_BASE
DEBUG_REGISTERS = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
NEW = tuple(f"r{n}" for n in range(8, 16))  # registers that only processors with long mode have


def read(cpu: Cpu) -> dict[str, int]:
    """Return all registers that this vCPU has."""
    regs = abi.kvm_regs.from_buffer_copy(state.get(cpu, "regs"))
    sregs = abi.kvm_sregs.from_buffer_copy(state.get(cpu, "sregs"))
    values = names.from_structures(regs, sregs)
    if _is_there(cpu, "xsave"):
        values |= fpu.from_xsave(state.get(cpu, "xsave"), offsets(cpu))
    if _is_there(cpu, "xcrs"):
        values |= {"xcr0": cpu.fd.get_xcrs().get(0, 0)}
    if _is_there(cpu, "debugregs"):
        values |= dict(zip(DEBUG_REGISTERS, _debug_registers(cpu), strict=True))
    if has_long_mode(cpu):
        values |= _kernel_gs_base(cpu)
    else:
        for name in NEW:
            del values[name]
    return values


def write(cpu: Cpu, values: Mapping[str, int]) -> None:
    """Change registers, all of them or none. Raise ValueError for one that is unknown or does not fit, KvmError or
    VcpuStateError where KVM refuses it.
    """
    unknown = values.keys() - read(cpu).keys()
    if unknown:
        raise ValueError(f"no such register: {', '.join(sorted(unknown))}")
    pieces = _changed(cpu, values)
    before = {name: state.get(cpu, name) for name in pieces}
    done: list[str] = []
    try:
        for name, data in pieces.items():
            done.append(name)
            state.put(cpu, name, data)
        if "k_gs_base" in values:
            cpu.fd.set_msrs([(KERNEL_GS_BASE, values["k_gs_base"])])
    except PyvcpuError:
        for name in done:
            state.put(cpu, name, before[name])
        raise


def _changed(cpu: Cpu, values: Mapping[str, int]) -> dict[str, bytes]:
    """Return the pieces of state that change, in the order in which they are set."""
    pieces: dict[str, bytes] = {}
    regs = abi.kvm_regs.from_buffer_copy(state.get(cpu, "regs"))
    sregs = abi.kvm_sregs.from_buffer_copy(state.get(cpu, "sregs"))
    general, system = names.to_structures(values, regs, sregs)
    if system:
        pieces["sregs"] = bytes(sregs)
    if general:
        pieces["regs"] = bytes(regs)
    places = fpu.places(offsets(cpu))
    vectors = {name: value for name, value in values.items() if name in places or name == "ftag"}
    if vectors:
        area = bytearray(state.get(cpu, "xsave"))
        fpu.to_xsave(area, offsets(cpu), vectors)
        pieces["xsave"] = bytes(area)
    if "xcr0" in values:
        pieces["xcrs"] = (0).to_bytes(8, "little") + values["xcr0"].to_bytes(8, "little")
    if values.keys() & set(DEBUG_REGISTERS):
        from ..kvm.abi.debug import kvm_debugregs

        held = kvm_debugregs.from_buffer_copy(state.get(cpu, "debugregs"))
        for number in range(4):
            held.db[number] = values.get(f"dr{number}", held.db[number])
        held.dr6, held.dr7 = values.get("dr6", held.dr6), values.get("dr7", held.dr7)
        pieces["debugregs"] = bytes(held)
    return pieces


def offsets(cpu: Cpu) -> dict[int, int]:
    """Return where the components of this vCPU's XSAVE area lie, by their number: CPUID leaf 0xD tells."""
    found = {}
    for component in (fpu.AVX, fpu.OPMASK, fpu.ZMM_HIGH, fpu.HIGH_ZMM):
        offset = cpu.template.leaves.read(XSAVE, EBX, component)
        if offset:
            found[component] = offset
    return found


def has_long_mode(cpu: Cpu) -> bool:
    """Whether the processor that the guest sees has 64-bit mode."""
    return bool(cpu.template.leaves.read(EXTENDED_FEATURES, EDX) & LONG_MODE)


def _is_there(cpu: Cpu, name: str) -> bool:
    return state.BY_NAME[name].is_there(cpu)


def _debug_registers(cpu: Cpu) -> list[int]:
    from ..kvm.abi.debug import kvm_debugregs

    held = kvm_debugregs.from_buffer_copy(state.get(cpu, "debugregs"))
    return [*held.db, held.dr6, held.dr7]


def _kernel_gs_base(cpu: Cpu) -> dict[str, int]:
    try:
        return {"k_gs_base": dict(cpu.fd.get_msrs([KERNEL_GS_BASE]))[KERNEL_GS_BASE]}
    except PyvcpuError:
        return {}
