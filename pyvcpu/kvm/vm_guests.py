"""VmFd's methods for what its guest sees of time and of performance counters."""

from __future__ import annotations

import ctypes

from .abi import basic, clock, features
from .fd import U32, U64, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable

    from .vm import VmFd

MAX_PMU_EVENTS = 300


def get_clock(vm: VmFd) -> clock.kvm_clock_data:
    """Read the guest's clock: ns since the VM's start, and real time and host TSC where `flags` say so.

    KVM_GET_CLOCK, api.rst 4.29. Needs KVM_CAP_ADJUST_CLOCK.
    """
    data = clock.kvm_clock_data()
    vm.ioctl(clock.KVM_GET_CLOCK, data)
    return data


def set_clock(vm: VmFd, data: clock.kvm_clock_data | int) -> None:
    """Set the guest's clock: a number of ns, or a structure whose only flag may be KVM_CLOCK_REALTIME.

    KVM_SET_CLOCK, api.rst 4.30. Needs KVM_CAP_ADJUST_CLOCK.
    """
    if isinstance(data, int):
        data = clock.kvm_clock_data(in_range("a clock", data, U64))
    vm.ioctl(clock.KVM_SET_CLOCK, data)


def get_tsc_khz(vm: VmFd) -> int:
    """Return the TSC rate in kHz that new vCPUs get (KVM_GET_TSC_KHZ, api.rst 4.56).

    Needs KVM_CAP_VM_TSC_CONTROL.
    """
    return vm.ioctl(basic.KVM_GET_TSC_KHZ)


def set_tsc_khz(vm: VmFd, khz: int) -> None:
    """Set the TSC rate of vCPUs that are created from now on (KVM_SET_TSC_KHZ, api.rst 4.55).

    Needs KVM_CAP_VM_TSC_CONTROL.
    """
    vm.ioctl(clock.KVM_SET_TSC_KHZ, in_range("khz", khz, U32))


def set_pmu_event_filter(
    vm: VmFd, action: int, events: Iterable[int], *, fixed_counter_bitmap: int = 0, flags: int = 0
) -> None:
    """Allow (abi.KVM_PMU_EVENT_ALLOW) only these performance events, or deny (_DENY) these.

    KVM_SET_PMU_EVENT_FILTER, api.rst 4.120. Needs KVM_CAP_PMU_EVENT_FILTER.
    """
    listed = [in_range("an event", event, U64) for event in events]
    if len(listed) > MAX_PMU_EVENTS:
        raise ValueError(f"at most {MAX_PMU_EVENTS} events, not {len(listed)}")
    head = features.kvm_pmu_event_filter(
        in_range("an action", action, U32),
        len(listed),
        in_range("fixed_counter_bitmap", fixed_counter_bitmap, U32),
        in_range("flags", flags, U32),
    )
    raw = bytes(head) + b"".join(event.to_bytes(8, "little") for event in listed)
    vm.ioctl(features.KVM_SET_PMU_EVENT_FILTER, ctypes.create_string_buffer(raw, len(raw)))
