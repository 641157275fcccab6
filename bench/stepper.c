/* The least that C needs to single-step a flat real-mode guest: KVM_RUN, and a look at where it is.
 *
 *     stepper IMAGE SECONDS     run IMAGE (at 0x1000, entry 0x1000) by single steps and print how many it makes a second
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MEMORY = 1 << 20, LOAD = 0x1000, PART = 1000 };

static unsigned long long trail[PART];

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(2, "usage: stepper IMAGE SECONDS");
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	unsigned char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (kvm < 0 || vm < 0 || memory == MAP_FAILED)
		err(1, "KVM");
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (unsigned long)memory };
	int image = open(argv[1], O_RDONLY);
	if (image < 0 || read(image, memory + LOAD, MEMORY - LOAD) < 1)
		err(1, "%s", argv[1]);
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		err(1, "KVM_SET_USER_MEMORY_REGION");
	int fd = ioctl(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct kvm_sregs sregs;
	if (run == MAP_FAILED || ioctl(fd, KVM_GET_SREGS, &sregs))
		err(1, "vCPU");
	sregs.cs.base = sregs.cs.selector = 0;
	struct kvm_regs regs = { .rip = LOAD, .rflags = 2 };
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs) || ioctl(fd, KVM_SET_GUEST_DEBUG, &debug))
		err(1, "registers");
	double start = now(), end = start + atof(argv[2]);
	unsigned long steps = 0;
	while (now() < end)
		for (int i = 0; i < PART; i++, steps++) {
			if (ioctl(fd, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_DEBUG)
				err(1, "KVM_RUN: exit reason %u", run->exit_reason);
			trail[i] = run->debug.arch.pc;
		}
	printf("%.0f\n", steps / (now() - start));
}
