"""All that a vCPU's state consists of: one table, in the order in which it is set. For the vCPU's thread.

Each piece is a string of bytes: the structure that KVM takes and gives, or what a line below says. Reset, plug, the
crash report, snapshots and debuggers go through this table; none has a list of registers of its own.

The order is the one that KVM needs (QEMU: kvm_arch_put_registers). CPUID and the TSC's rate rule what the rest may be;
segments and control registers come before a nested guest and the general registers; the local APIC comes before the
MSRs, because the deadline of its timer is one; events and MP state come last, for the other requests may make some.
"""

from __future__ import annotations

import ctypes

from ..kvm.abi import basic, capabilities
from . import pieces, pieces_msr
from .pieces import VcpuStateError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping

    from .core import Cpu


class Piece:
    """One piece: its name, the capability without which it is not there (0: it always is), and how to get and set it.

    `reset(cpu, machine_wide)` gives its value after reset, None where reset leaves it as it is. `size`: its bytes, 0
    where that differs from vCPU to vCPU. `needs_apic`: only where KVM has local APICs.
    """

    __slots__ = ("cap", "get", "name", "needs_apic", "reset", "set", "size")

    def __init__(
        self,
        name: str,
        cap: int,
        get: Callable[[Cpu], bytes],
        set: Callable[[Cpu, bytes], None],
        reset: Callable[[Cpu, bool], bytes | None],
        size: int = 0,
        *,
        needs_apic: bool = False,
    ) -> None:
        self.name = name
        self.cap = cap
        self.get = get
        self.set = set
        self.reset = reset
        self.size = size
        self.needs_apic = needs_apic

    def is_there(self, cpu: Cpu) -> bool:
        """Whether this KVM and machine have it."""
        return (cpu.has_apic or not self.needs_apic) and (not self.cap or cpu.context.has(self.cap) > 0)


PIECES = (
    Piece(
        "guest_debug",
        capabilities.KVM_CAP_SET_GUEST_DEBUG,
        pieces.get_guest_debug,
        pieces.set_guest_debug,
        pieces.reset_guest_debug,
        72,
    ),
    Piece("tsc_khz", capabilities.KVM_CAP_GET_TSC_KHZ, pieces.get_tsc_khz, pieces.set_tsc_khz, pieces.unchanged, 8),
    Piece("cpuid", 0, pieces.get_cpuid, pieces.set_cpuid, pieces.unchanged),
    Piece("sregs", 0, pieces.get_sregs, pieces.set_sregs, pieces.reset_sregs, ctypes.sizeof(basic.kvm_sregs)),
    Piece("sregs2", capabilities.KVM_CAP_SREGS2, pieces.get_sregs2, pieces.set_sregs2, pieces.unchanged, 320),
    Piece(
        "nested_state",
        capabilities.KVM_CAP_NESTED_STATE,
        pieces.get_nested_state,
        pieces.set_nested_state,
        pieces.reset_nested_state,
    ),
    Piece("regs", 0, pieces.get_regs, pieces.set_regs, pieces.reset_regs, ctypes.sizeof(basic.kvm_regs)),
    Piece("fpu", 0, pieces.get_fpu, pieces.set_fpu, pieces.reset_fpu, 416),
    Piece("xsave", capabilities.KVM_CAP_XSAVE, pieces.get_xsave, pieces.set_xsave, pieces.reset_xsave),
    Piece("xcrs", capabilities.KVM_CAP_XCRS, pieces.get_xcrs, pieces.set_xcrs, pieces.reset_xcrs),
    Piece(
        "debugregs",
        capabilities.KVM_CAP_DEBUGREGS,
        pieces.get_debugregs,
        pieces.set_debugregs,
        pieces.reset_debugregs,
        128,
    ),
    Piece("lapic", 0, pieces.get_lapic, pieces.set_lapic, pieces.reset_lapic, 1024, needs_apic=True),
    Piece("msrs", 0, pieces_msr.get_msrs, pieces_msr.set_msrs, pieces_msr.reset_msrs),
    Piece(
        "vcpu_events", capabilities.KVM_CAP_VCPU_EVENTS, pieces.get_events, pieces.set_events, pieces.reset_events, 64
    ),
    Piece("mp_state", 0, pieces.get_mp_state, pieces.set_mp_state, pieces.reset_mp_state, 4, needs_apic=True),
    Piece("halted", 0, pieces.get_halted, pieces.set_halted, pieces.reset_halted, 1),
)
BY_NAME = {piece.name: piece for piece in PIECES}


def get(cpu: Cpu, name: str) -> bytes:
    """Return the piece `name`; raise VcpuStateError where this vCPU has none."""
    return _piece(cpu, name).get(cpu)


def put(cpu: Cpu, name: str, data: bytes) -> None:
    """Set the piece `name`. Raise VcpuStateError where `data` cannot be one, KvmError where KVM refuses it."""
    piece = _piece(cpu, name)
    check(piece, data)
    piece.set(cpu, data)


def check(piece: Piece, data: object) -> None:
    """Raise VcpuStateError unless `data` are bytes of the right size for `piece`."""
    if not isinstance(data, bytes):
        raise VcpuStateError(f"the piece {piece.name} of a vCPU's state must be bytes, not {type(data).__name__}")
    if piece.size and len(data) != piece.size:
        raise VcpuStateError(f"the piece {piece.name} of a vCPU's state must be {piece.size} bytes, not {len(data)}")


def save(cpu: Cpu) -> dict[str, bytes]:
    """Return the whole state, in the table's order; the access under way, if any, is completed first."""
    pieces.finish_io(cpu)
    return {piece.name: piece.get(cpu) for piece in PIECES if piece.is_there(cpu)}


def load(cpu: Cpu, state: Mapping[str, bytes]) -> None:
    """Take what save() gave, of this vCPU or one like it. Raise VcpuStateError, with nothing changed, where a piece is
    missing, unknown or of the wrong size; VcpuStateError or KvmError where KVM refuses a piece, with some set.
    """
    there = [piece for piece in PIECES if piece.is_there(cpu)]
    names = {piece.name for piece in there}
    if names != set(state):
        wrong = ", ".join(sorted(names.symmetric_difference(state)))
        raise VcpuStateError(f"the state of vCPU {cpu.index} does not have the same pieces as this KVM's: {wrong}")
    for piece in there:
        check(piece, state[piece.name])
    before_load(cpu)
    for piece in there:
        piece.set(cpu, state[piece.name])


def before_load(cpu: Cpu) -> None:
    """Leave what would stand in the way of another state: an access under way, events, a nested guest."""
    pieces.finish_io(cpu)
    cpu.clear_page()
    if cpu.has_apic:
        cpu.fd.get_mp_state()  # KVM then takes the INIT and the SIPI that may still be on their way
    for name in ("vcpu_events", "nested_state"):
        piece = BY_NAME[name]
        if piece.is_there(cpu) and (none := piece.reset(cpu, False)) is not None:
            piece.set(cpu, none)


def reset(cpu: Cpu, *, machine_wide: bool = False) -> None:
    """Put every piece to its value after reset: nothing that the guest did with this vCPU can be seen afterwards.

    `machine_wide`: all vCPUs are being reset, so that the MSRs which are the machine's can be, too.
    """
    before_load(cpu)
    for piece in PIECES:
        if piece.is_there(cpu) and (value := piece.reset(cpu, machine_wide)) is not None:
            piece.set(cpu, value)


def _piece(cpu: Cpu, name: str) -> Piece:
    piece = BY_NAME.get(name)
    if piece is None:
        raise VcpuStateError(f"there is no piece {name!r} of a vCPU's state: {', '.join(BY_NAME)}")
    if not piece.is_there(cpu):
        raise VcpuStateError(f"vCPU {cpu.index} has no piece {name} on this KVM or in this machine")
    return piece
