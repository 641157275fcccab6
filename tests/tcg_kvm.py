"""Guests of a few bytes on the software KVM, driven through pyvcpu.kvm, for its unit tests."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from pyvcpu.kvm import Kvm, VcpuFd, abi
from pyvcpu.tcg.kernel import TcgKernel
from pyvcpu.tcg.vcpu import Vcpu

PAGE = 4096
SIZE = 64 * PAGE
CODE, HANDLER, STACK = 0x1000, 0x1800, 0x8000


class Rig:
    """A VM with 256 KiB of memory at 0 and `smp` vCPUs in real mode, all segments at 0."""

    def __init__(self, smp: int = 1, irqchip: str = "none", flags: int = 0) -> None:
        self.kernel = TcgKernel()
        self.kvm = Kvm("tcg", self.kernel)
        self.vm = self.kvm.create_vm()
        self.memory = mmap.mmap(-1, SIZE)
        if irqchip == "kernel":
            self.vm.create_irqchip()
        elif irqchip == "split":
            self.vm.enable_cap(abi.Cap.SPLIT_IRQCHIP, 24)
        self.vm.set_user_memory_region(0, 0, SIZE, address_of(self.memory), flags)
        self.vcpus = [self.vm.create_vcpu(index) for index in range(smp)]
        self.pages = [vcpu.map_run(self.kvm.get_vcpu_mmap_size()) for vcpu in self.vcpus]
        table = self.kvm.get_supported_cpuid()
        for vcpu in self.vcpus:
            vcpu.set_cpuid2(table)
            sregs = vcpu.get_sregs()
            for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
                segment.base = segment.selector = 0
            vcpu.set_sregs(sregs)

    @property
    def vcpu(self) -> VcpuFd:
        """Return the first vCPU."""
        return self.vcpus[0]

    @property
    def page(self) -> mmap.mmap:
        """Return the first vCPU's kvm_run."""
        return self.pages[0]

    def inside(self, index: int = 0) -> Vcpu:
        """Return what stands behind a vCPU's fd."""
        thing = self.kernel._things[self.vcpus[index].fd]
        assert isinstance(thing, Vcpu)
        return thing

    def start(self, code: bytes, index: int = 0, at: int = CODE, **registers: int) -> None:
        """Put code into memory, and a vCPU before it, with interrupts off."""
        self.memory[at : at + len(code)] = code
        regs = abi.kvm_regs(rip=at, rflags=2, rsp=STACK)
        for name, value in registers.items():
            setattr(regs, name, value)
        self.vcpus[index].set_regs(regs)

    def handler(self, vector: int, code: bytes = b"\xb0I\xe6\xe9\xcf", at: int = HANDLER) -> None:
        """Serve a vector: by default mov $'I',%al; out %al,$0xe9; iret."""
        self.memory[at : at + len(code)] = code
        self.memory[4 * vector : 4 * vector + 4] = at.to_bytes(2, "little") + bytes(2)

    def run(self, index: int = 0) -> abi.kvm_run:
        """Run to the next exit; returns a copy of its kvm_run."""
        while True:
            code = self.vcpus[index].run()
            if code == 0:
                return abi.kvm_run.from_buffer_copy(self.pages[index][: ctypes.sizeof(abi.kvm_run)])
            assert code == errno.EAGAIN, errno.errorcode[code]

    def out(self, count: int, index: int = 0) -> bytes:
        """Run until `count` bytes were written to ports, and return them."""
        found = b""
        while len(found) < count:
            run = self.run(index)
            assert run.exit_reason == abi.Exit.IO, run.exit_reason
            found += self.pages[index][run.io.data_offset : run.io.data_offset + run.io.size * run.io.count]
        return found

    def close(self) -> None:
        """Give everything back."""
        for page in self.pages:
            page.close()
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.kvm.close()
        self.memory.close()


def address_of(memory: mmap.mmap) -> int:
    """Return where `memory` is, without pinning it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@contextmanager
def rig(smp: int = 1, irqchip: str = "none", flags: int = 0) -> Iterator[Rig]:
    """Make a Rig, and give it back."""
    made = Rig(smp, irqchip, flags)
    try:
        yield made
    finally:
        made.close()
