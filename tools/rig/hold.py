"""Keep a few idle virtual machines open for as long as the rig runs. Started by its init, before the command.

The first machine of a kind that exists, and the end of the last one, make KVM patch code of the running kernel
(static keys: preemption notifiers, vCPUs without a local APIC, local APICs that are off). QEMU 7.2 now and then goes on
to execute the breakpoint that marks such a place while it is patched, and the rig stands still. With these machines
there is no first and no last.
"""

import fcntl
import os
import signal
import struct

KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP = 0xAE01, 0xAE41, 0xAE60
KVM_GET_SREGS, KVM_SET_SREGS = 0x8138AE83, 0x4138AE84
SREGS_SIZE, APIC_BASE, APIC_ENABLED = 312, 272, 1 << 11

kvm = os.open("/dev/kvm", os.O_RDWR)
plain = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
fcntl.ioctl(plain, KVM_CREATE_VCPU, 0)

with_irqchip = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
fcntl.ioctl(with_irqchip, KVM_CREATE_IRQCHIP, 0)
fcntl.ioctl(with_irqchip, KVM_CREATE_VCPU, 0)  # its local APIC is off by software, as after reset
off = fcntl.ioctl(with_irqchip, KVM_CREATE_VCPU, 1)
sregs = bytearray(SREGS_SIZE)
fcntl.ioctl(off, KVM_GET_SREGS, sregs)
(base,) = struct.unpack_from("<Q", sregs, APIC_BASE)
struct.pack_into("<Q", sregs, APIC_BASE, base & ~APIC_ENABLED)
fcntl.ioctl(off, KVM_SET_SREGS, sregs)

print("held", flush=True)
signal.pause()
