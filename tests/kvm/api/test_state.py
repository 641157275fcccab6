"""The state of a vCPU, read and written; MSRs, CPUID, debugging, time."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

import pytest

from pyvcpu.kvm import CpuidTable, Kvm, KvmError, VcpuFd, VmFd, abi
from pyvcpu.kvm.abi import Cap, Exit
from pyvcpu.kvm.msrs import MsrError, MsrFilterRange

from .conftest import CODE, Guest, attempt, lacks

MSR_TSC, MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_STAR = 0x10, 0x174, 0x175, 0xC0000081
NO_SUCH_MSR = 0xDEAD
CR0_PE, CR4_PAE, CR0_PG = 1, 1 << 5, 1 << 31


def test_registers(vcpu: VcpuFd) -> None:
    assert vcpu.get_regs().rip == 0xFFF0
    vcpu.set_regs(abi.kvm_regs(rax=0x1122334455667788, rflags=2, rip=0x100))
    regs = vcpu.get_regs()
    assert (regs.rax, regs.rip) == (0x1122334455667788, 0x100)
    sregs = vcpu.get_sregs()
    assert sregs.cs.base == 0xFFFF0000
    sregs.ds.base, sregs.ds.selector = 0x12340, 0x1234
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs().ds.base == 0x12340


def test_translation(guest: Guest) -> None:
    assert guest.vcpu.translate(0x1234) == 0x1234


def test_sregs2(vcpu: VcpuFd) -> None:
    sregs = vcpu.get_sregs2()
    assert sregs.cs.base == vcpu.get_sregs().cs.base == 0xFFFF0000
    sregs.es.base, sregs.es.selector = 0x777, 0x77
    vcpu.set_sregs2(sregs)
    assert vcpu.get_sregs2().es.base == 0x777
    sregs.flags = 0xFF00
    with pytest.raises(KvmError) as caught:
        vcpu.set_sregs2(sregs)
    assert caught.value.errno == errno.EINVAL


def test_fpu(vcpu: VcpuFd) -> None:
    fpu = vcpu.get_fpu()
    assert fpu.mxcsr in (0, 0x1F80)
    fpu.xmm[3][0] = 0xAB
    fpu.fcw, fpu.mxcsr = 0x27F, 0x1F80
    vcpu.set_fpu(fpu)
    again = vcpu.get_fpu()
    assert (again.fcw, again.xmm[3][0]) == (0x27F, 0xAB)


def test_xsave(vcpu: VcpuFd, vm: VmFd, kvm: Kvm) -> None:
    vcpu.set_cpuid2(kvm.get_supported_cpuid())
    whole = vcpu.get_xsave2()
    assert len(whole) == max(4096, vm.check_extension(Cap.XSAVE2))
    assert vcpu.get_xsave() == whole[:4096]
    area = bytearray(whole)
    area[0:2] = b"\x7f\x02"  # FCW
    area[512] |= 1  # XSTATE_BV: the x87 part counts (SDM vol. 1, 13.4.2)
    vcpu.set_xsave(bytes(area))
    assert vcpu.get_fpu().fcw == 0x27F
    assert vcpu.get_xsave2()[:2] == b"\x7f\x02"
    with pytest.raises(ValueError, match="4096"):
        vcpu.set_xsave(whole[:100])


def test_extended_control_registers(vcpu: VcpuFd) -> None:
    if not vcpu.get_xcrs():  # a host processor without XSAVE
        return
    assert vcpu.get_xcrs() == {0: 1}
    vcpu.set_xcrs({0: 1})
    with pytest.raises(KvmError, match="XCR0") as caught:
        vcpu.set_xcrs({0: 0})
    assert caught.value.errno == errno.EINVAL


def test_events(vcpu: VcpuFd) -> None:
    events = vcpu.get_vcpu_events()
    assert events.nmi.masked == 0
    events.nmi.masked = 1
    events.flags = abi.KVM_VCPUEVENT_VALID_NMI_PENDING
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi.masked == 1
    events.flags = 1 << 30
    with pytest.raises(KvmError, match="flag") as caught:
        vcpu.set_vcpu_events(events)
    assert caught.value.errno == errno.EINVAL


def test_debug_registers(vcpu: VcpuFd) -> None:
    registers = vcpu.get_debugregs()
    assert registers.dr6 == 0xFFFF0FF0
    registers.db[0] = 0x1234
    vcpu.set_debugregs(registers)
    assert vcpu.get_debugregs().db[0] == 0x1234
    registers.dr7 = 1 << 40
    with pytest.raises(KvmError, match="DR7") as caught:
        vcpu.set_debugregs(registers)
    assert caught.value.errno == errno.EINVAL


def test_mp_state(irq_vm: VmFd) -> None:
    with irq_vm.create_vcpu(0) as vcpu, irq_vm.create_vcpu(1) as other:
        assert vcpu.get_mp_state() == abi.KVM_MP_STATE_RUNNABLE
        assert other.get_mp_state() == abi.KVM_MP_STATE_UNINITIALIZED
        other.set_mp_state(abi.KVM_MP_STATE_HALTED)
        assert other.get_mp_state() == abi.KVM_MP_STATE_HALTED


def test_nested_state(vcpu: VcpuFd, kvm: Kvm, vm: VmFd) -> None:
    if lacks(vm, Cap.NESTED_STATE, vcpu.get_nested_state):
        return
    vcpu.set_cpuid2(kvm.get_supported_cpuid())
    state = vcpu.get_nested_state()
    head = abi.kvm_nested_state.from_buffer_copy(state)
    assert head.size == len(state) >= 128
    assert head.format in (abi.KVM_STATE_NESTED_FORMAT_VMX, abi.KVM_STATE_NESTED_FORMAT_SVM)
    vcpu.set_nested_state(state)
    with pytest.raises(ValueError, match="at least 128"):
        vcpu.set_nested_state(state[:10])


def test_nested_state_that_says_it_is_longer(vcpu: VcpuFd) -> None:
    head = abi.kvm_nested_state(size=1 << 20)
    with pytest.raises(ValueError, match="not be more"):
        vcpu.set_nested_state(bytes(head))


def test_set_nested_state_without_the_capability(vcpu: VcpuFd, vm: VmFd) -> None:
    lacks(vm, Cap.NESTED_STATE, lambda: vcpu.set_nested_state(bytes(abi.kvm_nested_state(size=128))))


def test_msrs(vcpu: VcpuFd) -> None:
    vcpu.set_msrs([(MSR_SYSENTER_CS, 0x10), (MSR_SYSENTER_ESP, 0x8000)])
    assert vcpu.get_msrs([MSR_SYSENTER_ESP, MSR_SYSENTER_CS]) == [(MSR_SYSENTER_ESP, 0x8000), (MSR_SYSENTER_CS, 0x10)]
    assert vcpu.get_msrs([]) == []


def test_more_msrs_than_one_request_takes(vcpu: VcpuFd) -> None:
    vcpu.set_msrs((MSR_SYSENTER_CS, value) for value in range(600))
    assert vcpu.get_msrs([MSR_SYSENTER_CS] * 600) == [(MSR_SYSENTER_CS, 599)] * 600


@pytest.mark.parametrize("position", [0, 2, 300])
def test_an_msr_that_is_refused_is_named(vcpu: VcpuFd, position: int) -> None:
    values = [(MSR_SYSENTER_CS, i) for i in range(position)] + [(NO_SUCH_MSR, 1), (MSR_SYSENTER_CS, 0xFFF)]
    with pytest.raises(MsrError, match=f"MSR 0xdead, number {position} of the list") as caught:
        vcpu.set_msrs(values)
    assert (caught.value.index, caught.value.position) == (NO_SUCH_MSR, position)
    assert vcpu.get_msrs([MSR_SYSENTER_CS]) == [(MSR_SYSENTER_CS, max(position - 1, 0))]  # those before it were done


def test_msr_errors_survive_pickle() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(MsrError("KVM_SET_MSRS", 0xDEAD, 3, "vCPU 1")))
    assert (error.index, error.position, str(error)[:20]) == (0xDEAD, 3, "vCPU 1: KVM_SET_MSRS")


# mov $0xdead,%ecx; rdmsr; hlt
RDMSR = b"\x66\xb9\xad\xde\x00\x00\x0f\x32\xf4"


def test_msr_exits(guest: Guest) -> None:
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
    guest.start(RDMSR)
    run = guest.run()
    assert run.exit_reason == Exit.X86_RDMSR
    assert (run.msr.index, run.msr.reason) == (NO_SUCH_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)


def test_msr_filters(guest: Guest) -> None:
    """Reads of SYSENTER_CS are denied, those of its neighbour are not."""
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_FILTER)
    guest.vm.x86_set_msr_filter([MsrFilterRange(MSR_SYSENTER_CS, b"\x02", 2, write=False)])
    read = b"\x66\xb9%b\x0f\x32"  # mov $n,%ecx; rdmsr
    guest.start(read % MSR_SYSENTER_ESP.to_bytes(4, "little") + read % MSR_SYSENTER_CS.to_bytes(4, "little") + b"\xf4")
    run = guest.run()
    assert (run.exit_reason, run.msr.index) == (Exit.X86_RDMSR, MSR_SYSENTER_CS)
    assert run.msr.reason == abi.KVM_MSR_EXIT_REASON_FILTER
    guest.vm.x86_set_msr_filter()
    guest.start(read % MSR_SYSENTER_CS.to_bytes(4, "little") + b"\xf4")
    guest.page[32] = 0
    assert guest.run().exit_reason == Exit.HLT


def test_msr_filter_that_denies_what_it_does_not_list(guest: Guest) -> None:
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_FILTER)
    guest.vm.x86_set_msr_filter([MsrFilterRange(MSR_STAR, b"\x01")], deny_others=True)
    guest.start(b"\x66\xb9" + MSR_SYSENTER_CS.to_bytes(4, "little") + b"\x0f\x32\xf4")
    assert guest.run().exit_reason == Exit.X86_RDMSR


def test_cpuid(vcpu: VcpuFd, kvm: Kvm) -> None:
    supported = kvm.get_supported_cpuid()
    vcpu.set_cpuid2(supported)
    leaves = {(entry.function, entry.index) for entry in supported}
    assert (1, 0) in {(entry.function, entry.index) for entry in vcpu.get_cpuid2()} <= leaves
    one = abi.kvm_cpuid_entry2(function=1, eax=0x600)
    vcpu.set_cpuid2(CpuidTable.of([one]))
    got = vcpu.get_cpuid2()
    found = got.find(1)
    assert found is not None
    assert found.eax == 0x600


def test_cpuid_of_the_old_kind(vcpu: VcpuFd) -> None:
    vcpu.set_cpuid([abi.kvm_cpuid_entry(function=0, eax=1), abi.kvm_cpuid_entry(function=1, eax=0x123)])
    found = vcpu.get_cpuid2().find(1)
    assert found is not None
    assert found.eax == 0x123


def test_cpuid_for_hyperv_guests(vcpu: VcpuFd, vm: VmFd) -> None:
    if lacks(vm, Cap.HYPERV_CPUID, vcpu.get_supported_hv_cpuid):
        return
    assert vcpu.get_supported_hv_cpuid().find(0x4000_0000) is not None


def test_machine_checks(vcpu: VcpuFd, kvm: Kvm) -> None:
    supported = kvm.x86_get_mce_cap_supported()
    vcpu.x86_setup_mce(supported & 0xFF00_0000 | 10)
    valid, uncorrected = 1 << 63, 1 << 61
    vcpu.x86_set_mce(abi.kvm_x86_mce(status=valid, addr=0x5000, bank=3))
    mc3_status = 0x401 + 4 * 3
    assert vcpu.get_msrs([mc3_status])[0][1] & valid
    with pytest.raises(KvmError, match="bank") as caught:
        vcpu.x86_set_mce(abi.kvm_x86_mce(status=valid | uncorrected, bank=200))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(KvmError, match="32 banks") as caught:
        vcpu.x86_setup_mce(200)
    assert caught.value.errno == errno.EINVAL


def test_single_step(guest: Guest) -> None:
    """nop; nop; hlt"""
    guest.start(b"\x90\x90\xf4")
    guest.vcpu.set_guest_debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP)
    for step in (1, 2):
        run = guest.run()
        assert run.exit_reason == Exit.DEBUG
        assert run.debug.arch.pc == CODE + step
        assert run.debug.arch.exception == abi.DB_VECTOR
    guest.vcpu.set_guest_debug(0)
    assert guest.run().exit_reason == Exit.HLT


def test_debug_registers_of_the_host(vcpu: VcpuFd) -> None:
    control = abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_HW_BP
    vcpu.set_guest_debug(control, [0x1000, 0, 0, 0, 0, 0, 0, 0x401])
    vcpu.set_guest_debug(0)
    with pytest.raises(ValueError, match="8 debug registers"):
        vcpu.set_guest_debug(control, [0] * 9)


def test_time_stamp_counter(vcpu: VcpuFd, vm: VmFd) -> None:
    khz = vcpu.get_tsc_khz()
    assert khz > 1000
    vcpu.set_tsc_khz(khz)
    assert vcpu.get_tsc_khz() == khz
    vcpu.set_tsc_khz(0)
    error = attempt(lambda: vm.set_tsc_khz(khz))
    if error is None:
        assert vm.get_tsc_khz() == khz
    else:
        assert not vm.check_extension(Cap.VM_TSC_CONTROL)
        assert "KVM_CAP_VM_TSC_CONTROL" in error.hint
        assert vm.get_tsc_khz() in (0, khz)  # it can be asked nevertheless


def test_a_rate_that_the_processor_cannot_give(vcpu: VcpuFd, vm: VmFd) -> None:
    if not vm.check_extension(Cap.TSC_CONTROL):
        with pytest.raises(KvmError, match="KVM_CAP_TSC_CONTROL") as caught:
            vcpu.set_tsc_khz(1000)
        assert caught.value.errno == errno.EINVAL


def test_tsc_offset(vcpu: VcpuFd) -> None:
    group, attr = abi.KVM_VCPU_TSC_CTRL, abi.KVM_VCPU_TSC_OFFSET
    assert vcpu.has_device_attr(group, attr)
    assert not vcpu.has_device_attr(group, 99)
    vcpu.set_device_attr(group, attr, 0x1_0000_0000)
    assert vcpu.get_device_attr(group, attr) in (0x1_0000_0000, 0)  # kvm_pvm takes it, and does not do it
    with pytest.raises(KvmError) as caught:
        vcpu.get_device_attr(group, 99)
    assert caught.value.errno == errno.ENXIO


def test_clock(vm: VmFd) -> None:
    before = vm.get_clock()
    vm.set_clock(before.clock + 3_600_000_000_000)
    after = vm.get_clock()
    assert after.clock - before.clock >= 3_600_000_000_000
    assert vm.get_clock().clock > after.clock
    vm.set_clock(abi.kvm_clock_data(clock=5))
    assert vm.get_clock().clock < before.clock + 3_600_000_000_000
    with pytest.raises(KvmError, match="KVM_CLOCK_REALTIME") as caught:
        vm.set_clock(abi.kvm_clock_data(clock=5, flags=1 << 20))
    assert caught.value.errno == errno.EINVAL


def test_a_guest_without_kvmclock_is_not_told_of_a_stop(vcpu: VcpuFd) -> None:
    with pytest.raises(KvmError, match="kvmclock") as caught:
        vcpu.kvmclock_ctrl()
    assert caught.value.errno == errno.EINVAL


def test_a_guest_with_kvmclock_is_told_of_a_stop(guest: Guest) -> None:
    msr_kvm_system_time_new = 0x4B564D01  # Documentation/virt/kvm/x86/msr.rst; bit 0 enables
    guest.vcpu.set_msrs([(msr_kvm_system_time_new, 0x3001)])
    guest.vcpu.kvmclock_ctrl()


def test_performance_events(vm: VmFd) -> None:
    def deny() -> None:
        vm.set_pmu_event_filter(abi.KVM_PMU_EVENT_DENY, [0xC0, 0x3C])

    if lacks(vm, Cap.PMU_EVENT_FILTER, deny):
        return
    deny()
    with pytest.raises(KvmError) as caught:
        vm.set_pmu_event_filter(77, [])
    assert caught.value.errno == errno.EINVAL


def test_single_registers(vcpu: VcpuFd, vm: VmFd) -> None:
    """MSRs by KVM_GET_ONE_REG; on x86 since Linux 6.18."""
    register = abi.KVM_REG_X86 | abi.KVM_REG_SIZE_U64 | abi.KVM_X86_REG_TYPE_MSR << 32 | MSR_SYSENTER_CS
    if lacks(vm, Cap.ONE_REG, lambda: vcpu.set_one_reg(register, 0x10)):
        lacks(vm, Cap.ONE_REG, lambda: vcpu.get_one_reg(register))
        lacks(vm, Cap.ONE_REG, vcpu.get_reg_list)
        return
    vcpu.set_one_reg(register, 0x10)
    assert vcpu.get_one_reg(register) == 0x10
    assert all(one & abi.KVM_REG_ARCH_MASK == abi.KVM_REG_X86 for one in vcpu.get_reg_list())
    with pytest.raises(KvmError) as caught:
        vcpu.get_one_reg(register | 0xFFFF_FFFF)
    assert caught.value.errno == errno.EINVAL


def test_statistics(kvm: Kvm, guest: Guest) -> None:
    guest.start(b"\xe6\x80\xf4")  # out %al,$0x80; hlt
    with guest.vcpu.get_stats_fd() as stats:
        before = stats.read()
        assert guest.run().exit_reason == Exit.IO
        assert guest.run().exit_reason == Exit.HLT
        after = stats.read()
        assert "vcpu-0" in stats.identifier()
        assert isinstance(after["exits"], int)
        assert isinstance(before["exits"], int)
        assert after["exits"] >= before["exits"]
        names = {statistic.name: statistic for statistic in stats.describe()}
        assert names.keys() == after.keys()
        histogram = next(s for s in names.values() if "histogram" in s.kind)
        assert len(after[histogram.name]) == histogram.size  # type: ignore[arg-type]  # a list, as its kind says
    with guest.vm.get_stats_fd() as stats:
        assert "remote_tlb_flush" in stats.read()
        assert stats.identifier().startswith("kvm-")


def test_vcpu_capabilities(vcpu: VcpuFd, irq_vm_vcpu: Callable[[], VcpuFd]) -> None:
    other = irq_vm_vcpu()
    vm = other.parent
    assert isinstance(vm, VmFd)
    if vm.check_extension(Cap.HYPERV_SYNIC2):
        other.enable_cap(Cap.HYPERV_SYNIC2)
    vcpu.enable_cap(Cap.ENFORCE_PV_FEATURE_CPUID, 1)
    with pytest.raises(KvmError, match="turned on") as caught:
        vcpu.enable_cap(Cap.USER_MEMORY)
    assert caught.value.errno == errno.EINVAL


@pytest.fixture
def irq_vm_vcpu(kvm: Kvm, request: pytest.FixtureRequest) -> Callable[[], VcpuFd]:
    def make() -> VcpuFd:
        vm = kvm.create_vm()
        request.addfinalizer(vm.close)
        vm.create_irqchip()
        vcpu = vm.create_vcpu(0)
        request.addfinalizer(vcpu.close)
        return vcpu

    return make


def test_smi(vcpu: VcpuFd, vm: VmFd) -> None:
    if lacks(vm, Cap.X86_SMM, vcpu.smi):
        return
    vcpu.smi()
    assert vcpu.get_vcpu_events().smi.pending in (0, 1)


def test_signal_mask(vcpu: VcpuFd) -> None:
    import signal

    vcpu.set_signal_mask([signal.SIGUSR1])
    vcpu.set_signal_mask(None)
    with pytest.raises(ValueError, match="from 1 to"):
        vcpu.set_signal_mask([0])


def test_xen_guests(vm: VmFd, vcpu: VcpuFd) -> None:
    flags = vm.check_extension(Cap.XEN_HVM)

    def configure() -> None:
        vm.xen_hvm_config(flags & abi.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, 0x40000200)

    if lacks(vm, Cap.XEN_HVM, configure):
        requests: list[Callable[[], object]] = [
            lambda: vm.xen_hvm_get_attr(abi.KVM_XEN_ATTR_TYPE_LONG_MODE),
            lambda: vm.xen_hvm_set_attr(abi.kvm_xen_hvm_attr()),
            lambda: vm.xen_hvm_evtchn_send(1, 0),
            lambda: vcpu.xen_vcpu_get_attr(abi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID),
            lambda: vcpu.xen_vcpu_set_attr(abi.kvm_xen_vcpu_attr()),
        ]
        for request in requests:
            assert lacks(vm, Cap.XEN_HVM, request)
        return
    configure()
    attr = abi.kvm_xen_hvm_attr(type=abi.KVM_XEN_ATTR_TYPE_LONG_MODE)
    attr.u.long_mode = 1
    vm.xen_hvm_set_attr(attr)
    assert vm.xen_hvm_get_attr(abi.KVM_XEN_ATTR_TYPE_LONG_MODE).u.long_mode == 1
    own = abi.kvm_xen_vcpu_attr(type=abi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID)
    own.u.vcpu_id = 7
    vcpu.xen_vcpu_set_attr(own)
    assert vcpu.xen_vcpu_get_attr(abi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID).u.vcpu_id == 7
    with pytest.raises(KvmError) as caught:
        vm.xen_hvm_evtchn_send(1, 99)
    assert caught.value.errno in (errno.EINVAL, errno.ENOENT)


def test_a_hypercall_page_is_kept_as_long_as_the_vm(vm: VmFd) -> None:
    error = attempt(lambda: vm.xen_hvm_config(0, 0x40000200, blob_64=bytes(4096)))
    assert error is None or "KVM_CAP_XEN_HVM" in error.hint
    assert len(vm.kept) == 1
    assert ctypes.sizeof(vm.kept[0]) == 4096  # type: ignore[arg-type]  # a buffer
    with pytest.raises(ValueError, match="whole pages"):
        vm.xen_hvm_config(0, 0, b"short")


def test_devices(vm: VmFd) -> None:
    error = attempt(lambda: vm.create_device(abi.KVM_DEV_TYPE_VFIO, test=True))
    if error is not None:
        assert error.errno == errno.ENODEV
        return
    made = vm.create_device(abi.KVM_DEV_TYPE_VFIO)
    assert made is not None
    with made:
        assert made.has_device_attr(abi.KVM_DEV_VFIO_FILE, abi.KVM_DEV_VFIO_FILE_ADD)
        assert not made.has_device_attr(77, 1)
        with pytest.raises(KvmError) as caught:
            made.set_device_attr(abi.KVM_DEV_VFIO_FILE, abi.KVM_DEV_VFIO_FILE_ADD, (1 << 20).to_bytes(4, "little"))
        assert caught.value.errno == errno.EBADF
        with pytest.raises(KvmError) as caught:
            made.get_device_attr(77, 1)
        assert caught.value.errno in (errno.EPERM, errno.ENXIO)
    with pytest.raises(KvmError) as caught:
        vm.create_device(99)
    assert caught.value.errno == errno.ENODEV
