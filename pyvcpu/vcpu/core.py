"""Cpu: a virtual processor as its own thread sees it. Other threads have the handle, Vcpu, and get at this through
it.
"""

from __future__ import annotations

from ..kvm.abi.layout import CR8, DIRTY_REGS, IMMEDIATE_EXIT, REQUEST_INTERRUPT_WINDOW, SYNC_REGS

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from collections.abc import Callable
    from typing import TypeVar

    from ..kvm.cpuid import CpuidTable
    from .context import KvmContext
    from .handle import Control, Vcpu
    from .shared import SyncedFd
    from .template import CpuTemplate

    T = TypeVar("T")


class Cpu:
    """What belongs to the thread of one vCPU, and lasts from one of its lives to the next.

    `vcpu` is its handle. `fd` and `run` (struct kvm_run and what follows it) are there from init_vcpu to destroy_vcpu.
    `cpuid`, `tsc_khz`, `mcg_cap` and `reset_sregs` are what KVM got or gave when the vCPU was first created;
    `has_lived` says that it was, `has_run` that it has been in KVM_RUN since.
    """

    def __init__(self, vcpu: Vcpu, context: KvmContext, template: CpuTemplate, control: Control) -> None:
        self.vcpu = vcpu
        self.index = vcpu.index
        self.apic_id = vcpu.apic_id
        self.context = context
        self.template = template
        self.control = control
        self.waits_for_sipi = False  # for good: nothing in this machine can send one
        self.cpuid: CpuidTable
        self.reset_sregs = b""
        self.tsc_khz = 0
        self.mcg_cap = 0
        self.has_lived = False
        self.has_run = False
        self.again = 0  # KVM_RUNs in turn that failed with EAGAIN
        self.fd: SyncedFd
        self.run: mmap.mmap

    @property
    def has_apic(self) -> bool:
        """Whether KVM has a local APIC for it."""
        return self.context.irqchip != "none"

    def step(self, name: str, function: Callable[[], T]) -> T:
        """Take a step of its life, under the name that the probe sees."""
        return self.context.step(self.index, name, function)

    def clear_page(self) -> None:
        """Take back what kvm_run asks of the next KVM_RUN, save a kick that is on its way."""
        with self.control.lock:
            self.run[REQUEST_INTERRUPT_WINDOW] = 0
            self.run[IMMEDIATE_EXIT] = self.vcpu._kicked
            self.run[CR8 : CR8 + 8] = bytes(8)
            self.run[DIRTY_REGS:SYNC_REGS] = bytes(SYNC_REGS - DIRTY_REGS)
