"""The software KVM through pyvcpu.kvm: fds, KVM_RUN and its exits, signals, memory."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import threading
from pathlib import Path

import pytest

from pyvcpu import Machine
from pyvcpu.kvm import Kvm, KvmError, abi
from pyvcpu.kvm.abi import Cap, Exit
from pyvcpu.kvm.vm_memory import pages
from pyvcpu.tcg.kernel import TcgKernel
from tests.tcg_kvm import CODE, PAGE, Rig, address_of, rig
from tests.threads import Caller, until

IMAGES = Path(__file__).resolve().parents[2] / "examples" / "images"
SPIN = b"\xeb\xfe"
DEVICE_DS = b"\xb8\x00\xf0\x8e\xd8"  # mov $0xf000,%ax; mov %ax,%ds


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_machine_runs_on_it() -> None:
    said: list[bytes] = []
    with Kvm("tcg", TcgKernel()) as kvm, Machine("4M", 4, kvm=kvm, output=said.append) as machine:
        machine.load(str(IMAGES / "hello.bin"))
        assert machine.run(timeout=30).status == 0
    lines = sorted(b"".join(said).splitlines())
    assert lines == [b"hello from vCPU %d of 4" % index for index in range(4)]


def test_nothing_is_left_behind() -> None:
    before, threads = files(), threading.active_count()
    with rig(3, "kernel") as made:
        made.vm.create_pit2()
        made.start(b"\xf4")
    assert (files(), threading.active_count()) == (before, threads)


def test_a_vm_lives_as_long_as_its_vcpus() -> None:
    made = Rig()
    made.vm.close()
    made.start(b"\xe6\x50\xf4")
    assert made.run().exit_reason == Exit.IO
    assert made.run().exit_reason == Exit.HLT
    before = files()
    made.close()
    assert files() < before


def test_without_a_file_descriptor_there_is_no_vcpu() -> None:
    """EMFILE, and the id is free afterwards."""
    import resource

    with rig(0) as made:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(fd) for fd in os.listdir("/proc/self/fd")), limits[1]))
        spare = []
        try:
            while True:
                spare.append(os.dup(0))
        except OSError:
            pass
        try:
            answer = made.kernel.ioctl(made.vm.fd, abi.KVM_CREATE_VCPU.number, 0), made.kernel.errno()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in spare:
                os.close(fd)
        assert answer == (-1, errno.EMFILE)
        made.vm.create_vcpu(0).close()


def test_unknown_and_closed_fds() -> None:
    kernel = TcgKernel()
    assert (kernel.ioctl(1 << 20, abi.KVM_GET_API_VERSION.number, 0), kernel.errno()) == (-1, errno.EBADF)
    with open(os.devnull, "rb") as other:
        assert (kernel.ioctl(other.fileno(), 0xAE00, 0), kernel.errno()) == (-1, errno.ENOTTY)
    with pytest.raises(OSError, match=r"\[Errno 9\]"):
        kernel.request(1 << 20, abi.KVM_RUN.number)


def test_errors_belong_to_their_thread() -> None:
    kernel = TcgKernel()
    fd = kernel.open("x")
    assert kernel.ioctl(fd, abi.KVM_RUN.number, 0) == -1
    seen: list[int] = []

    def other() -> None:
        kernel.ioctl(1 << 20, 0, 0)
        seen.append(kernel.errno())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (seen, kernel.errno()) == ([errno.EBADF], errno.EINVAL)
    kernel.close(fd)


def test_bad_addresses() -> None:
    with rig() as made:
        for request in (abi.KVM_GET_REGS, abi.KVM_SET_REGS, abi.KVM_SET_MSRS):
            assert made.kernel.ioctl(made.vcpu.fd, request.number, 0) == -1
            assert made.kernel.errno() == errno.EFAULT


def test_a_forked_child_gets_eio() -> None:
    with rig() as made:
        child = os.fork()
        if not child:
            made.kernel.ioctl(made.vcpu.fd, abi.KVM_RUN.number, 0)
            os._exit(made.kernel.errno())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EIO


# Exits.


def test_port_out_and_in() -> None:
    """out %ax,$0x50; in $0x51,%al; out %al,$0x52; hlt"""
    with rig() as made:
        made.start(b"\xe7\x50\xe4\x51\xe6\x52\xf4", rax=0x1234)
        run = made.run()
        assert (run.io.direction, run.io.size, run.io.port, run.io.count, run.io.data_offset) == (1, 2, 0x50, 1, 4096)
        assert made.page[4096:4098] == b"\x34\x12"
        run = made.run()
        assert (run.io.direction, run.io.size, run.io.port) == (0, 1, 0x51)
        made.page[4096] = 0x77
        run = made.run()
        assert (run.io.port, made.page[4096]) == (0x52, 0x77)
        assert made.run().exit_reason == Exit.HLT
        assert made.vcpu.get_regs().rip == CODE + 7


def test_string_output_in_one_exit() -> None:
    """rep outsb; hlt"""
    with rig() as made:
        made.memory[0x3000:0x3005] = b"hello"
        made.start(b"\xf3\x6e\xf4", rcx=5, rsi=0x3000, rdx=0x50)
        assert made.out(5) == b"hello"
        assert made.run().exit_reason == Exit.HLT
        assert (made.vcpu.get_regs().rcx, made.vcpu.get_regs().rsi) == (0, 0x3005)


def test_device_memory() -> None:
    """DS = 0xF000: mov %eax,0x10; mov 0x20,%bx; hlt"""
    with rig() as made:
        made.start(DEVICE_DS + b"\x66\xa3\x10\x00\x8b\x1e\x20\x00\xf4", rax=0xAABB0000)
        run = made.run()
        assert (run.exit_reason, run.mmio.phys_addr, run.mmio.len, run.mmio.is_write) == (Exit.MMIO, 0xF0010, 4, 1)
        assert bytes(run.mmio.data) == b"\x00\xf0\xbb\xaa\0\0\0\0"
        run = made.run()
        assert (run.exit_reason, run.mmio.phys_addr, run.mmio.len, run.mmio.is_write) == (Exit.MMIO, 0xF0020, 2, 0)
        made.page[40:42] = b"\x34\x12"
        assert made.run().exit_reason == Exit.HLT
        assert made.vcpu.get_regs().rbx == 0x1234


@pytest.mark.parametrize(("code", "answer"), [(b"\xe4\x51", 4096), (DEVICE_DS + b"\xa0\x10\x00", 40)])
def test_an_access_is_complete_after_immediate_exit(code: bytes, answer: int) -> None:
    with rig() as made:
        made.start(code + b"\xf4")
        made.run()
        made.page[answer] = 0x5A
        made.page[1] = 1
        assert made.vcpu.run() == errno.EINTR
        regs = made.vcpu.get_regs()
        assert (regs.rax & 0xFF, regs.rip) == (0x5A, CODE + len(code))
        made.page[1] = 0
        assert made.run().exit_reason == Exit.HLT


def test_an_access_is_forgotten_where_the_registers_are_set_elsewhere() -> None:
    with rig() as made:
        made.start(b"\xe4\x51\xf4")
        assert made.run().exit_reason == Exit.IO
        made.start(b"\xb0\x07\xf4", at=0x2000)
        assert made.run().exit_reason == Exit.HLT
        assert (made.vcpu.get_regs().rax, made.vcpu.get_regs().rip) == (7, 0x2003)


def test_a_triple_fault() -> None:
    """lidt 0x3000 with a limit of 0; ud2"""
    with rig() as made:
        made.start(b"\x0f\x01\x1e\x00\x30\x0f\x0b")
        assert made.run().exit_reason == Exit.SHUTDOWN


def test_lowering_cr8_without_a_local_apic() -> None:
    """In long mode: mov $5,%rax; mov %rax,%cr8; xor %eax,%eax; mov %rax,%cr8; hlt"""
    with rig() as made:
        long_mode(made)
        made.start(b"\x48\xc7\xc0\x05\0\0\0\x44\x0f\x22\xc0\x31\xc0\x44\x0f\x22\xc0\xf4")
        run = made.run()
        assert (run.exit_reason, run.cr8) == (Exit.SET_TPR, 0)
        assert made.run().exit_reason == Exit.HLT


def long_mode(made: Rig) -> None:
    """Put the first vCPU into 64-bit mode, the first GiB mapped one to one by tables at 0x20000."""
    made.memory[0x20000:0x20008] = struct.pack("<Q", 0x21003)
    made.memory[0x21000:0x21008] = struct.pack("<Q", 0x83)
    sregs = made.vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80000011, 0x20000, 0x20, 0x500
    sregs.cs.l, sregs.cs.g, sregs.cs.limit, sregs.cs.type = 1, 1, 0xFFFFFFFF, 11
    made.vcpu.set_sregs(sregs)


def test_interrupt_windows() -> None:
    """sti; nop; nop; hlt, with request_interrupt_window"""
    with rig() as made:
        made.handler(0x30)
        made.start(b"\xfb\x90\x90\xf4")
        made.page[0] = 1
        run = made.run()
        assert (run.exit_reason, run.ready_for_interrupt_injection, run.if_flag) == (Exit.IRQ_WINDOW_OPEN, 1, 1)
        assert made.vcpu.get_regs().rip == CODE + 2  # one instruction after STI
        made.page[0] = 0
        made.vcpu.interrupt(0x30)
        assert made.vcpu.get_sregs().interrupt_bitmap[0] == 1 << 0x30
        assert made.out(1) == b"I"
        assert made.run().exit_reason == Exit.HLT


def test_an_interrupt_from_user_space_beside_local_apics() -> None:
    """It goes through LINT0; the window opens when it is taken."""
    with rig(1, "split") as made:
        made.handler(0x30, b"\xb0I\xe6\xe9\xcf")
        made.start(b"\xfb\xf4\xb0.\xe6\xe9\xf4")
        made.vcpu.interrupt(0x30)
        made.page[0] = 1
        assert made.out(1) == b"I"
        run = made.run()
        assert (run.exit_reason, run.ready_for_interrupt_injection) == (Exit.IRQ_WINDOW_OPEN, 1)
        registers = bytearray(made.vcpu.get_lapic())
        registers[0x352] |= 1  # LINT0 masked
        made.vcpu.set_lapic(bytes(registers))
        made.vcpu.interrupt(0x30)
        made.page[0] = 0
        made.vcpu.set_mp_state(abi.KVM_MP_STATE_RUNNABLE)
        made.start(b"\xfb\x90\xb0.\xe6\xe9\xf4", at=0x2000)
        assert made.out(1) == b"."


def test_an_nmi_without_controllers() -> None:
    with rig() as made:
        made.handler(2)
        made.start(b"\x90\xf4")
        made.vcpu.nmi()
        assert made.vcpu.get_vcpu_events().nmi.pending == 1
        assert made.out(1) == b"I"


# Signals.


def handled() -> int:
    made = TcgKernel()
    made.catch(signal.SIGURG)
    return signal.SIGURG


def test_a_signal_interrupts_a_guest_that_runs() -> None:
    """Also without immediate_exit; with it, the exit reason is not touched."""
    number = handled()
    with rig() as made:
        made.start(SPIN)
        caller = Caller(made.vcpu.run)
        until(lambda: made.inside() in made.inside().vm.inside)
        signal.pthread_kill(made.inside().thread, number)
        assert caller.done()
        assert caller.result == errno.EINTR
        assert made.page[8] == Exit.INTR
        made.page[1], made.page[8] = 1, 0x77
        assert made.vcpu.run() == errno.EINTR
        assert made.page[8] == 0x77


def test_a_signal_interrupts_a_guest_that_sleeps() -> None:
    number = handled()
    with rig(1, "kernel") as made:
        made.start(b"\xf4")
        caller = Caller(made.vcpu.run)
        until(lambda: made.inside().sleeping)
        made.page[1] = 1
        signal.pthread_kill(made.inside().thread, number)
        assert caller.done()
        assert caller.result == errno.EINTR
        assert made.vcpu.get_mp_state() == abi.KVM_MP_STATE_HALTED


def test_a_signal_mask_lets_signals_in_that_the_thread_blocks() -> None:
    number = handled()
    with rig() as made:
        made.start(SPIN)
        made.vcpu.set_signal_mask([])
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        try:
            signal.pthread_kill(threading.get_ident(), number)
            assert made.vcpu.run() == errno.EINTR
            assert number in signal.sigpending()  # it is still blocked outside
        finally:
            signal.sigwait({number})
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Memory.


def test_the_dirty_log_between_two_writes() -> None:
    """mov %al,0x5000; out; mov %al,0x5000; mov %al,0x6000; hlt"""
    with rig(flags=abi.KVM_MEM_LOG_DIRTY_PAGES) as made:
        made.start(b"\xa2\x00\x50\xe6\x50\xa2\x00\x50\xa2\x00\x60\xf4")
        assert made.run().exit_reason == Exit.IO
        assert pages(made.vm.get_dirty_log(0)) == [5]
        assert pages(made.vm.get_dirty_log(0)) == []
        assert made.run().exit_reason == Exit.HLT
        assert pages(made.vm.get_dirty_log(0)) == [5, 6]


def test_a_read_only_slot() -> None:
    """mov 0x0,%al; mov %al,0x0 with DS = 0xF000"""
    with rig() as made, mmap.mmap(-1, PAGE) as more:
        more[0] = 0x42
        made.vm.set_user_memory_region(1, 0xF0000, PAGE, address_of(more), abi.KVM_MEM_READONLY)
        made.start(DEVICE_DS + b"\xa0\x00\x00\xa2\x00\x00\xf4")
        run = made.run()
        assert (run.exit_reason, run.mmio.phys_addr, run.mmio.is_write, run.mmio.data[0]) == (
            Exit.MMIO,
            0xF0000,
            1,
            0x42,
        )
        made.vm.set_user_memory_region(1, 0, 0, 0)


def test_a_slot_is_gone_when_the_request_returns() -> None:
    """A vCPU that reads a page in a loop, from two slots in turn, sees the change at once."""
    code = DEVICE_DS + b"\xa0\x00\x00\x2e\xa2\x00\x40\xeb\xf7"  # 1: mov 0x0,%al; mov %al,%cs:0x4000; jmp 1b
    number = handled()
    with rig() as made, mmap.mmap(-1, PAGE) as one, mmap.mmap(-1, PAGE) as two:
        one[0], two[0] = 1, 2
        made.vm.set_user_memory_region(1, 0xF0000, PAGE, address_of(one))
        made.start(code)
        caller = Caller(made.vcpu.run)
        until(lambda: made.memory[0x4000] == 1)
        for page in (two, one) * 3:
            made.page[1] = 1
            signal.pthread_kill(made.inside().thread, number)
            assert caller.done()
            made.page[1] = 0
            made.vm.set_user_memory_region(1, 0xF0000, 0, 0)
            made.vm.set_user_memory_region(1, 0xF0000, PAGE, address_of(page))
            caller = Caller(made.vcpu.run)
            until(lambda page=page: made.memory[0x4000] == page[0])  # type: ignore[misc]
        made.page[1] = 1
        signal.pthread_kill(made.inside().thread, number)
        assert caller.done()
        made.vm.set_user_memory_region(1, 0xF0000, 0, 0)


def test_memory_that_the_host_does_not_have() -> None:
    with rig() as made:
        made.vm.set_user_memory_region(1, 0xF0000, PAGE, 0x10000)
        made.start(DEVICE_DS + b"\xa0\x00\x00\xf4")
        with pytest.raises(KvmError) as caught:
            made.vcpu.run()
        assert caught.value.errno == errno.EFAULT


def test_what_it_has_and_no_more() -> None:
    with rig() as made:
        assert made.vm.check_extension(Cap.MAX_VCPUS) == 1024
        for cap in (Cap.X86_SMM, Cap.NESTED_STATE, Cap.HYPERV, Cap.GUEST_MEMFD, Cap.XEN_HVM):
            assert made.vm.check_extension(cap) == 0
