"""Methods: which kinds of stops this host's KVM reports, found out by trying each on a VM made for it."""

from __future__ import annotations

import struct

from ..errors import PyvcpuError
from ..kvm.abi import basic, capabilities
from ..kvm.abi import debug as abi
from ..memory import GuestMemory
from ..x86.paging import identity_map
from ..x86.start import StartState, set_start

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from ..kvm.system import Kvm
    from ..kvm.vcpu import VcpuFd

CODE, DATA, TABLES = 0x1000, 0x2000, 0x10000  # where the trials have them
USER = 0b100  # PTE.U
NOP, HLT, INT3 = b"\x90", b"\xf4", b"\xcc"
STORE = b"\x88\x07"  # mov %al, (%rdi)
LOAD = b"\x8a\x07"  # mov (%rdi), %al
REGISTERS = 4
DR7_EXACT = 1 << 10  # a bit that always reads as 1
EXECUTE, WRITE, ACCESS = 0b00, 0b01, 0b11  # DR7.R/W (SDM vol. 3B section 18.2.4)
LENGTHS = {1: 0b00, 2: 0b01, 4: 0b11, 8: 0b10}  # DR7.LEN
LONG_USER_CODE, LONG_USER_DATA, DPL_USER = 0x33, 0x2B, 3


class Methods:
    """What works. Each is True where a guest's stop of that kind reached us in a trial.

    `step`: single steps; `execute` and `watch`: breakpoints and watchpoints by debug register; `software`: int3.
    `user_step` and `user_execute`: the same in code at CPL 3. `block_irq`: KVM can keep interrupts from a vCPU that
    steps (KVM_GUESTDBG_BLOCKIRQ).
    """

    __slots__ = ("block_irq", "execute", "software", "step", "user_execute", "user_step", "watch")

    NAMES = ("step", "execute", "watch", "software", "user_step", "user_execute")

    def __init__(
        self,
        *,
        step: bool = False,
        execute: bool = False,
        watch: bool = False,
        software: bool = False,
        user_step: bool = False,
        user_execute: bool = False,
        block_irq: bool = False,
    ) -> None:
        self.step = step
        self.execute = execute
        self.watch = watch
        self.software = software
        self.user_step = user_step
        self.user_execute = user_execute
        self.block_irq = block_irq

    def as_dict(self) -> dict[str, bool]:
        """Return them by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    def describe(self) -> str:
        """Return what works and what does not, in a line."""
        words = {
            "step": "steps",
            "execute": "breakpoints",
            "watch": "watchpoints",
            "software": "int3",
            "user_step": "steps at CPL 3",
            "user_execute": "breakpoints at CPL 3",
        }
        there = ", ".join(text for name, text in words.items() if getattr(self, name))
        missing = ", ".join(text for name, text in words.items() if not getattr(self, name))
        return (there or "nothing") + (f"; not: {missing}" if missing else "")


_known: dict[str, Methods] = {}


def methods(kvm: Kvm) -> Methods:
    """Return what works with `kvm`; the trials are made once in a process for each device file."""
    key = f"{kvm.path} {type(kvm.kernel).__name__}"
    found = _known.get(key)
    if found is None:
        found = _known[key] = try_all(kvm)
    return found


def try_all(kvm: Kvm) -> Methods:
    """Make the trials; what cannot be tried does not work."""
    if not kvm.check_extension(capabilities.KVM_CAP_SET_GUEST_DEBUG):
        return Methods()
    memory = GuestMemory("1M")
    try:
        with kvm.create_vm() as vm:
            memory.register(vm)
            with vm.create_vcpu(0) as fd:
                trial = _Trial(kvm, memory, fd)
                try:
                    works = {name: trial.works(name) for name in Methods.NAMES}
                finally:
                    trial.close()
    except PyvcpuError:
        return Methods()
    finally:
        memory.close()
    flags = kvm.check_extension(capabilities.KVM_CAP_SET_GUEST_DEBUG2)
    return Methods(**works, block_irq=bool(flags & abi.KVM_GUESTDBG_BLOCKIRQ))


def dr7(slot: int, kind: int, length: int) -> int:
    """Return the bits of DR7 that turn debug register `slot` on (SDM vol. 3B figure 18-1)."""
    return DR7_EXACT | 0b10 << 2 * slot | (kind | LENGTHS[length] << 2) << 16 + 4 * slot


class _Trial:
    """A vCPU of its own in 64-bit mode; each trial runs a few instructions, which end in an exit in any case."""

    def __init__(self, kvm: Kvm, memory: GuestMemory, fd: VcpuFd) -> None:
        self._fd = fd
        self._memory = memory
        fd.set_cpuid2(kvm.get_supported_cpuid())
        self._sregs = basic.kvm_sregs()
        fd.ioctl(basic.KVM_GET_SREGS, self._sregs)
        self._run = fd.map_run(kvm.get_vcpu_mmap_size())
        tables = struct.unpack("<1536Q", identity_map(TABLES, 1))
        memory.write(TABLES, struct.pack("<1536Q", *(entry | USER if entry else 0 for entry in tables)))

    def close(self) -> None:
        self._run.close()

    def works(self, name: str) -> bool:
        """Make one trial."""
        single = abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP
        hardware = abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_HW_BP
        execute = [CODE + 1, 0, 0, 0, 0, 0, 0, dr7(0, EXECUTE, 1)]
        write = [DATA, 0, 0, 0, 0, 0, 0, dr7(0, WRITE, 1)]
        access = [DATA, 0, 0, 0, 0, 0, 0, dr7(0, ACCESS, 1)]
        trials: dict[str, Callable[[], bool]] = {
            "step": lambda: self._stops(NOP * 2, single, (), CODE + 1),
            "execute": lambda: self._stops(NOP * 2, hardware, execute, CODE + 1),
            "watch": lambda: (
                self._stops(STORE + NOP, hardware, write, CODE + 2)
                and self._stops(LOAD + NOP, hardware, access, CODE + 2)
            ),
            "software": lambda: self._stops(
                NOP + INT3, abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_SW_BP, (), CODE + 1
            ),
            "user_step": lambda: self._stops(NOP * 2, single, (), CODE + 1, user=True),
            "user_execute": lambda: self._stops(NOP * 2, hardware, execute, CODE + 1, user=True),
        }
        try:
            return trials[name]()
        except (PyvcpuError, OSError):
            return False

    def _stops(self, code: bytes, control: int, registers: Any, where: int, *, user: bool = False) -> bool:
        """Run `code` and a HLT behind it; tell whether a debug exit came at `where`."""
        self._memory.write(CODE, code + HLT)
        regs, sregs = basic.kvm_regs(), basic.kvm_sregs.from_buffer_copy(self._sregs)
        set_start(StartState("long", CODE, page_table=TABLES, registers={"rdi": DATA}), regs, sregs)
        if user:
            sregs.cs.selector, sregs.ss.selector = LONG_USER_CODE, LONG_USER_DATA
            sregs.cs.dpl = sregs.ss.dpl = DPL_USER
        self._fd.ioctl(basic.KVM_SET_SREGS, sregs)
        self._fd.ioctl(basic.KVM_SET_REGS, regs)
        self._fd.set_guest_debug(control, registers)
        self._fd.run()
        from ..exits import Debug, decode

        event = decode(self._run)
        return isinstance(event, Debug) and event.pc == where
