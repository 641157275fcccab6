"""Interrupts: controllers, timer, lines, messages, routes, event file descriptors, with guests that take them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from pyvcpu.kvm import Kvm, KvmError, VcpuFd, VmFd, abi
from pyvcpu.kvm.abi import Cap, Exit
from pyvcpu.kvm.routes import HvSintRoute, IrqchipRoute, MsiRoute, Route, XenEvtchnRoute

from .conftest import Guest, attempt, lacks, signals

VECTOR = 0x20
APIC = 0xFEE0_0000
HANDLER = 0x1800
# handler: mov $'I',%al; out %al,$0xe9; iret
HANDLER_CODE = b"\xb0I\xe6\xe9\xcf"
# sti; hlt; mov $'.',%al; out %al,$0xe9; hlt   (nothing can come between sti and hlt)
WAITS = b"\xfb\xf4\xb0.\xe6\xe9\xf4"


def with_handler(guest: Guest, vector: int = VECTOR) -> None:
    """Point `vector` of the real-mode table at HANDLER."""
    guest.memory[HANDLER : HANDLER + len(HANDLER_CODE)] = HANDLER_CODE
    guest.memory[4 * vector : 4 * vector + 4] = HANDLER.to_bytes(2, "little") + bytes(2)


@pytest.fixture
def irq_guest(kvm: Kvm, irq_vm: VmFd, memory: mmap.mmap) -> Iterator[Guest]:
    made = Guest(kvm, irq_vm, memory)
    made.vcpu.set_mp_state(abi.KVM_MP_STATE_RUNNABLE)
    with_handler(made)
    made.start(WAITS)
    yield made
    made.close()


def taken(guest: Guest) -> bytes:
    """Run until two bytes were written to port 0xE9: the handler's, and the one behind HLT."""
    out = b""
    while len(out) < 2:
        run = guest.run()
        assert run.exit_reason == Exit.IO
        out += guest.page[run.io.data_offset : run.io.data_offset + 1]
    return out


def accept_extint(guest: Guest) -> None:
    """Unmask line 0 of the first PIC at vector 0x20, through its state, and let the local APIC pass it on."""
    chip = guest.vm.get_irqchip(abi.KVM_IRQCHIP_PIC_MASTER)
    chip.chip.pic.irq_base = VECTOR
    chip.chip.pic.imr = 0xFE
    chip.chip.pic.auto_eoi = 1
    guest.vm.set_irqchip(chip)


def test_interrupt_without_controllers(guest: Guest) -> None:
    """HLT comes back here; KVM_INTERRUPT then takes the guest out of it."""
    with_handler(guest)
    guest.start(WAITS)
    assert guest.run().exit_reason == Exit.HLT
    guest.vcpu.interrupt(VECTOR)
    assert taken(guest) == b"I."


def test_interrupt_with_local_apics_only(vm: VmFd) -> None:
    """A split irqchip takes one interrupt from outside at a time."""
    vm.enable_cap(Cap.SPLIT_IRQCHIP, 24)
    with vm.create_vcpu(0) as vcpu:
        vcpu.interrupt(VECTOR)
        with pytest.raises(KvmError, match="queued already") as caught:
            vcpu.interrupt(VECTOR)
        assert caught.value.errno == errno.EEXIST


def test_interrupt_with_controllers_is_refused(irq_guest: Guest) -> None:
    with pytest.raises(KvmError, match="irq_line") as caught:
        irq_guest.vcpu.interrupt(VECTOR)
    assert caught.value.errno == errno.ENXIO


def test_a_line_reaches_the_guest(irq_guest: Guest) -> None:
    accept_extint(irq_guest)
    irq_guest.vm.irq_line(0, 1)
    assert taken(irq_guest) == b"I."
    irq_guest.vm.irq_line(0, 0)


def test_the_status_of_a_line(irq_guest: Guest) -> None:
    accept_extint(irq_guest)
    assert irq_guest.vm.irq_line_status(0, 1) >= 1  # it may go to a PIC and the IOAPIC
    irq_guest.vm.irq_line_status(0, 0)
    assert taken(irq_guest) == b"I."


def test_a_message_reaches_the_guest(irq_guest: Guest) -> None:
    enable_apic(irq_guest.vcpu)
    assert irq_guest.vm.signal_msi(APIC, VECTOR) == 1
    assert taken(irq_guest) == b"I."


def enable_apic(vcpu: VcpuFd) -> None:
    """Turn the local APIC on: spurious-interrupt vector register, bit 8 (SDM vol. 3A, 11.9)."""
    registers = bytearray(vcpu.get_lapic())
    assert len(registers) == 1024
    registers[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
    vcpu.set_lapic(bytes(registers))
    assert vcpu.get_lapic()[0xF0:0xF2] == b"\xff\x01"


def test_a_message_needs_a_controller(vm: VmFd) -> None:
    with pytest.raises(KvmError) as caught:
        vm.signal_msi(APIC, VECTOR)
    assert caught.value.errno == errno.EINVAL


def test_an_eventfd_reaches_the_guest(irq_guest: Guest, eventfd: int) -> None:
    enable_apic(irq_guest.vcpu)
    irq_guest.vm.set_gsi_routing([MsiRoute(40, APIC, VECTOR)])
    with irq_guest.vm.irqfd(eventfd, 40) as registration:
        os.eventfd_write(eventfd, 1)
        assert taken(irq_guest) == b"I."
        with pytest.raises(KvmError, match="raises an interrupt already") as caught:
            irq_guest.vm.irqfd(eventfd, 40)
        assert caught.value.errno == errno.EBUSY
    registration.close()
    assert "taken back" in repr(registration)
    irq_guest.vm.irqfd(eventfd, 40).close()


def test_a_resampled_eventfd(irq_vm: VmFd, eventfd: int) -> None:
    assert irq_vm.check_extension(Cap.IRQFD_RESAMPLE) == 1
    resample = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        with irq_vm.irqfd(eventfd, 9, resample), pytest.raises(KvmError) as caught:
            irq_vm.irqfd(eventfd, 9, resample)
        assert caught.value.errno == errno.EBUSY
    finally:
        os.close(resample)


def test_a_resampled_eventfd_is_told_of_the_end_of_interrupt(irq_guest: Guest, eventfd: int) -> None:
    """The handler acknowledges through the local APIC: movl $0,0xb0 with DS at 0xFEE00000; then as HANDLER_CODE."""
    guest = irq_guest
    guest.memory[HANDLER : HANDLER + 14] = b"\x66\xc7\x06\xb0\x00\x00\x00\x00\x00" + HANDLER_CODE
    enable_apic(guest.vcpu)
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base = APIC
    guest.vcpu.set_sregs(sregs)
    ioapic = guest.vm.get_irqchip(abi.KVM_IRQCHIP_IOAPIC)
    ioapic.chip.ioapic.redirtbl[9].bits = VECTOR | 1 << 15  # level-triggered, not masked (82093AA, 3.2.4)
    guest.vm.set_irqchip(ioapic)
    resample = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        with guest.vm.irqfd(eventfd, 9, resample):
            os.eventfd_write(eventfd, 1)
            assert signals(resample) == 0
            assert taken(guest) == b"I."
            assert signals(resample) == 1
    finally:
        os.close(resample)


def test_routes(irq_vm: VmFd) -> None:
    irq_vm.set_gsi_routing([IrqchipRoute(4, abi.KVM_IRQCHIP_IOAPIC, 4), MsiRoute(64, APIC, 0x31)])
    irq_vm.set_gsi_routing([])
    with pytest.raises(KvmError) as caught:
        irq_vm.set_gsi_routing([IrqchipRoute(4, 9, 4)])
    assert caught.value.errno == errno.EINVAL


def test_routes_of_other_hypervisors_guests(irq_vm: VmFd, has: Callable[[Cap], int]) -> None:
    with irq_vm.create_vcpu(0):
        kinds: list[tuple[Cap, Route]] = [
            (Cap.HYPERV_SYNIC, HvSintRoute(30, 0, 2)),
            (Cap.XEN_HVM, XenEvtchnRoute(31, 1, 0)),
        ]
        for cap, route in kinds:
            if has(cap):
                irq_vm.set_gsi_routing([route])
            else:
                with pytest.raises(KvmError) as caught:
                    irq_vm.set_gsi_routing([route])
                assert caught.value.errno == errno.EINVAL


def test_routes_are_values() -> None:
    route = MsiRoute(1, APIC, 2, devid=7)
    assert route == MsiRoute(1, APIC, 2, 7) != MsiRoute(1, APIC, 2)
    assert len({route, MsiRoute(1, APIC, 2, 7)}) == 1
    assert repr(IrqchipRoute(1, 2, 3)) == "IrqchipRoute(gsi=1, chip=2, pin=3)"
    assert route.entry().flags == abi.KVM_MSI_VALID_DEVID
    high = MsiRoute(1, 0x1_FEE0_0000, 2).entry().u.msi
    assert (high.address_hi, high.address_lo) == (1, 0xFEE0_0000)


def test_controllers_keep_what_is_written(irq_vm: VmFd) -> None:
    ioapic = irq_vm.get_irqchip(abi.KVM_IRQCHIP_IOAPIC)
    assert ioapic.chip.ioapic.base_address == 0xFEC0_0000
    assert ioapic.chip.ioapic.redirtbl[3].fields.mask == 1
    ioapic.chip.ioapic.redirtbl[3].fields.vector = 0x55
    irq_vm.set_irqchip(ioapic)
    again = irq_vm.get_irqchip(abi.KVM_IRQCHIP_IOAPIC)
    assert again.chip.ioapic.redirtbl[3].bits & 0xFF == 0x55


def test_controllers_that_are_not_there(vm: VmFd) -> None:
    with vm.create_vcpu(0) as vcpu:
        for request in (
            lambda: vm.get_irqchip(0),
            lambda: vm.set_irqchip(abi.kvm_irqchip()),
            lambda: vm.irq_line(1, 1),
        ):
            with pytest.raises(KvmError, match="create_irqchip") as caught:
                request()
            assert caught.value.errno == errno.ENXIO
        with pytest.raises(KvmError, match="local APIC") as caught:
            vcpu.get_lapic()
        assert caught.value.errno == errno.EINVAL


def test_the_timer(irq_vm: VmFd) -> None:
    irq_vm.create_pit2(abi.KVM_PIT_SPEAKER_DUMMY)
    state = irq_vm.get_pit2()
    state.channels[2].count = 0x1234
    state.channels[2].mode = 3
    state.flags = abi.KVM_PIT_FLAGS_HPET_LEGACY
    irq_vm.set_pit2(state)
    again = irq_vm.get_pit2()
    assert (again.channels[2].count, again.channels[2].mode) == (0x1234, 3)
    assert again.flags & abi.KVM_PIT_FLAGS_HPET_LEGACY
    older = irq_vm.get_pit()
    assert older.channels[2].count == 0x1234
    older.channels[2].count = 0x4321
    irq_vm.set_pit(older)
    assert irq_vm.get_pit2().channels[2].count == 0x4321
    irq_vm.reinject_control(False)
    irq_vm.reinject_control(True)
    with pytest.raises(KvmError, match="timer already") as caught:
        irq_vm.create_pit2()
    assert caught.value.errno == errno.EEXIST


def test_the_older_timer(irq_vm: VmFd) -> None:
    irq_vm.create_pit()
    assert irq_vm.get_pit2().channels[0].gate == 1
    with pytest.raises(KvmError) as caught:
        irq_vm.create_pit()
    assert caught.value.errno == errno.EEXIST


def test_a_timer_that_is_not_there(vm: VmFd) -> None:
    state = abi.kvm_pit_state2()
    requests: list[Callable[[], object]] = [
        vm.get_pit,
        vm.get_pit2,
        lambda: vm.set_pit(abi.kvm_pit_state()),
        lambda: vm.set_pit2(state),
        lambda: vm.reinject_control(True),
    ]
    for request in requests:
        with pytest.raises(KvmError, match="no timer") as caught:
            request()
        assert caught.value.errno == errno.ENXIO
    error = attempt(vm.create_pit2)
    assert error is None or error.errno == errno.ENOENT  # newer kernels want the controllers first


def test_an_nmi_reaches_the_guest(irq_guest: Guest) -> None:
    with_handler(irq_guest, 2)
    irq_guest.start(b"\x90\xb0.\xe6\xe9\xf4")  # nop; mov $'.',%al; out %al,$0xe9; hlt
    irq_guest.vcpu.nmi()
    assert taken(irq_guest) == b"I."


def test_the_boot_cpu(vm: VmFd) -> None:
    vm.create_irqchip()
    vm.set_boot_cpu_id(1)
    with vm.create_vcpu(0) as first, vm.create_vcpu(1) as second:
        assert first.get_sregs().apic_base & 1 << 8 == 0  # IA32_APIC_BASE.BSP (SDM vol. 3A, 11.4.4)
        assert second.get_sregs().apic_base & 1 << 8
        assert first.get_mp_state() == abi.KVM_MP_STATE_UNINITIALIZED
        assert second.get_mp_state() == abi.KVM_MP_STATE_RUNNABLE


def test_task_priority(irq_guest: Guest) -> None:
    irq_guest.vcpu.tpr_access_reporting(True)
    irq_guest.vcpu.tpr_access_reporting(False)
    irq_guest.vcpu.set_vapic_addr(0x3000)
    irq_guest.vcpu.set_vapic_addr(0)


def test_vapic_needs_a_local_apic(vcpu: VcpuFd) -> None:
    with pytest.raises(KvmError) as caught:
        vcpu.set_vapic_addr(0x3000)
    assert caught.value.errno == errno.EINVAL


def test_an_access_to_an_ioeventfd(guest: Guest, eventfd: int) -> None:
    """out %al,$0x80 (8 bits) twice; then mov $1,%al and again; hlt."""
    guest.start(b"\xb0\x00\xe6\x80\xe6\x80\xb0\x01\xe6\x80\xf4")
    with guest.vm.ioeventfd(eventfd, 0x80, 1, datamatch=0, pio=True):
        run = guest.run()
        assert (run.exit_reason, run.io.port) == (Exit.IO, 0x80)  # the third, with 1
        assert signals(eventfd) == 2
        with pytest.raises(KvmError) as caught:
            guest.vm.ioeventfd(eventfd, 0x80, 1, datamatch=0, pio=True)
        assert caught.value.errno == errno.EEXIST
    assert guest.run().exit_reason == Exit.HLT
    assert signals(eventfd) == 0


def test_an_ioeventfd_for_memory_of_any_length(guest: Guest, eventfd: int) -> None:
    """mov %al,0x0(%bx); mov %ax,0x0(%bx); hlt, with DS at 0xF0000."""
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base, sregs.ds.selector = 0xF0000, 0xF000
    guest.vcpu.set_sregs(sregs)
    guest.start(b"\x88\x07\x89\x07\xf4", rbx=0x10)
    assert guest.vm.check_extension(Cap.IOEVENTFD_ANY_LENGTH)
    with guest.vm.ioeventfd(eventfd, 0xF0010, 0):
        assert guest.run().exit_reason == Exit.HLT
    assert signals(eventfd) == 2


def test_coalesced_writes(guest: Guest, kvm: Kvm) -> None:
    """mov %al,(%bx), out %al,$0x71, inc %al: three times; hlt."""
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base, sregs.ds.selector = 0xF0000, 0xF000
    guest.vcpu.set_sregs(sregs)
    guest.start(b"\x88\x07\xe6\x71\xfe\xc0" * 3 + b"\xf4", rbx=0x20, rax=0x41)
    ring = guest.vcpu.coalesced_ring(guest.page)
    with (
        guest.vm.register_coalesced_mmio(0xF0000, 0x1000),
        guest.vm.register_coalesced_mmio(0x71, 1, pio=True),
    ):
        assert guest.run().exit_reason == Exit.HLT
        writes = [(write.address, write.data, write.pio) for write in ring.drain()]
        assert writes == [
            (0xF0020, b"A", False),
            (0x71, b"A", True),
            (0xF0020, b"B", False),
            (0x71, b"B", True),
            (0xF0020, b"C", False),
            (0x71, b"C", True),
        ]
        assert ring.drain() == []
    guest.start(b"\xe6\x71\xf4")
    assert guest.run().exit_reason == Exit.IO  # the zone is gone


def test_a_coalesced_ring_that_fills_up(guest: Guest) -> None:
    """loop: out %al,$0x71; jmp loop. The ring has room for 169 writes; kernels of old see it full earlier."""
    guest.start(b"\xe6\x71\xeb\xfc")
    ring = guest.vcpu.coalesced_ring(guest.page)
    with guest.vm.register_coalesced_mmio(0x71, 1, pio=True):
        for _ in range(3):
            assert guest.run().exit_reason == Exit.IO
            assert 1 < len(ring.drain()) < abi.KVM_COALESCED_MMIO_MAX


def test_a_zone_that_wraps_around(vm: VmFd) -> None:
    vm.unregister_coalesced_mmio(0x1000, 0x1000)  # there is none, which is no error
    with pytest.raises(KvmError) as caught:
        vm.ioctl(abi.KVM_REGISTER_COALESCED_MMIO, abi.kvm_coalesced_mmio_zone(addr=0, size=8, pio=2))
    assert caught.value.errno == errno.EINVAL


def test_hyperv_connections(vm: VmFd, eventfd: int) -> None:
    if lacks(vm, Cap.HYPERV_EVENTFD, lambda: vm.hyperv_eventfd(5, eventfd)):
        return
    with vm.hyperv_eventfd(5, eventfd):
        with pytest.raises(KvmError) as caught:
            vm.hyperv_eventfd(5, eventfd)
        assert caught.value.errno == errno.EEXIST
    with vm.hyperv_eventfd(5, eventfd):
        pass
    with pytest.raises(KvmError) as caught:
        vm.ioctl(abi.KVM_HYPERV_EVENTFD, abi.kvm_hyperv_eventfd(5, -1, abi.KVM_HYPERV_EVENTFD_DEASSIGN))
    assert caught.value.errno == errno.ENOENT


def test_an_irqfd_wants_an_eventfd(irq_vm: VmFd) -> None:
    with open(os.devnull, "rb") as other, pytest.raises(KvmError) as caught:
        irq_vm.irqfd(other, 5)
    assert caught.value.errno == errno.EINVAL
    assert ctypes.sizeof(abi.kvm_irqfd) == 32
