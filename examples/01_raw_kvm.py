"""KVM with nothing around it: open /dev/kvm, make a VM, give it memory, and write the loop around KVM_RUN yourself.

pyvcpu.kvm has one class per kind of file descriptor and one method per ioctl, under the kernel's names.
"""

import ctypes
import mmap
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import open_accel
from pyvcpu.kvm import VcpuFd, abi

ADDRESS = 0x1000
CODE = bytes.fromhex(  # for 16-bit real mode
    "be 0d 10"  #         mov   $0x100d, %si    where the text lies, 13 bytes from here
    "ac"  #         next: lodsb                 AL = the byte at SI; SI += 1
    "84 c0"  #            test  %al, %al
    "74 04"  #            jz    done
    "e6 e9"  #            out   %al, $0xe9      leaves the guest: KVM_RUN returns
    "eb f7"  #            jmp   next
    "f4"  #         done: hlt                   and so does this
)
TEXT = b"written by the guest, one exit per byte\n\0"


def main() -> None:
    memory = mmap.mmap(-1, 0x10000)  # 64 KiB of this process become the guest's RAM, from its address 0 on
    memory[ADDRESS : ADDRESS + len(CODE + TEXT)] = CODE + TEXT
    host_address = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    # Kvm() would do where there is KVM; this takes a processor in software where there is none.
    with open_accel() as kvm, kvm.create_vm() as vm:
        print(f"KVM API version {kvm.get_api_version()}: {kvm} made {vm}")
        vm.set_tss_addr(0xFFFB_D000)  # KVM on Intel wants three pages for itself, or real mode does not work
        vm.set_user_memory_region(slot=0, guest_phys_addr=0, memory_size=len(memory), userspace_addr=host_address)
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.get_sregs()
            print(f"after reset: CS base {sregs.cs.base:#x}, RIP {vcpu.get_regs().rip:#x}")
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            vcpu.set_regs(abi.kvm_regs(rip=ADDRESS, rflags=2))  # bit 1 of RFLAGS is always set
            exits = run(vcpu, vcpu.map_run(kvm.get_vcpu_mmap_size()))
            print(f"{exits} exits later: halted, RIP {vcpu.get_regs().rip:#x}")


def run(vcpu: VcpuFd, page: mmap.mmap) -> int:
    """Run the guest until it halts and return how often it left. In `page` KVM tells why it did."""
    shared = abi.kvm_run.from_buffer(page)
    exits = 0
    while True:
        if vcpu.run():  # EINTR or EAGAIN: the exit_reason is an old one then
            continue
        exits += 1
        match shared.exit_reason:
            case abi.Exit.IO if shared.io.direction == abi.KVM_EXIT_IO_OUT and shared.io.port == 0xE9:
                start = shared.io.data_offset
                print(page[start : start + shared.io.size * shared.io.count].decode(), end="")
            case abi.Exit.HLT:
                return exits
            case reason:
                sys.exit(f"this loop does not know exit reason {reason}")


if __name__ == "__main__":
    main()
