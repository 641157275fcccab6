/* The peer: the least that C needs to run a flat real-mode guest and take its exits. No bus, no devices, no checks of
 * what the guest writes. bench/ compares the library with it.
 *
 *     peer IMAGE VCPUS SECONDS     run IMAGE (at 0x1000, entry 0x1000, DI = index) and print exits per second, all vCPUs
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MEMORY = 1 << 20, LOAD = 0x1000, MAX_VCPUS = 64 };

static volatile int stop;
static int kvm, vm;
static long run_size;

struct vcpu {
	pthread_t thread;
	int index;
	unsigned long exits;
	unsigned char sink;
};

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *live(void *argument)
{
	struct vcpu *self = argument;
	int fd = ioctl(vm, KVM_CREATE_VCPU, self->index);
	if (fd < 0)
		err(1, "KVM_CREATE_VCPU");
	struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (run == MAP_FAILED)
		err(1, "mmap");
	struct kvm_sregs sregs;
	if (ioctl(fd, KVM_GET_SREGS, &sregs))
		err(1, "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	struct kvm_regs regs = { .rip = LOAD, .rflags = 2, .rdi = self->index, .rsp = 0x8000 };
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs))
		err(1, "registers");
	while (!stop) {
		if (ioctl(fd, KVM_RUN, 0))
			err(1, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			self->sink = ((unsigned char *)run)[run->io.data_offset];
			break;
		case KVM_EXIT_MMIO:
			self->sink = run->mmio.data[0];
			break;
		default:
			errx(1, "exit reason %u", run->exit_reason);
		}
		self->exits++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: peer IMAGE VCPUS SECONDS");
	int count = atoi(argv[2]);
	double seconds = atof(argv[3]);
	if (count < 1 || count > MAX_VCPUS)
		errx(2, "1 to %d vCPUs", MAX_VCPUS);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	unsigned char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (unsigned long)memory };
	int image = open(argv[1], O_RDONLY);
	if (kvm < 0 || vm < 0 || run_size < 0 || image < 0 || memory == MAP_FAILED ||
	    read(image, memory + LOAD, MEMORY - LOAD) < 1 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		err(1, "set-up");
	static struct vcpu vcpus[MAX_VCPUS];
	double start = now();
	for (int i = 0; i < count; i++) {
		vcpus[i].index = i;
		if (pthread_create(&vcpus[i].thread, NULL, live, &vcpus[i]))
			errx(1, "pthread_create");
	}
	usleep(seconds * 1e6);
	stop = 1;
	unsigned long exits = 0;
	for (int i = 0; i < count; i++) {
		pthread_join(vcpus[i].thread, NULL);
		exits += vcpus[i].exits;
	}
	printf("%.0f\n", exits / (now() - start));
	return 0;
}
