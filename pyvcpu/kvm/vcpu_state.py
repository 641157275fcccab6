"""VcpuFd's methods for state beyond the general registers."""

from __future__ import annotations

import ctypes
import errno

from .abi import capabilities, events, nested
from .abi import state as abi
from .errors import KvmError
from .fd import U32, U64, bytes_of, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Mapping
    from typing import Any

    from .vcpu import VcpuFd

XSAVE_SIZE = 4096
NESTED_HEAD = ctypes.sizeof(nested.kvm_nested_state)
MAX_STATE = 1 << 20
MAX_REGISTERS = 1 << 16


def get_sregs2(vcpu: VcpuFd) -> abi.kvm_sregs2:
    """Read what get_sregs() reads, and the PDPTRs (KVM_GET_SREGS2, api.rst 4.131). Needs KVM_CAP_SREGS2."""
    sregs = abi.kvm_sregs2()
    vcpu.ioctl(abi.KVM_GET_SREGS2, sregs)
    return sregs


def set_sregs2(vcpu: VcpuFd, sregs: abi.kvm_sregs2) -> None:
    """Write what set_sregs() writes, and the PDPTRs (KVM_SET_SREGS2, api.rst 4.132). Needs KVM_CAP_SREGS2."""
    vcpu.ioctl(abi.KVM_SET_SREGS2, sregs)


def get_fpu(vcpu: VcpuFd) -> abi.kvm_fpu:
    """Read the x87 and SSE registers (KVM_GET_FPU, api.rst 4.22)."""
    fpu = abi.kvm_fpu()
    vcpu.ioctl(abi.KVM_GET_FPU, fpu)
    return fpu


def set_fpu(vcpu: VcpuFd, fpu: abi.kvm_fpu) -> None:
    """Write the x87 and SSE registers (KVM_SET_FPU, api.rst 4.23)."""
    vcpu.ioctl(abi.KVM_SET_FPU, fpu)


def get_lapic(vcpu: VcpuFd) -> bytes:
    """Return the 1024 bytes of the local APIC's registers (KVM_GET_LAPIC, api.rst 4.57). Needs KVM_CAP_IRQCHIP."""
    lapic = abi.kvm_lapic_state()
    vcpu.ioctl(abi.KVM_GET_LAPIC, lapic)
    return bytes(lapic)


def set_lapic(vcpu: VcpuFd, registers: bytes) -> None:
    """Write the 1024 bytes of the local APIC's registers (KVM_SET_LAPIC, api.rst 4.58). Needs KVM_CAP_IRQCHIP."""
    if len(bytes_of("the registers of a local APIC", registers)) != abi.KVM_APIC_REG_SIZE:
        raise ValueError(f"the registers of a local APIC are {abi.KVM_APIC_REG_SIZE} bytes")
    vcpu.ioctl(abi.KVM_SET_LAPIC, abi.kvm_lapic_state.from_buffer_copy(registers))


def get_vcpu_events(vcpu: VcpuFd) -> events.kvm_vcpu_events:
    """Read pending exceptions, interrupts, NMI and SMI (KVM_GET_VCPU_EVENTS, api.rst 4.31).

    Needs KVM_CAP_VCPU_EVENTS.
    """
    state = events.kvm_vcpu_events()
    vcpu.ioctl(events.KVM_GET_VCPU_EVENTS, state)
    return state


def set_vcpu_events(vcpu: VcpuFd, state: events.kvm_vcpu_events) -> None:
    """Write pending exceptions, interrupts, NMI and SMI; `state.flags` says which parts count.

    KVM_SET_VCPU_EVENTS, api.rst 4.32. Needs KVM_CAP_VCPU_EVENTS.
    """
    vcpu.ioctl(events.KVM_SET_VCPU_EVENTS, state)


def get_xsave(vcpu: VcpuFd) -> bytes:
    """Return 4096 bytes of XSAVE area, laid out as CPUID leaf 0xD says; get_xsave2() when there is more.

    KVM_GET_XSAVE, api.rst 4.42. Needs KVM_CAP_XSAVE.
    """
    area = abi.kvm_xsave()
    vcpu.ioctl(abi.KVM_GET_XSAVE, area)
    return bytes(area)


def get_xsave2(vcpu: VcpuFd) -> bytes:
    """Return the whole XSAVE area (KVM_GET_XSAVE2, api.rst 4.134). Needs KVM_CAP_XSAVE2."""
    area = ctypes.create_string_buffer(_xsave_size(vcpu))
    vcpu.ioctl(abi.KVM_GET_XSAVE2, area)
    return area.raw


def set_xsave(vcpu: VcpuFd, area: bytes) -> None:
    """Write the XSAVE area, from get_xsave() or get_xsave2() (KVM_SET_XSAVE, api.rst 4.43). Needs KVM_CAP_XSAVE."""
    size = _xsave_size(vcpu)
    if not XSAVE_SIZE <= len(bytes_of("an XSAVE area", area)) <= size:
        raise ValueError(f"an XSAVE area is from {XSAVE_SIZE} to {size} bytes here")
    # The kernel always reads as many bytes as KVM_CAP_XSAVE2 says.
    vcpu.ioctl(abi.KVM_SET_XSAVE, ctypes.create_string_buffer(area, size))


def _xsave_size(vcpu: VcpuFd) -> int:
    return max(XSAVE_SIZE, _capability(vcpu, capabilities.KVM_CAP_XSAVE2))


def _capability(vcpu: VcpuFd, cap: int) -> int:
    vm: Any = vcpu.parent
    return int(vm.check_extension(cap))


def get_xcrs(vcpu: VcpuFd) -> dict[int, int]:
    """Return the extended control registers by number (KVM_GET_XCRS, api.rst 4.44). Needs KVM_CAP_XCRS."""
    xcrs = abi.kvm_xcrs()
    vcpu.ioctl(abi.KVM_GET_XCRS, xcrs)
    return {xcr.xcr: xcr.value for xcr in xcrs.xcrs[: xcrs.nr_xcrs]}


def set_xcrs(vcpu: VcpuFd, values: Mapping[int, int]) -> None:
    """Write extended control registers by number (KVM_SET_XCRS, api.rst 4.45). Needs KVM_CAP_XCRS."""
    values = dict(values)
    if len(values) > abi.KVM_MAX_XCRS:
        raise ValueError(f"at most {abi.KVM_MAX_XCRS} registers, not {len(values)}")
    xcrs = abi.kvm_xcrs(nr_xcrs=len(values))
    for slot, (number, value) in zip(xcrs.xcrs, values.items(), strict=False):
        slot.xcr = in_range("the number of an XCR", number, U32)
        slot.value = in_range("the value of an XCR", value, U64)
    vcpu.ioctl(abi.KVM_SET_XCRS, xcrs)


def get_nested_state(vcpu: VcpuFd) -> bytes:
    """Return the state of a nested guest, headed by abi.kvm_nested_state, for set_nested_state().

    KVM_GET_NESTED_STATE, api.rst 4.114. Needs KVM_CAP_NESTED_STATE.
    """
    size = max(NESTED_HEAD, _capability(vcpu, capabilities.KVM_CAP_NESTED_STATE))  # the largest there is
    while True:
        buffer = ctypes.create_string_buffer(size)
        head = nested.kvm_nested_state.from_buffer(buffer)
        head.size = size
        try:
            vcpu.ioctl(nested.KVM_GET_NESTED_STATE, buffer)
        except KvmError as error:
            if error.errno != errno.E2BIG or not size < head.size <= MAX_STATE:
                raise
            size = head.size
        else:
            return buffer.raw[: head.size]


def set_nested_state(vcpu: VcpuFd, state: bytes) -> None:
    """Restore the state of a nested guest (KVM_SET_NESTED_STATE, api.rst 4.115). Needs KVM_CAP_NESTED_STATE."""
    if len(bytes_of("a nested state", state)) < NESTED_HEAD:
        raise ValueError(f"a nested state is at least {NESTED_HEAD} bytes")
    if nested.kvm_nested_state.from_buffer_copy(state).size > len(state):
        raise ValueError("the size that the nested state names must not be more than there is")
    vcpu.ioctl(nested.KVM_SET_NESTED_STATE, ctypes.create_string_buffer(state, len(state)))


def set_signal_mask(vcpu: VcpuFd, blocked: Iterable[int] | None) -> None:
    """Block exactly the signals `blocked` while in KVM_RUN; None: the thread's own mask (KVM_SET_SIGNAL_MASK).

    A signal that the thread blocks but `blocked` does not list makes KVM_RUN return EINTR and stays pending:
    no handler runs. api.rst 4.21.
    """
    if blocked is None:
        vcpu.ioctl(abi.KVM_SET_SIGNAL_MASK, 0)
        return
    bits = 0
    for number in blocked:
        bits |= 1 << (in_range("a signal", number, 64, 1) - 1)
    head = abi.kvm_signal_mask(len=8)  # the kernel's sigset has 64 bits
    raw = bytes(head) + bits.to_bytes(8, "little")
    vcpu.ioctl(abi.KVM_SET_SIGNAL_MASK, ctypes.create_string_buffer(raw, len(raw)))


def get_one_reg(vcpu: VcpuFd, register: int) -> int:
    """Return one register by its id, abi.KVM_REG_X86 | size | type << 32 | index (KVM_GET_ONE_REG, api.rst 4.69).

    Needs KVM_CAP_ONE_REG.
    """
    value = ctypes.create_string_buffer(256)
    vcpu.ioctl(abi.KVM_GET_ONE_REG, _one_reg(register, value))
    return int.from_bytes(value.raw[: _register_size(register)], "little")


def set_one_reg(vcpu: VcpuFd, register: int, value: int) -> None:
    """Write one register by its id (KVM_SET_ONE_REG, api.rst 4.68). Needs KVM_CAP_ONE_REG."""
    size = _register_size(in_range("the id of a register", register, U64))
    in_range("the value of a register", value, (1 << 8 * size) - 1)
    raw = ctypes.create_string_buffer(value.to_bytes(size, "little"), 256)
    vcpu.ioctl(abi.KVM_SET_ONE_REG, _one_reg(register, raw))


def get_reg_list(vcpu: VcpuFd) -> list[int]:
    """Return the ids of the registers for get_one_reg() (KVM_GET_REG_LIST, api.rst 4.84). Needs KVM_CAP_ONE_REG."""
    count = 0
    while True:
        buffer = (ctypes.c_uint64 * (1 + count))(count)
        try:
            vcpu.ioctl(abi.KVM_GET_REG_LIST, buffer)
        except KvmError as error:
            if error.errno != errno.E2BIG or not count < buffer[0] < MAX_REGISTERS:
                raise
            count = buffer[0]
        else:
            return list(buffer[1 : 1 + buffer[0]])


def _register_size(register: int) -> int:
    shift = (register & abi.KVM_REG_SIZE_MASK) >> abi.KVM_REG_SIZE_SHIFT
    if shift > 8:
        raise ValueError(f"the size in the id of a register must be at most 256 bytes: {register:#x}")
    return 1 << shift


def _one_reg(register: int, value: ctypes.Array[ctypes.c_char]) -> abi.kvm_one_reg:
    _register_size(in_range("the id of a register", register, U64))
    return abi.kvm_one_reg(register, ctypes.addressof(value))
