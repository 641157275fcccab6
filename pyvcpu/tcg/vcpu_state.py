"""The requests of a vCPU for its registers: general, segment, FPU, MSRs, CPUID."""

from __future__ import annotations

import errno
from struct import pack, unpack

from . import interp_msrs, msrs, xsaves
from . import state as states
from .cpuid import MOST, Entry, Table
from .cpuid import pack as pack_cpuid
from .cpuid import unpack as unpack_cpuid
from .platform import Platform
from .thing import fetch, give

ONE_MSR = 0x2030_0002_0000_0000  # KVM_REG_X86 | KVM_REG_SIZE_U64 | KVM_X86_REG_TYPE_MSR << 32


class VcpuState(Platform):
    """A vCPU as far as its registers go."""

    def _get_regs(self, address: int) -> int:
        give(address, states.get_regs(self))
        return 0

    def _set_regs(self, address: int) -> int:
        states.set_regs(self, fetch(address, states.REGS.size))
        return 0

    def _get_sregs(self, address: int) -> int:
        give(address, states.get_sregs(self))
        return 0

    def _set_sregs(self, address: int) -> int:
        states.set_sregs(self, fetch(address, states.SREGS.size))
        return 0

    def _get_sregs2(self, address: int) -> int:
        give(address, states.get_sregs2(self))
        return 0

    def _set_sregs2(self, address: int) -> int:
        states.set_sregs2(self, fetch(address, states.SREGS2.size))
        return 0

    def _get_events(self, address: int) -> int:
        give(address, states.get_events(self))
        return 0

    def _set_events(self, address: int) -> int:
        states.set_events(self, fetch(address, states.EVENTS.size))
        return 0

    def _get_debugregs(self, address: int) -> int:
        give(address, states.get_debugregs(self))
        return 0

    def _set_debugregs(self, address: int) -> int:
        states.set_debugregs(self, fetch(address, states.DEBUGREGS.size))
        return 0

    def _get_fpu(self, address: int) -> int:
        give(address, xsaves.get_fpu(self.cpu))
        return 0

    def _set_fpu(self, address: int) -> int:
        xsaves.set_fpu(self.cpu, fetch(address, xsaves.FPU_SIZE))
        return 0

    def _get_xsave(self, address: int) -> int:
        give(address, xsaves.get_xsave(self.cpu))
        return 0

    def _set_xsave(self, address: int) -> int:
        xsaves.set_xsave(self.cpu, fetch(address, xsaves.XSAVE_SIZE))
        return 0

    def _get_xcrs(self, address: int) -> int:
        give(address, pack("<IIIIQ", 1, 0, 0, 0, self.cpu.xcr0) + bytes(16 * 15 + 128))
        return 0

    def _set_xcrs(self, address: int) -> int:
        count, flags = unpack("<II", fetch(address, 8))
        if count > 16 or flags:
            raise OSError(errno.EINVAL, "xcrs")
        for at in range(count):
            number, value = unpack("<I4xQ", fetch(address + 8 + 16 * at, 16))
            if number == 0:
                if not value & 1 or value & ~3:
                    raise OSError(errno.EINVAL, "XCR0")
                self.cpu.xcr0 = value
        return 0

    def _get_msrs(self, address: int) -> int:
        return msrs.get_list(address, self._get_msr)

    def _set_msrs(self, address: int) -> int:
        return msrs.set_list(address, self._set_msr)

    def _get_msr(self, index: int) -> int | None:
        if index == msrs.EFER or index in interp_msrs.OWN_MSRS or index in (msrs.FS_BASE, msrs.GS_BASE):
            return interp_msrs.get_msr(self.cpu, index)
        return msrs.read(self, index, True)

    def _set_msr(self, index: int, value: int) -> bool:
        cpu = self.cpu
        if index == msrs.EFER:
            if value & ~states.EFER_BITS:
                return False
            cpu.efer = value & ~0x400 | cpu.efer & 0x400
            cpu.state_changed()
            return True
        if index in interp_msrs.OWN_MSRS or index in (msrs.FS_BASE, msrs.GS_BASE):
            return bool(interp_msrs.set_msr(cpu, index, value))
        return msrs.write(self, index, value, True)

    def _get_one_reg(self, address: int) -> int:
        number, place = unpack("<QQ", fetch(address, 16))
        value = self._get_msr(number & 0xFFFF_FFFF) if number & ~0xFFFF_FFFF == ONE_MSR else None
        if value is None:
            raise OSError(errno.EINVAL, "no such register")
        give(place, pack("<Q", value))
        return 0

    def _set_one_reg(self, address: int) -> int:
        number, place = unpack("<QQ", fetch(address, 16))
        (value,) = unpack("<Q", fetch(place, 8))
        if number & ~0xFFFF_FFFF != ONE_MSR or not self._set_msr(number & 0xFFFF_FFFF, value):
            raise OSError(errno.EINVAL, "no such register")
        return 0

    def _set_cpuid2(self, address: int) -> int:
        (count,) = unpack("<I", fetch(address, 4))
        if count > MOST:
            raise OSError(errno.E2BIG, "too many")
        return self._take_cpuid(unpack_cpuid(fetch(address + 8, 40 * count) if count else b""))

    def _set_cpuid(self, address: int) -> int:
        (count,) = unpack("<I", fetch(address, 4))
        if count > MOST:
            raise OSError(errno.E2BIG, "too many")
        entries: list[Entry] = []
        for at in range(count):
            function, *registers = unpack("<5I", fetch(address + 8 + 24 * at, 20))
            entries.append((function, 0, 0, registers[0], registers[1], registers[2], registers[3]))
        return self._take_cpuid(entries)

    def _take_cpuid(self, entries: list[Entry]) -> int:
        if self.has_run:
            if entries != self.cpuid_table.entries:
                raise OSError(errno.EINVAL, "the vCPU has run")
            return 0
        self.cpuid_table = Table(entries)
        self.cpu.state_changed()
        if self.lapic is not None:
            self.lapic.cpuid_changed()
        return 0

    def _get_cpuid2(self, address: int) -> int:
        (room,) = unpack("<I", fetch(address, 4))
        entries = self.cpuid_table.entries
        give(address, pack("<I", len(entries)))
        if room < len(entries):
            raise OSError(errno.E2BIG, "too short")
        if entries:
            give(address + 8, pack_cpuid(self.runtime_cpuid(entry) for entry in entries))
        return 0
