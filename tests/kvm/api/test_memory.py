"""Memory: slots, private memory, dirty logs and rings, with guests that write."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator

import pytest

from pyvcpu.kvm import Kvm, KvmError, VmFd, abi
from pyvcpu.kvm.abi import Cap, Exit
from pyvcpu.kvm.vm_memory import pages

from .conftest import DEVICE, MEMORY, PAGE, Guest, address_of, attempt, lacks

# mov %al,(%bx); hlt
WRITES = b"\x88\x07\xf4"


def test_a_slot_by_the_newer_request(vm: VmFd, memory: mmap.mmap) -> None:
    if lacks(vm, Cap.USER_MEMORY2, lambda: vm.set_user_memory_region2(0, 0, MEMORY, address_of(memory))):
        return
    vm.set_user_memory_region2(0, 0, MEMORY, address_of(memory))
    with pytest.raises(KvmError, match="overlaps") as caught:
        vm.set_user_memory_region2(1, PAGE, PAGE, address_of(memory))
    assert caught.value.errno == errno.EEXIST
    vm.set_user_memory_region2(0, 0, 0, 0)
    vm.set_user_memory_region2(1, PAGE, PAGE, address_of(memory))


def test_memory_of_the_guest_alone(kvm: Kvm, vm: VmFd, memory: mmap.mmap) -> None:
    protected = kvm.check_extension(Cap.VM_TYPES) >> abi.KVM_X86_SW_PROTECTED_VM & 1
    with kvm.create_vm(abi.KVM_X86_SW_PROTECTED_VM if protected else 0) as owner:
        if lacks(owner, Cap.GUEST_MEMFD, lambda: owner.create_guest_memfd(MEMORY)):
            return
        with owner.create_guest_memfd(MEMORY) as private:
            assert private.fileno() > 2
            with pytest.raises(KvmError, match="whole pages") as caught:
                owner.create_guest_memfd(123)
            assert caught.value.errno == errno.EINVAL
            if not protected:
                return
            flags = abi.KVM_MEM_GUEST_MEMFD
            owner.set_user_memory_region2(0, 0, MEMORY, address_of(memory), flags, private)
            owner.set_memory_attributes(0, PAGE, abi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
            owner.set_memory_attributes(0, PAGE, 0)


def test_attributes_need_private_memory(vm: VmFd) -> None:
    private = abi.KVM_MEMORY_ATTRIBUTE_PRIVATE
    if vm.check_extension(Cap.MEMORY_ATTRIBUTES) & private:
        vm.set_memory_attributes(0, PAGE, private)
        return
    with pytest.raises(KvmError, match="KVM_CAP_MEMORY_ATTRIBUTES") as caught:
        vm.set_memory_attributes(0, PAGE, private)
    assert caught.value.errno in (errno.EINVAL, errno.ENOTTY)


def test_the_dirty_log(logged_guest: Guest) -> None:
    """It lists at least the page that was written; some hosts list what was only mapped writable, too."""
    guest = logged_guest
    guest.vm.get_dirty_log(0)
    guest.start(WRITES, rbx=0x5008, rax=0x77)
    assert guest.run().exit_reason == Exit.HLT
    bitmap = guest.vm.get_dirty_log(0)
    assert len(bitmap) == MEMORY // PAGE // 8
    assert 5 in pages(bitmap)
    assert guest.memory[0x5008] == 0x77
    assert 5 not in pages(guest.vm.get_dirty_log(0))


def test_a_dirty_log_of_a_slot_that_is_not_logged(guest: Guest) -> None:
    with pytest.raises(KvmError, match="KVM_MEM_LOG_DIRTY_PAGES") as caught:
        guest.vm.get_dirty_log(0)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(ValueError, match="slot 7"):
        guest.vm.get_dirty_log(7)


def test_clearing_the_dirty_log_by_hand(kvm: Kvm, vm: VmFd, memory: mmap.mmap) -> None:
    assert vm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2) & abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
    vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
    guest = Guest(kvm, vm, memory, abi.KVM_MEM_LOG_DIRTY_PAGES)
    try:
        guest.start(WRITES, rbx=0x6000)
        assert guest.run().exit_reason == Exit.HLT
        first = vm.get_dirty_log(0)
        assert 6 in pages(first)
        assert 6 in pages(vm.get_dirty_log(0))  # reading alone does not start over
        vm.clear_dirty_log(0, first)
        assert 6 not in pages(vm.get_dirty_log(0))
        with pytest.raises(KvmError, match="multiple of 64") as caught:
            vm.clear_dirty_log(0, b"\xff", first_page=3)
        assert caught.value.errno == errno.EINVAL
    finally:
        guest.close()


@pytest.fixture
def ring_guest(kvm: Kvm, vm: VmFd, memory: mmap.mmap) -> Iterator[Guest]:
    cap = Cap.DIRTY_LOG_RING if vm.check_extension(Cap.DIRTY_LOG_RING) else Cap.DIRTY_LOG_RING_ACQ_REL
    largest = vm.check_extension(cap)
    assert largest >= 4096
    vm.enable_cap(cap, 4096)
    made = Guest(kvm, vm, memory, abi.KVM_MEM_LOG_DIRTY_PAGES)
    yield made
    made.close()


def test_the_dirty_ring(ring_guest: Guest) -> None:
    with ring_guest.vcpu.map_dirty_ring() as ring:
        assert ring.entries == 4096 // 16
        for page in (5, 9):
            ring_guest.start(WRITES, rbx=page * PAGE % 0x10000)
            assert ring_guest.run().exit_reason == Exit.HLT
        found = ring.harvest()
        assert {(0, 5), (0, 9)} <= set(found)
        assert ring.harvest() == []
        assert ring_guest.vm.reset_dirty_rings() == len(found)
        ring_guest.start(WRITES, rbx=5 * PAGE)
        assert ring_guest.run().exit_reason == Exit.HLT
        assert (0, 5) in ring.harvest()
    with pytest.raises(KvmError, match="dirty rings on") as caught:
        ring_guest.vm.get_dirty_log(0)
    assert caught.value.errno == errno.ENXIO


def test_no_dirty_ring(guest: Guest) -> None:
    with pytest.raises(ValueError, match="DIRTY_LOG_RING"):
        guest.vcpu.map_dirty_ring()
    with pytest.raises(KvmError, match="not on") as caught:
        guest.vm.reset_dirty_rings()
    assert caught.value.errno == errno.EINVAL


def test_shadow_pages(vm: VmFd) -> None:
    vm.set_nr_mmu_pages(100)
    error = attempt(vm.get_nr_mmu_pages)
    if error is None:
        assert vm.get_nr_mmu_pages() == 100
    else:
        assert error.errno == errno.ENOTTY
        assert "6.3" in error.hint


def test_faulting_ahead(guest: Guest) -> None:
    if lacks(guest.vm, Cap.PRE_FAULT_MEMORY, lambda: guest.vcpu.pre_fault_memory(0, PAGE)):
        return
    error = attempt(lambda: guest.vcpu.pre_fault_memory(0, PAGE))
    if error is None:
        assert guest.vcpu.pre_fault_memory(0, 4 * PAGE) == 4 * PAGE
    else:
        assert error.errno == errno.EOPNOTSUPP  # shadow paging cannot
    with pytest.raises(KvmError) as caught:
        guest.vcpu.pre_fault_memory(1, PAGE)
    assert caught.value.errno in (errno.EINVAL, errno.EOPNOTSUPP)


def test_encrypted_guests(vm: VmFd) -> None:
    """No host of these tests has SEV or TDX: each request says so."""
    requests: list[Callable[[], object]] = [
        vm.memory_encrypt_op,
        lambda: vm.memory_encrypt_op(abi.kvm_sev_cmd(id=abi.KVM_SEV_INIT2), abi.kvm_sev_init()),
        lambda: vm.memory_encrypt_reg_region(0, PAGE),
        lambda: vm.memory_encrypt_unreg_region(0, PAGE),
    ]
    for request in requests:
        with pytest.raises(KvmError, match="encrypt") as caught:
            request()
        assert caught.value.errno in (errno.ENOTTY, errno.EINVAL)
    with vm.create_vcpu(0) as vcpu:
        with pytest.raises(KvmError, match="encrypt") as caught:
            vcpu.memory_encrypt_op(abi.kvm_tdx_cmd(id=abi.KVM_TDX_INIT_VCPU))
        assert caught.value.errno in (errno.ENOTTY, errno.EINVAL)


def test_an_encryption_command_gets_the_address_of_its_data(vm: VmFd) -> None:
    command, data = abi.kvm_sev_cmd(id=abi.KVM_SEV_GUEST_STATUS), abi.kvm_sev_guest_status()
    with pytest.raises(KvmError):
        vm.memory_encrypt_op(command, data)
    assert command.data == ctypes.addressof(data)


@pytest.mark.parametrize("wrong", [0, 4096 * 4096])
def test_the_mapping_of_a_vcpu_has_one_size(wrong: int) -> None:
    """What lies behind its end cannot be touched without being killed."""
    with Kvm(DEVICE) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        with pytest.raises(ValueError, match="get_vcpu_mmap_size"):
            vcpu.map_run(wrong)
        vcpu.map_run(kvm.get_vcpu_mmap_size()).close()
