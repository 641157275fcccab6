"""The error numbers that the API promises, and what the messages make of them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
from collections.abc import Callable

import pytest

from pyvcpu.kvm import CpuidTable, Kvm, KvmError, VcpuFd, VmFd, abi
from pyvcpu.kvm.abi import Cap, Exit, layout
from pyvcpu.kvm.kernel import request_again, request_by

from .conftest import MEMORY, PAGE, Guest, address_of, attempt


def refused(code: int, call: Callable[..., object], *arguments: object, hint: str) -> None:
    with pytest.raises(KvmError) as caught:
        call(*arguments)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
    assert hint in caught.value.hint


def test_a_vcpu_id_is_used_once(vm: VmFd) -> None:
    first = vm.create_vcpu(5)
    refused(errno.EEXIST, vm.create_vcpu, 5, hint="created before")
    first.close()
    refused(errno.EEXIST, vm.create_vcpu, 5, hint="after its fd is closed")


def test_a_vcpu_id_has_a_limit(vm: VmFd) -> None:
    limit = vm.check_extension(Cap.MAX_VCPU_ID)
    vm.create_vcpu(limit - 1).close()
    refused(errno.EINVAL, vm.create_vcpu, limit, hint="KVM_CAP_MAX_VCPU_ID")


def test_run_takes_no_argument(vcpu: VcpuFd) -> None:
    refused(errno.EINVAL, vcpu.ioctl, abi.KVM_RUN, 1, hint="")


def test_the_boot_cpu_comes_before_vcpus(vm: VmFd) -> None:
    with vm.create_vcpu(0):
        refused(errno.EBUSY, vm.set_boot_cpu_id, 1, hint="before the first vCPU")


def test_controllers_come_before_vcpus(vm: VmFd) -> None:
    with vm.create_vcpu(0):
        refused(errno.EINVAL, vm.create_irqchip, hint="before the first vCPU")


def test_controllers_come_once(vm: VmFd) -> None:
    vm.create_irqchip()
    refused(errno.EEXIST, vm.create_irqchip, hint="has its interrupt controllers already")
    refused(errno.EEXIST, vm.enable_cap, Cap.SPLIT_IRQCHIP, 24, hint="turned on before")


def test_slots(vm: VmFd, memory: mmap.mmap) -> None:
    host = address_of(memory)
    vm.set_user_memory_region(0, 0, MEMORY, host)
    refused(errno.EEXIST, vm.set_user_memory_region, 1, MEMORY - PAGE, PAGE, host, hint="overlaps another slot")
    refused(errno.EINVAL, vm.set_user_memory_region, 1, MEMORY + 1, PAGE, host, hint="whole pages")
    refused(errno.EINVAL, vm.set_user_memory_region, 1, MEMORY, PAGE - 1, host, hint="whole pages")
    refused(errno.EINVAL, vm.set_user_memory_region, 1, MEMORY, PAGE, host + 1, hint="whole pages")
    slots = vm.check_extension(Cap.NR_MEMSLOTS)
    vm.set_user_memory_region(slots - 1, MEMORY, PAGE, host)
    refused(errno.EINVAL, vm.set_user_memory_region, slots, 2 * MEMORY, PAGE, host, hint="KVM_CAP_NR_MEMSLOTS")


@pytest.mark.parametrize("offset", [layout.VALID_REGS, layout.DIRTY_REGS], ids=["kvm_valid_regs", "kvm_dirty_regs"])
def test_bits_of_shared_registers_that_nobody_knows(guest: Guest, offset: int) -> None:
    guest.start(b"\xf4")
    guest.page[offset + 7] = 0x80
    refused(errno.EINVAL, guest.vcpu.run, hint="kvm_valid_regs or kvm_dirty_regs")
    guest.page[offset + 7] = 0
    assert guest.run().exit_reason == Exit.HLT


def test_cpuid_is_fixed_once_the_vcpu_ran(guest: Guest) -> None:
    guest.start(b"\xf4")
    assert guest.run().exit_reason == Exit.HLT
    again = attempt(lambda: guest.vcpu.set_cpuid2(guest.vcpu.get_cpuid2()))
    assert again is None or again.errno == errno.EINVAL  # newer kernels let the same pass
    table = guest.vcpu.get_cpuid2()
    table[0].eax ^= 1
    refused(errno.EINVAL, guest.vcpu.set_cpuid2, table, hint="cannot change once the vCPU has run")
    refused(errno.EINVAL, guest.vcpu.set_cpuid, [abi.kvm_cpuid_entry()], hint="cannot change")


def test_too_many_cpuid_entries(vcpu: VcpuFd) -> None:
    entries = [abi.kvm_cpuid_entry2(function=0x4000_0000 + i) for i in range(300)]
    refused(errno.E2BIG, vcpu.set_cpuid2, CpuidTable.of(entries), hint="more CPUID entries")


def test_a_list_of_cpuid_that_is_too_short(kvm: Kvm) -> None:
    """What CpuidTable.fetch() does away with."""
    buffer = ctypes.create_string_buffer(8 + 40)
    abi.kvm_cpuid2.from_buffer(buffer).nent = 1
    refused(errno.E2BIG, kvm.ioctl, abi.KVM_GET_SUPPORTED_CPUID, buffer, hint="more CPUID entries")


def test_too_many_msrs_in_one_request(vcpu: VcpuFd) -> None:
    buffer = ctypes.create_string_buffer(8 + 256 * 16)
    abi.kvm_msrs.from_buffer(buffer).nmsrs = 256
    refused(errno.E2BIG, vcpu.ioctl, abi.KVM_GET_MSRS, buffer, hint="fewer than 256")


def test_a_forked_child_cannot_use_the_vm(vm: VmFd, vcpu: VcpuFd) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = []
        for call in (lambda: vm.create_vcpu(9), vcpu.get_regs, vcpu.run):
            try:
                call()
                told.append((0, ""))
            except KvmError as error:
                told.append((error.errno or 0, error.hint))
        os.write(writer, pickle.dumps(told))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    assert [code for code, _ in told] == [errno.EIO] * 3
    assert all("forked child" in hint for _, hint in told)


def test_a_closed_fd(vm: VmFd) -> None:
    vcpu = vm.create_vcpu(0)
    vcpu.close()
    refused(errno.EBADF, vcpu.get_regs, hint="was closed")


def test_an_interrupted_run_is_an_answer(guest: Guest) -> None:
    guest.start(b"\xf4")
    guest.page[layout.IMMEDIATE_EXIT] = 1
    assert guest.vcpu.run() == errno.EINTR


def test_a_request_of_another_fd(vm: VmFd) -> None:
    refused(errno.ENOTTY, vm.ioctl, abi.KVM_GET_REGS, abi.kvm_regs(), hint="does not know the request")


@pytest.mark.parametrize("way", ["this Python's", "once", "again"])
def test_ways_to_make_a_run(guest: Guest, way: str) -> None:
    """Each runs the guest, and answers a kick that came before with EINTR."""
    kernel = guest.vcpu.kernel
    request = {
        "this Python's": kernel.request,
        "once": request_by(kernel.ioctl, kernel.errno),
        "again": request_again(ctypes.CDLL(None).ioctl, kernel.ioctl, kernel.errno),
    }[way]
    guest.start(b"\xb0A\xe6\xe9\xf4")  # mov $'A',%al; out %al,$0xe9; hlt
    guest.page[layout.IMMEDIATE_EXIT] = 1
    with pytest.raises(InterruptedError):
        request(guest.vcpu.fd, abi.KVM_RUN.number)
    guest.page[layout.IMMEDIATE_EXIT] = 0
    for reason in (Exit.IO, Exit.HLT):
        request(guest.vcpu.fd, abi.KVM_RUN.number)
        assert int.from_bytes(guest.page[layout.EXIT_REASON :][:4], "little") == reason
    assert guest.page[layout.PIO_DATA] == ord("A")
