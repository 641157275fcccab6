"""VcpuReset: put a vCPU back into a state in which it was, by setting only what has changed.

Registers and events lie in the page that KVM shares, where they are compared and set without a request. Each request
for a vCPU takes KVM 0.3 to 3 us; so those that read the other pieces are made ready once.
"""

from __future__ import annotations

import ctypes
from struct import pack

from ..kvm.abi import basic, debug, msr
from ..kvm.abi import state as abi
from ..kvm.abi.layout import (
    CR8,
    DIRTY_REGS,
    IF_FLAG,
    READY_FOR_INTERRUPT_INJECTION,
    SYNC_EVENTS,
    SYNC_REGS,
    SYNC_SREGS,
)
from ..vcpu import state
from ..vcpu.pieces import get_halted, set_halted
from ..vcpu.shared import share_events
from ..x86.cpuid import Leaves
from ..x86.features import shown
from ..x86.flags import CR0, CR4, EFER
from .plain import TIME_MSRS, msr_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator

    from ..vcpu.core import Cpu
    from ..vcpu.thread import VcpuThread

# Pieces that a guest cannot change, or that are compared in the shared page.
SEEN_TO = {"tsc_khz", "cpuid", "regs", "sregs", "sregs2", "vcpu_events", "halted"}
REQUESTS = {
    "fpu": abi.KVM_GET_FPU,
    "xsave": abi.KVM_GET_XSAVE,
    "xcrs": abi.KVM_GET_XCRS,
    "debugregs": debug.KVM_GET_DEBUGREGS,
    "lapic": abi.KVM_GET_LAPIC,
    "mp_state": basic.KVM_GET_MP_STATE,
}
SIZES = {"xcrs": ctypes.sizeof(abi.kvm_xcrs)}
SHARED = (
    (basic.KVM_SYNC_X86_SREGS, SYNC_SREGS, "sregs"),
    (basic.KVM_SYNC_X86_REGS, SYNC_REGS, "regs"),
    (basic.KVM_SYNC_X86_EVENTS, SYNC_EVENTS, "vcpu_events"),
)
NESTED = {"vmx", "svm"}
CR8_AT, RFLAGS_AT = basic.kvm_sregs.cr8.offset, basic.kvm_regs.rflags.offset
# Where in an XSAVE area things lie that are not the guest's (SDM vol. 1 sections 10.5.1.1, 13.4.2): MXCSR_MASK, which
# is 0 until the registers were saved for the first time; XSTATE_BV, for what that leaves out has its initial values.
NOT_COMPARED = (slice(28, 32), slice(512, 520))
MSR_ENTRY = "<IIQ"  # struct kvm_msr_entry


def is_simple(saved: dict[str, bytes]) -> bool:
    """Tell whether a vCPU in this state can be put back piece by piece.

    Not in PAE paging: KVM then reads memory when sregs are set.
    """
    sregs = basic.kvm_sregs.from_buffer_copy(saved["sregs"])
    return not (sregs.cr0 & CR0.PG and sregs.cr4 & CR4.PAE and not sregs.efer & EFER.LMA)


def settle(cpu: Cpu, saved: dict[str, bytes]) -> None:
    """Have the page that KVM shares say of interrupts what the registers in `saved` say, to which they were set.

    It matters only without a local APIC in the kernel.
    """
    run = cpu.run
    run[CR8 : CR8 + 8] = saved["sregs"][CR8_AT : CR8_AT + 8]
    run[READY_FOR_INTERRUPT_INJECTION] = 0  # the next exit says
    run[IF_FLAG] = saved["regs"][RFLAGS_AT + 1] >> 1 & 1


class Compared:
    """A piece that is read by the table's function, and set where it is not what it was."""

    def __init__(self, cpu: VcpuThread, name: str, saved: bytes) -> None:
        self.name = name
        self._cpu = cpu
        self._get = state.BY_NAME[name].get
        self._set = state.BY_NAME[name].set
        self._saved = saved

    def put_back(self) -> bool:
        """Set the piece if it has changed; return whether it had."""
        if self._get(self._cpu) == self._saved:
            return False
        self._set(self._cpu, self._saved)
        return True


class Requested(Compared):
    """One that a request made ready beforehand reads: `number`, with `asked` in the buffer.

    What KVM says when this is made is what it must say later.
    """

    def __init__(self, cpu: VcpuThread, name: str, saved: bytes, number: int, asked: bytes) -> None:
        super().__init__(cpu, name, saved)
        self._buffer = ctypes.create_string_buffer(asked, len(asked))
        self.number, self.address = number, ctypes.addressof(self._buffer)
        self._ask()
        self._expected = self._buffer.raw

    def _ask(self) -> None:
        if self._cpu.fd.kernel.ioctl(self._cpu.fd.fd, self.number, self.address) < 0:
            raise self._cpu.fd.refusal(f"the request for {self.name}")

    def put_back(self) -> bool:
        """Set the piece if KVM says something else."""
        self._ask()
        return self.compare()

    def compare(self) -> bool:
        """Do the rest of put_back(), once KVM was asked."""
        if self._buffer.raw == self._expected:
            return False
        self._put()
        return True

    def _put(self) -> None:
        self._set(self._cpu, self._saved)


class Xsave(Requested):
    """The XSAVE area, and with it x87 and SSE."""

    def __init__(self, cpu: VcpuThread, saved: dict[str, bytes], number: int, asked: bytes) -> None:
        super().__init__(cpu, "xsave", saved["xsave"], number, asked)
        self._fpu = saved["fpu"]
        view = memoryview(self._buffer).cast("B")
        self._same = [(view[place], self._expected[place]) for place in NOT_COMPARED]

    def compare(self) -> bool:
        """Compare all but NOT_COMPARED."""
        for place, expected in self._same:
            place[:] = expected
        return super().compare()

    def _put(self) -> None:
        state.put(self._cpu, "fpu", self._fpu)  # first, as in the table: an area in its initial state leaves old values
        super()._put()


class Msrs(Requested):
    """All MSRs but those that count time; of them, only those that have changed are set: some have side effects."""

    def __init__(self, cpu: VcpuThread, saved: bytes) -> None:
        self._pairs = [(index, value) for index, value in msr_pairs(saved) if index not in TIME_MSRS]
        self._ready(cpu)
        before = self._expected
        self._ask()
        now = self._buffer.raw
        if now != before:  # counters, which nobody would put back in time
            places = zip(range(8, len(now), 16), self._pairs, strict=True)
            self._pairs = [pair for at, pair in places if now[at : at + 16] == before[at : at + 16]]
            self._ready(cpu)

    def _ready(self, cpu: VcpuThread) -> None:
        asked = b"".join(pack(MSR_ENTRY, index, 0, 0) for index, _ in self._pairs)
        super().__init__(cpu, "msrs", b"", msr.KVM_GET_MSRS.number, pack("<II", len(self._pairs), 0) + asked)

    def _put(self) -> None:
        now, size = self._buffer.raw, 16
        changed = [
            (index, int.from_bytes(self._expected[at + 8 : at + size], "little"))
            for at, (index, _) in zip(range(8, len(now), size), self._pairs, strict=True)
            if now[at : at + size] != self._expected[at : at + size]
        ]
        self._set(self._cpu, b"".join(pack("<QQ", *pair) for pair in changed))


def compared(cpu: VcpuThread, saved: dict[str, bytes]) -> Iterator[Compared]:
    """Yield what a vCPU's state consists of beside the shared page, in the order of the table."""
    nested = NESTED & set(shown(Leaves.unpack(saved["cpuid"])))
    for piece in state.PIECES:
        name = piece.name
        if name in SEEN_TO or not piece.is_there(cpu) or name not in saved:
            continue
        if (name == "nested_state" and not nested) or (name == "fpu" and "xsave" in saved):
            continue
        if name == "msrs":
            yield Msrs(cpu, saved[name])
        elif name not in REQUESTS:
            yield Compared(cpu, name, saved[name])
        else:
            request = REQUESTS[name]
            if len(saved[name]) > ctypes.sizeof(abi.kvm_xsave):
                request = abi.KVM_GET_XSAVE2
            asked = bytes(max(SIZES.get(name, 0), len(saved[name])))
            if name == "xsave":
                yield Xsave(cpu, saved, request.number, asked)
            else:
                yield Requested(cpu, name, saved[name], request.number, asked)


class VcpuReset:
    """Puts one vCPU back into the state `saved`; it is in that state when this is made. For the vCPU's thread."""

    def __init__(self, cpu: VcpuThread, saved: dict[str, bytes]) -> None:
        self._cpu = cpu
        share_events()
        shared = cpu.fd.shared
        assert shared is not None
        self._pieces = list(compared(cpu, saved))
        self._ioctl = cpu.fd.kernel.ioctl
        self._requests = [
            (piece.number, piece.address, piece) for piece in self._pieces if isinstance(piece, Requested)
        ]
        self._compared = [piece for piece in self._pieces if not isinstance(piece, Requested)]
        self._page: list[tuple[int, slice, bytes]] = []
        for which, offset, name in SHARED:
            shared.view(which)
            place = slice(offset, offset + len(saved[name]))
            self._page.append((which, place, cpu.run[place]))
        self._saved = saved
        self.changing: set[str] = set()

    def put_back(self, all_pieces: bool) -> None:
        """Set what has changed. Without `all_pieces`, look only at registers, events and what was seen to change."""
        cpu, changing, was_set = self._cpu, self.changing, False
        self._put_page()  # first: what the other pieces may be depends on the mode
        if all_pieces:
            ioctl, fd = self._ioctl, cpu.fd.fd
            for number, address, asked in self._requests:  # in one loop: it is half the time
                if ioctl(fd, number, address) < 0:
                    raise cpu.fd.refusal(f"the request for {asked.name}")
                if asked.compare():
                    changing.add(asked.name)
                    was_set = True
            pieces = self._compared
        else:
            pieces = self._pieces
        for piece in pieces:
            if (all_pieces or piece.name in changing) and piece.put_back():
                changing.add(piece.name)
                was_set = True
        if was_set:
            self._put_page()
        halted = self._saved["halted"]
        if get_halted(cpu) != halted:
            set_halted(cpu, halted)
        if not cpu.has_apic:
            settle(cpu, self._saved)

    def _put_page(self) -> None:
        run, dirty = self._cpu.run, 0
        for which, place, wanted in self._page:
            if run[place] != wanted:
                run[place] = wanted
                dirty |= which
        if dirty:
            run[DIRTY_REGS] |= dirty
