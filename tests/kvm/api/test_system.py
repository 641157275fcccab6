"""The system fd: every request of it, with what it returns."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

import pytest

from pyvcpu.kvm import Kvm, KvmError, VmFd, abi
from pyvcpu.kvm.abi import Cap
from pyvcpu.kvm.msrs import MsrError

from .conftest import lacks

MSR_TSC, MSR_STAR, MSR_PLATFORM_INFO = 0x10, 0xC0000081, 0xCE
NO_SUCH_MSR = 0xDEAD


def test_versions_and_sizes(kvm: Kvm) -> None:
    assert kvm.get_api_version() == 12
    assert kvm.get_vcpu_mmap_size() >= ctypes.sizeof(abi.kvm_run)
    assert kvm.check_extension(Cap.USER_MEMORY) == 1
    assert kvm.check_extension(0xFFFF_FFFF) == 0


def test_msr_lists(kvm: Kvm) -> None:
    indices = kvm.get_msr_index_list()
    assert len(indices) == len(set(indices)) > 10
    assert {MSR_TSC, MSR_STAR} <= set(indices)


def test_an_msr_list_without_room_says_how_many_there_are(kvm: Kvm) -> None:
    raw = (ctypes.c_uint32 * 2)(1, 0)
    with pytest.raises(KvmError) as caught:
        kvm.ioctl(abi.KVM_GET_MSR_INDEX_LIST, raw)
    assert caught.value.errno == errno.E2BIG
    assert raw[0] == len(kvm.get_msr_index_list())
    assert "nmsrs" in caught.value.hint


def test_feature_msrs(kvm: Kvm) -> None:
    indices = kvm.get_msr_feature_index_list()
    values = kvm.get_msrs(indices)
    assert [index for index, _ in values] == indices
    assert all(0 <= value < 1 << 64 for _, value in values)
    if indices:
        with pytest.raises(MsrError, match="0xdead") as caught:
            kvm.get_msrs([indices[0], NO_SUCH_MSR])
        assert (caught.value.index, caught.value.position) == (NO_SUCH_MSR, 1)
    else:
        assert kvm.get_msrs([]) == []


def test_cpuid_of_three_kinds(kvm: Kvm) -> None:
    supported = kvm.get_supported_cpuid()
    assert supported.find(0) is not None
    emulated = kvm.get_emulated_cpuid()
    assert {entry.function for entry in emulated} <= {0, 1, 7}
    if lacks(kvm, Cap.SYS_HYPERV_CPUID, kvm.get_supported_hv_cpuid):
        return
    hyperv = kvm.get_supported_hv_cpuid()
    first = hyperv.find(0x4000_0000)
    assert first is not None
    assert first.ebx.to_bytes(4, "little") in (b"Linu", b"Micr")


def test_machine_check_banks(kvm: Kvm) -> None:
    banks = kvm.check_extension(Cap.MCE)
    assert 0 < banks <= 32
    assert kvm.x86_get_mce_cap_supported() & 1 << 24  # MCG_SER_P, SDM vol. 3B, 15.3.1.1; KVM always offers it


def test_attributes(kvm: Kvm) -> None:
    assert kvm.check_extension(Cap.SYS_ATTRIBUTES) == 1
    assert kvm.has_device_attr(abi.KVM_X86_GRP_SYSTEM, abi.KVM_X86_XCOMP_GUEST_SUPP)
    features = kvm.get_device_attr(abi.KVM_X86_GRP_SYSTEM, abi.KVM_X86_XCOMP_GUEST_SUPP)
    assert features & 3 in (0, 1, 3)  # XCR0: none without XSAVE, else x87 always
    assert not kvm.has_device_attr(abi.KVM_X86_GRP_SYSTEM, 12345)
    with pytest.raises(KvmError) as caught:
        kvm.get_device_attr(77, 0)
    assert caught.value.errno == errno.ENXIO


def test_vm_types(kvm: Kvm) -> None:
    types = kvm.check_extension(Cap.VM_TYPES)
    for vm_type in range(6):
        if types >> vm_type & 1 or vm_type == 0:
            kvm.create_vm(vm_type).close()
        else:
            with pytest.raises(KvmError) as caught:
                kvm.create_vm(vm_type)
            assert caught.value.errno == errno.EINVAL


def test_the_rest_of_the_methods_is_found_on_the_classes_too(kvm: Kvm, vm: VmFd) -> None:
    assert "get_msr_index_list" in dir(kvm)
    assert "irqfd" in dir(vm)
    assert not hasattr(vm, "no_such_method")
    with pytest.raises(AttributeError, match="no_such_method"):
        getattr(kvm, "no_such_" + "method")


def test_a_capability_that_is_missing_is_named(kvm: Kvm, has: Callable[[Cap], int]) -> None:
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        if has(Cap.X86_SMM):
            vcpu.smi()
            return
        with pytest.raises(KvmError, match="this KVM lacks KVM_CAP_X86_SMM") as caught:
            vcpu.smi()
        assert caught.value.errno == errno.ENOTTY
