"""The binding on its own: what a run loop of one's own needs, and what each refusal says."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvcpu.exits import Halt, PortIn, PortOut, decode
from pyvcpu.kvm import CpuidTable, Kvm, KvmError, VcpuFd, VmFd
from pyvcpu.kvm.abi import basic as abi
from tests.fake_kernel import WatchedKernel
from tests.kvm.support import DEVICE, ROOT
from tests.threads import Caller, until

PAGE = 4096
SIZE = 16 * PAGE
FLAGS = 2  # RFLAGS: bit 1 is always set


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm(DEVICE) as kvm:
        yield kvm


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[VmFd]:
    with kvm.create_vm() as vm:
        vm.set_identity_map_addr(0xFEFFC000)  # Intel's KVM needs them for real mode
        vm.set_tss_addr(0xFEFFD000)
        yield vm


@pytest.fixture
def vcpu(vm: VmFd) -> Iterator[VcpuFd]:
    with vm.create_vcpu(0) as vcpu:
        yield vcpu


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE) as memory:
        yield memory


def host_address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def set_up(vm: VmFd, vcpu: VcpuFd, memory: mmap.mmap, code: bytes) -> None:
    """Make `memory` the guest's, and let the vCPU start in real mode at 0x1000 with `code`."""
    memory[0x1000 : 0x1000 + len(code)] = code
    vm.set_user_memory_region(0, 0, SIZE, host_address(memory))
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(abi.kvm_regs(rip=0x1000, rflags=FLAGS))


def refusal(call: Callable[[], object]) -> KvmError:
    with pytest.raises(KvmError) as error:
        call()
    return error.value


def test_a_run_loop_of_ones_own(kvm: Kvm, vm: VmFd, vcpu: VcpuFd, memory: mmap.mmap) -> None:
    code = bytes.fromhex(
        "b0 41"  # mov $0x41,%al
        "e6 e9"  # out %al,$0xe9
        "e4 50"  # in $0x50,%al
        "88 c3"  # mov %al,%bl
        "f4"  # hlt
    )
    set_up(vm, vcpu, memory, code)
    page = vcpu.map_run(kvm.get_vcpu_mmap_size())
    assert (vcpu.run(), decode(page)) == (0, PortOut(0xE9, b"A"))
    assert (vcpu.run(), decode(page)) == (0, PortIn(0x50))
    page[PAGE] = 0x5A  # where kvm_run.io.data_offset points; asserted next
    assert int.from_bytes(page[40:48], "little") == PAGE
    assert (vcpu.run(), decode(page)) == (0, Halt())
    regs = vcpu.get_regs()
    assert (regs.rbx & 0xFF, regs.rip) == (0x5A, 0x1000 + len(code))
    page.close()


def test_immediate_exit_and_a_pending_signal_interrupt(kvm: Kvm, vm: VmFd, vcpu: VcpuFd, memory: mmap.mmap) -> None:
    """A signal that the thread blocks and KVM_RUN does not: errno EINTR, no handler, and it stays pending."""
    set_up(vm, vcpu, memory, b"\xeb\xfe")  # jmp .
    page = vcpu.map_run(kvm.get_vcpu_mmap_size())
    page[1] = 1  # immediate_exit
    assert vcpu.run() == errno.EINTR
    page[1] = 0
    kick = signal.SIGRTMIN + 1
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {kick})
    try:
        vcpu.set_signal_mask(signal.valid_signals() - {kick})
        signal.pthread_kill(threading.get_ident(), kick)
        assert vcpu.run() == errno.EINTR
        assert kick in signal.sigpending()
        assert vcpu.run() == errno.EINTR
        assert signal.sigtimedwait({kick}, 0) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    vcpu.set_signal_mask(None)
    page.close()


def test_registers_come_back_as_they_were_set(vcpu: VcpuFd) -> None:
    names = [name for name, _ in abi.kvm_regs._fields_ if name != "rflags"]  # type: ignore[misc]  # bit fields
    regs = abi.kvm_regs(rflags=FLAGS, **{name: 0x1111 * (i + 1) for i, name in enumerate(names)})
    vcpu.set_regs(regs)
    assert bytes(vcpu.get_regs()) == bytes(regs)
    sregs = vcpu.get_sregs()
    sregs.ds.base, sregs.ds.selector = 0x12340, 0x1234
    vcpu.set_sregs(sregs)
    assert bytes(vcpu.get_sregs()) == bytes(sregs)


def test_translation(vcpu: VcpuFd) -> None:
    assert vcpu.translate(0x1234) == 0x1234  # no paging
    with pytest.raises(ValueError, match="a linear address"):
        vcpu.translate(1 << 64)


def test_mp_state_and_tsc(vm: VmFd) -> None:
    vm.create_irqchip()
    with vm.create_vcpu(0) as bsp, vm.create_vcpu(1) as ap:
        assert bsp.get_mp_state() == abi.KVM_MP_STATE_RUNNABLE
        assert ap.get_mp_state() == abi.KVM_MP_STATE_UNINITIALIZED
        ap.set_mp_state(abi.KVM_MP_STATE_HALTED)
        assert ap.get_mp_state() == abi.KVM_MP_STATE_HALTED
        assert bsp.get_tsc_khz() > 1000


# CPUID.


def test_supported_cpuid(kvm: Kvm) -> None:
    table = kvm.get_supported_cpuid()
    leaf = table.find(0)
    assert leaf is not None
    vendor = b"".join(register.to_bytes(4, "little") for register in (leaf.ebx, leaf.edx, leaf.ecx))
    assert vendor in (b"GenuineIntel", b"AuthenticAMD", b"HygonGenuine", b"CentaurHauls")
    assert len(table) == len(list(table)) == len(bytes(table)) // 40
    assert table[0].function == 0
    assert table.find(0x12345678) is None


def test_cpuid_is_kept_and_cannot_change_after_a_run(kvm: Kvm, vm: VmFd, vcpu: VcpuFd, memory: mmap.mmap) -> None:
    table = kvm.get_supported_cpuid()
    vcpu.set_cpuid2(CpuidTable.of(list(table)[:2]))
    assert vcpu.get_cpuid2().find(7) is None
    vcpu.set_cpuid2(table)
    assert vcpu.get_cpuid2().find(7) is not None
    assert bytes(vcpu.get_cpuid2()[0]) == bytes(table[0])
    page = vcpu.map_run(kvm.get_vcpu_mmap_size())
    set_up(vm, vcpu, memory, b"\xf4")  # hlt
    assert vcpu.run() == 0
    page.close()
    vcpu.set_cpuid2(vcpu.get_cpuid2())
    error = refusal(lambda: vcpu.set_cpuid2(CpuidTable.of(list(table)[:2])))
    assert (error.ioctl, error.errno, error.where) == ("KVM_SET_CPUID2", errno.EINVAL, "vCPU 0")
    assert "once the vCPU has run" in str(error)


def test_cpuid_copies_are_independent_and_entries_write_through(kvm: Kvm) -> None:
    table = kvm.get_supported_cpuid()
    copy = table.copy()
    before = bytes(table)
    copy[0].eax ^= 1
    assert bytes(table) == before
    assert bytes(copy) != before
    assert bytes(CpuidTable.of(copy)) == bytes(copy)


# Refusals: the request, the errno, whose it is, and what to do.


def test_a_vcpu_id_is_used_up_for_good(vm: VmFd, vcpu: VcpuFd) -> None:
    for _ in range(2):  # while its fd is open, and after
        error = refusal(lambda: vm.create_vcpu(0))
        assert (error.ioctl, error.errno, error.where) == ("KVM_CREATE_VCPU", errno.EEXIST, "vCPU 0")
        assert "keep the fd" in error.hint
        vcpu.close()
    with vm.create_vcpu(1) as other:
        assert other.where == "vCPU 1"
    assert vm.where == ""


def test_vcpu_ids_end_somewhere(kvm: Kvm, vm: VmFd) -> None:
    limit = kvm.check_extension(abi.KVM_CAP_MAX_VCPU_ID)
    error = refusal(lambda: vm.create_vcpu(limit))
    assert (error.errno, error.where) == (errno.EINVAL, f"vCPU {limit}")
    assert "KVM_CAP_MAX_VCPU_ID" in error.hint


def test_slots_must_not_overlap(vm: VmFd, memory: mmap.mmap) -> None:
    host = host_address(memory)
    vm.set_user_memory_region(0, 0, 4 * PAGE, host)
    error = refusal(lambda: vm.set_user_memory_region(1, 3 * PAGE, PAGE, host + 4 * PAGE))
    assert (error.ioctl, error.errno) == ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST)
    assert error.hint == "the range overlaps another slot"
    vm.set_user_memory_region(0, 0, 0, 0)  # size 0 deletes the slot
    vm.set_user_memory_region(1, 3 * PAGE, PAGE, host + 4 * PAGE)


@pytest.mark.parametrize(
    ("slot", "address", "size", "offset"),
    [(0, 0x123, PAGE, 0), (0, 0, PAGE + 1, 0), (0, 0, PAGE, 1), (0x7FFF_FFFF, 0, PAGE, 0)],
)
def test_slots_are_whole_pages(vm: VmFd, memory: mmap.mmap, slot: int, address: int, size: int, offset: int) -> None:
    error = refusal(lambda: vm.set_user_memory_region(slot, address, size, host_address(memory) + offset))
    assert error.errno == errno.EINVAL
    assert "whole pages" in error.hint


def test_interrupt_controllers_come_first_and_once(kvm: Kvm, vm: VmFd) -> None:
    vm.create_irqchip()
    error = refusal(vm.create_irqchip)
    assert (error.ioctl, error.errno) == ("KVM_CREATE_IRQCHIP", errno.EEXIST)
    with kvm.create_vm() as other, other.create_vcpu(0):
        error = refusal(other.create_irqchip)
        assert (error.ioctl, error.errno) == ("KVM_CREATE_IRQCHIP", errno.EINVAL)
        assert "before the first vCPU" in str(error)


def test_a_state_that_needs_a_local_apic(vcpu: VcpuFd) -> None:
    error = refusal(lambda: vcpu.set_mp_state(abi.KVM_MP_STATE_HALTED))
    assert (error.ioctl, error.errno, error.where) == ("KVM_SET_MP_STATE", errno.EINVAL, "vCPU 0")
    assert "interrupt controllers in the kernel" in error.hint


def test_inconsistent_control_registers(vcpu: VcpuFd) -> None:
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1 << 31  # PG without PE
    error = refusal(lambda: vcpu.set_sregs(sregs))
    assert (error.ioctl, error.errno) == ("KVM_SET_SREGS", errno.EINVAL)
    assert "consistent" in error.hint


def test_after_close(kvm: Kvm) -> None:
    with Kvm(DEVICE) as other:
        vm = other.create_vm()
    vm.close()
    vm.close()
    assert (vm.fileno(), other.fileno()) == (-1, -1)
    error = refusal(lambda: vm.create_vcpu(0))
    assert (error.errno, error.hint) == (errno.EBADF, "the fd was closed")
    assert repr(vm).startswith("<VmFd fd=-1")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda vm: vm.create_vcpu(-1), ValueError),
        (lambda vm: vm.create_vcpu(1 << 32), ValueError),
        (lambda vm: vm.create_vcpu("0"), TypeError),
        (lambda vm: vm.set_user_memory_region(1 << 32, 0, PAGE, 0), ValueError),
        (lambda vm: vm.set_user_memory_region(0, -PAGE, PAGE, 0), ValueError),
        (lambda vm: vm.set_user_memory_region(0, 0, 1 << 64, 0), ValueError),
        (lambda vm: vm.check_extension(-1), ValueError),
        (lambda vm: vm.set_tss_addr(1 << 32), ValueError),
        (lambda vm: vm.set_identity_map_addr(-1), ValueError),
        (lambda vm: vm.enable_cap(1, 1, 2, 3, 4, 5), ValueError),
        (lambda vm: vm.enable_cap(1, 1 << 64), ValueError),
    ],
)
def test_numbers_are_checked_before_they_are_cut(
    vm: VmFd, call: Callable[[VmFd], object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"must be|at most 4"):
        call(vm)


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/nonexistent/kvm", errno.ENOENT, "the usual one is /dev/kvm"),
        ("/dev/null", errno.ENOTTY, "not a KVM device"),
        ("/dev", errno.EISDIR, "directory"),
    ],
)
def test_devices_that_are_none(path: str, code: int, words: str) -> None:
    error = refusal(lambda: Kvm(path))
    assert error.errno == code
    assert words in str(error)
    assert path in str(error)


def test_a_file_that_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_bytes(b"no")
    error = refusal(lambda: Kvm(str(tmp_path / "kvm")))
    assert "not a KVM device; the usual one is /dev/kvm" in str(error)


def test_a_forked_child_may_not_use_the_vm() -> None:
    script = """
import os
from pyvcpu import Machine
from pyvcpu.kvm import KvmError
machine = Machine("1M", kvm=os.environ["PYVCPU_KVM"])
if os.fork() == 0:
    try:
        machine.vm.create_vcpu(0)
    except KvmError as error:
        print(error.ioctl, error.errno, error.hint, flush=True)
    os._exit(0)
os.wait()
machine.close()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYVCPU_KVM": DEVICE}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"KVM_CREATE_VCPU {errno.EIO} a VM can only be used by the process that created it, not by a forked child\n"
    )


def test_fds_are_not_inherited(vm: VmFd, kvm: Kvm, vcpu: VcpuFd) -> None:
    for fd in (kvm, vm, vcpu):
        assert not os.get_inheritable(fd.fileno())


def test_what_is_watched_is_the_real_one() -> None:
    """The tests' own instrument: it counts, and refuses what it is told to."""
    kernel = WatchedKernel()
    with Kvm(DEVICE, kernel) as kvm, kvm.create_vm() as vm:
        kernel.refuse("KVM_CREATE_VCPU", errno.ENOSPC, vcpu=1)
        vm.create_vcpu(0).close()
        assert refusal(lambda: vm.create_vcpu(1)).errno == errno.ENOSPC
        assert refusal(lambda: vm.create_vcpu(0)).errno == errno.EEXIST
        assert kernel.count("KVM_CREATE_VCPU") == 3


def test_a_caught_signal_interrupts_and_does_nothing_else(kvm: Kvm, vm: VmFd, vcpu: VcpuFd, memory: mmap.mmap) -> None:
    code = bytes.fromhex(
        "c606 0020 01"  # movb $1,0x2000
        "ebfe"  # jmp .
    )
    set_up(vm, vcpu, memory, code)
    page = vcpu.map_run(kvm.get_vcpu_mmap_size())
    kick = signal.SIGRTMIN + 1  # its default is to end the process
    before = signal.getsignal(kick)
    vcpu.kernel.catch(kick)
    vcpu.kernel.catch(kick)
    ident = threading.get_ident()

    def kick_once_it_runs() -> None:
        until(lambda: memory[0x2000])
        signal.pthread_kill(ident, kick)

    kicker = Caller(kick_once_it_runs)
    assert vcpu.run() == errno.EINTR
    assert kicker.done()
    signal.signal(kick, before)
    page.close()


def test_a_handler_of_the_program_s_stays(vcpu: VcpuFd) -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, frame: calls.append(number))
    try:
        vcpu.kernel.catch(signal.SIGURG)
        signal.raise_signal(signal.SIGURG)
        assert calls == [signal.SIGURG]
    finally:
        signal.signal(signal.SIGURG, before)
