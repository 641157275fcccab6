"""The processor's state at its start, and how one that has lived gets back to it (QEMU: cpu_reset).

On the vCPU's thread. KVM gives a new vCPU the state after reset; only one with a past needs the second part.
"""

from __future__ import annotations

from ..kvm.abi import basic as abi
from ..x86.cpuid import EAX, FEATURES
from ..x86.start import set_start
from .execute import finish_io

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..kvm.vcpu import VcpuFd
    from .accel import Accel
    from .vcpu import Vcpu

RESET_RIP, RESET_RFLAGS = 0xFFF0, 1 << 1  # SDM vol. 3A table 10-1
NESTED_HEAD, NO_ADDRESS = 128, 0xFFFF_FFFF_FFFF_FFFF  # sizeof struct kvm_nested_state; KVM's "none"


def cpu_reset(vcpu: Vcpu) -> None:
    """Put registers and MP state into the vCPU's starting state, or the state after reset when it waits for a SIPI."""
    vcpu.registers.drop_view()
    vcpu.sregs.drop_view()
    regs = abi.kvm_regs()
    sregs = abi.kvm_sregs.from_buffer_copy(vcpu.reset_sregs)
    if vcpu.start is None:
        regs.rip, regs.rflags = RESET_RIP, RESET_RFLAGS
        regs.rdx = vcpu.accel.leaves.read(FEATURES, EAX)
    else:
        set_start(vcpu.start, regs, sregs)
    vcpu.fd.set_sregs(sregs)
    vcpu.fd.set_regs(regs)
    if vcpu.accel.irqchip != "none":
        waits = vcpu.start is None
        vcpu.fd.set_mp_state(abi.KVM_MP_STATE_UNINITIALIZED if waits else abi.KVM_MP_STATE_RUNNABLE)


def forget_former_life(vcpu: Vcpu, machine_wide: bool = False) -> None:
    """Reset all that cpu_reset() does not: nothing that the guest did with this vCPU can be seen afterwards.

    `machine_wide`: all vCPUs are being reset, so that the MSRs which are the machine's can be, too.
    """
    from ..kvm.abi.caps import Cap
    from ..x86 import reset

    accel, fd = vcpu.accel, vcpu.fd
    has_apic = accel.irqchip != "none"
    finish_io(vcpu)
    vcpu.clear_page()
    if has_apic:
        fd.get_mp_state()  # KVM then takes the INIT and the SIPI that may still be on their way
    _reset_events(accel, fd)
    fd.set_sregs(abi.kvm_sregs.from_buffer_copy(vcpu.reset_sregs))
    if accel.kvm.check_extension(Cap.NESTED_STATE):
        _leave_nested_guest(fd)
    _reset_fpu(fd)
    if accel.kvm.check_extension(Cap.XSAVE):
        fd.set_xsave(reset.xsave_area())
    if accel.kvm.check_extension(Cap.XCRS):
        fd.set_xcrs({0: reset.XCR0})
    _set_msrs(fd, _msrs(vcpu), machine_wide)
    if has_apic:
        version = int.from_bytes(fd.get_lapic()[reset.APIC_VERSION :][:4], "little")
        fd.set_lapic(reset.apic_page(vcpu.apic_id, version, vcpu.apic_id == 0))
    if accel.kvm.check_extension(Cap.DEBUGREGS):
        _reset_debug_registers(fd)


def _reset_events(accel: Accel, fd: VcpuFd) -> None:
    """Take back exceptions, interrupts, NMI and SMI that are pending or being delivered."""
    from ..kvm.abi import events
    from ..kvm.abi.caps import Cap

    if not accel.kvm.check_extension(Cap.VCPU_EVENTS):
        return
    none = events.kvm_vcpu_events(
        flags=events.KVM_VCPUEVENT_VALID_NMI_PENDING
        | events.KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | events.KVM_VCPUEVENT_VALID_SHADOW
    )
    if accel.kvm.check_extension(Cap.X86_SMM):
        none.flags |= events.KVM_VCPUEVENT_VALID_SMM
    fd.set_vcpu_events(none)


def _leave_nested_guest(fd: VcpuFd) -> None:
    """Forget a guest of the guest's; without one in use nothing changes (api.rst 4.115)."""
    from ..kvm.abi import nested

    head = nested.kvm_nested_state.from_buffer_copy(fd.get_nested_state())
    none = nested.kvm_nested_state(format=head.format, size=NESTED_HEAD)
    if head.format == nested.KVM_STATE_NESTED_FORMAT_SVM:
        none.flags = nested.KVM_STATE_NESTED_GIF_SET
    else:
        none.hdr.vmx.vmxon_pa = none.hdr.vmx.vmcs12_pa = NO_ADDRESS
    fd.set_nested_state(bytes(none))


def _reset_fpu(fd: VcpuFd) -> None:
    """Reset x87 and SSE; an XSAVE area that says "initial state" leaves their old values where KVM_GET_FPU looks."""
    from ..kvm.abi.state import kvm_fpu
    from ..x86 import reset

    fd.set_fpu(kvm_fpu(fcw=reset.FCW, mxcsr=reset.MXCSR, ftwx=reset.FTWX))


def _reset_debug_registers(fd: VcpuFd) -> None:
    from ..kvm.abi.debug import kvm_debugregs
    from ..x86 import reset

    fd.set_debugregs(kvm_debugregs(dr6=reset.DR6, dr7=reset.DR7))


def _msrs(vcpu: Vcpu) -> dict[int, int]:
    """Return what the MSRs hold after reset: KVM is asked, once per machine, with a vCPU that never ran.

    It is one of a VM of its own, because a VM can use an id once only.
    """
    accel = vcpu.accel
    with accel.lock:
        known = accel.reset_msrs
    if known is None:
        with accel.kvm.create_vm() as vm, vm.create_vcpu(0) as fd:
            known = _read_new(vcpu, fd)
        with accel.lock:
            accel.reset_msrs = known
    return known


def _read_new(vcpu: Vcpu, fd: VcpuFd) -> dict[int, int]:
    from ..kvm.msrs import MsrError
    from ..x86 import reset

    fd.set_cpuid2(vcpu.cpuid)
    if vcpu.mcg_cap:
        fd.x86_setup_mce(vcpu.mcg_cap)
    listed = vcpu.accel.kvm.get_msr_index_list()
    waiting = [*listed, *reset.MTRRS, *reset.machine_check_msrs(vcpu.mcg_cap & 0xFF)]
    found: dict[int, int] = {}
    while waiting:
        try:
            found.update(fd.get_msrs(waiting))
            break
        except MsrError as error:  # listed, and yet not for this processor
            found.update(fd.get_msrs(waiting[: error.position]))
            del waiting[: error.position + 1]
    found.pop(reset.HV_VP_INDEX, None)
    found[reset.IA32_TSC] = reset.TSC_TO_SYNCHRONIZE
    return found


def _set_msrs(fd: VcpuFd, values: dict[int, int], machine_wide: bool) -> None:
    """Write MSRs, all but those that KVM refuses: they cannot have changed either."""
    from ..kvm.msrs import MsrError
    from ..x86.reset import OF_MACHINE

    waiting = [pair for pair in values.items() if machine_wide or pair[0] not in OF_MACHINE]
    while waiting:
        try:
            fd.set_msrs(waiting)
            return
        except MsrError as error:
            del waiting[: error.position + 1]
