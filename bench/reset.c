/* Resets per second in C: the requests and copies that the library makes, and nothing else.
 *
 * reset IMAGE SECONDS ALL: IMAGE is a flat real-mode guest for 0x1000 that ends with an OUT to 0xF4. With ALL 1, the
 * whole state of the vCPU is read and compared, too; with 0, registers, segments and events in the shared page only.
 * Prints resets per second, and the median of one in us.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SIZE (64UL << 20)
#define PAGE 4096UL
#define MOST 1000000

static double *times;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entries[1000];
};

static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[256];
} cpuid = {{256}};
static struct {
	struct kvm_msr_list head;
	__u32 indices[1000];
} list = {{1000}};
static struct msrs msrs, msrs_before;
static char xsave[16384] __attribute__((aligned(64))), xsave_before[16384];
static struct kvm_xcrs xcrs, xcrs_before;
static struct kvm_debugregs debug, debug_before;
static unsigned long dirty[SIZE / PAGE / 64];

/* The MSRs that can be read and written, but for the time-stamp counter: what the library compares. */
static void choose_msrs(int kvm, int vcpu)
{
	unsigned count = 0;

	check(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &list), "KVM_GET_MSR_INDEX_LIST");
	for (unsigned i = 0; i < list.head.nmsrs; i++) {
		msrs.head.nmsrs = 1;
		msrs.entries[0].index = list.indices[i];
		if (list.indices[i] != 0x10 && ioctl(vcpu, KVM_GET_MSRS, &msrs) == 1 && ioctl(vcpu, KVM_SET_MSRS, &msrs) == 1)
			list.indices[count++] = list.indices[i];
	}
	msrs.head.nmsrs = count;
	for (unsigned i = 0; i < count; i++)
		msrs.entries[i].index = list.indices[i];
}

static int differs(int vcpu, int first)
{
	static int get_xsave;

	if (!get_xsave)
		get_xsave = ioctl(vcpu, KVM_GET_XSAVE2, xsave) ? KVM_GET_XSAVE : KVM_GET_XSAVE2;
	check(ioctl(vcpu, get_xsave, xsave), "KVM_GET_XSAVE");
	check(ioctl(vcpu, KVM_GET_XCRS, &xcrs), "KVM_GET_XCRS");
	check(ioctl(vcpu, KVM_GET_DEBUGREGS, &debug), "KVM_GET_DEBUGREGS");
	check(ioctl(vcpu, KVM_GET_MSRS, &msrs), "KVM_GET_MSRS");
	if (first) {
		memcpy(xsave_before, xsave, sizeof xsave);
		xcrs_before = xcrs, debug_before = debug, msrs_before = msrs;
	}
	return memcmp(xsave, xsave_before, 512) || memcmp(xsave + 520, xsave_before + 520, 4096 - 520) ||
	       memcmp(&xcrs, &xcrs_before, sizeof xcrs) || memcmp(&debug, &debug_before, sizeof debug) ||
	       memcmp(&msrs, &msrs_before, sizeof msrs);
}

int main(int argc, char **argv)
{
	double seconds = argc > 2 ? atof(argv[2]) : 1;
	int all = argc > 3 && atoi(argv[3]);
	int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {0, KVM_MEM_LOG_DIRTY_PAGES, 0, SIZE, (unsigned long)memory};
	int image = check(open(argv[1], O_RDONLY), "image");

	madvise(memory, SIZE, MADV_NOHUGEPAGE);
	check(read(image, memory + 0x1000, 0x1000), "read");
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	char *copy = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(copy + 0x1000, memory + 0x1000, 0x1000);

	int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};

	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	check(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	choose_msrs(kvm, vcpu);
	differs(vcpu, 1);
	run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
	times = malloc(MOST * sizeof *times);

	double begin = now(), end = begin;
	int count = 0;
	for (; count < MOST && end < begin + seconds; count++) {
		double before = end;

		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0xf4) {
			fprintf(stderr, "exit %u\n", run->exit_reason);
			return 1;
		}
		run->immediate_exit = 1; /* completes the OUT */
		ioctl(vcpu, KVM_RUN, 0);
		run->immediate_exit = 0;
		if (all && differs(vcpu, 0))
			return fputs("the guest changes more than registers\n", stderr), 1;
		struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = dirty};
		check(ioctl(vm, KVM_GET_DIRTY_LOG, &log), "KVM_GET_DIRTY_LOG");
		for (unsigned long word = 0; word < SIZE / PAGE / 64; word++)
			for (unsigned long bits = dirty[word]; bits; bits &= bits - 1) {
				unsigned long at = (word * 64 + __builtin_ctzl(bits)) * PAGE;

				memcpy(memory + at, copy + at, PAGE);
			}
		if (memcmp(&run->s.regs.regs, &regs, sizeof regs)) {
			run->s.regs.regs = regs;
			run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
		}
		if (memcmp(&run->s.regs.sregs, &sregs, sizeof sregs)) {
			run->s.regs.sregs = sregs;
			run->kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
		}
		end = now();
		times[count] = (end - before) * 1e6;
	}
	qsort(times, count, sizeof *times, compare);
	printf("%.0f %.2f\n", count / (end - begin), times[count / 2]);
	return 0;
}
