/* The peer: the least that C needs to run a flat real-mode guest and take its exits. No bus, no devices, no checks of
 * what the guest writes. bench/ compares the library with it.
 *
 *     peer IMAGE VCPUS SECONDS     run IMAGE (at 0x1000, entry 0x1000, DI = index) and print exits per second, all vCPUs
 *     peer IMAGE 0 COUNT           kick a vCPU COUNT times out of the guest; print each latency, in ns
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MEMORY = 1 << 20, LOAD = 0x1000, MAX_VCPUS = 64, WARM_UP = 100000 /* us */ };

static volatile int stop;
static volatile double kicked; /* when the vCPU saw it */
static sem_t answered;
static struct kvm_run *kickable;
static int kvm, vm;
static long run_size;

struct vcpu {
	pthread_t thread;
	int index;
	volatile unsigned long exits; /* main() looks while they are counted */
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
	kickable = run;
	while (!stop) {
		if (ioctl(fd, KVM_RUN, 0)) {
			if (errno != EINTR)
				err(1, "KVM_RUN");
			kicked = now();
			run->immediate_exit = 0;
			sem_post(&answered);
			continue;
		}
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

static unsigned long total(const struct vcpu *vcpus, int count)
{
	unsigned long exits = 0;
	for (int i = 0; i < count; i++)
		exits += vcpus[i].exits;
	return exits;
}

static void leave(int number)
{
	(void)number;
	kickable->immediate_exit = 1; /* the signal may come just before KVM_RUN */
}

static void kick(struct vcpu *vcpu, long count)
{
	struct sigaction action = { .sa_handler = leave };
	sigaction(SIGURG, &action, NULL);
	sem_init(&answered, 0, 0);
	if (pthread_create(&vcpu->thread, NULL, live, vcpu))
		errx(1, "pthread_create");
	usleep(WARM_UP);
	for (long i = 0; i < count; i++) {
		double start = now();
		pthread_kill(vcpu->thread, SIGURG);
		sem_wait(&answered);
		printf("%.0f\n", (kicked - start) * 1e9);
	}
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: peer IMAGE VCPUS SECONDS");
	int count = atoi(argv[2]);
	double seconds = atof(argv[3]);
	if (count < 0 || count > MAX_VCPUS)
		errx(2, "0 to %d vCPUs", MAX_VCPUS);
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
	if (count == 0) {
		kick(vcpus, seconds);
		return 0; /* its thread ends with the process */
	}
	for (int i = 0; i < count; i++) {
		vcpus[i].index = i;
		if (pthread_create(&vcpus[i].thread, NULL, live, &vcpus[i]))
			errx(1, "pthread_create");
	}
	usleep(WARM_UP);
	double start = now();
	unsigned long before = total(vcpus, count);
	usleep(seconds * 1e6);
	unsigned long exits = total(vcpus, count) - before;
	double took = now() - start;
	stop = 1;
	for (int i = 0; i < count; i++)
		pthread_join(vcpus[i].thread, NULL);
	printf("%.0f\n", exits / took);
	return 0;
}
