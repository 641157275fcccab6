/* Runs single instructions on the processor: reads cases from stdin, writes results to stdout.
 * In: code length (1), code (15), FXSAVE image (512), memory (64), rax rcx rdx rflags (32).
 * Out: signal (4), rflags (4)..., see struct result. The memory operand is at (%rbx), 16-byte aligned. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct test { uint8_t length, code[15]; uint8_t image[512]; uint8_t memory[64]; uint64_t regs[4]; } __attribute__((packed));
struct result { uint64_t signal; uint8_t image[512]; uint8_t memory[64]; uint64_t regs[4]; } __attribute__((packed));

static sigjmp_buf back;
static uint8_t in_image[512] __attribute__((aligned(64))), out_image[512] __attribute__((aligned(64)));
static uint8_t memory[64] __attribute__((aligned(64)));
static uint64_t regs[4];
static uint8_t *code;

static void on_signal(int number) { siglongjmp(back, number); }

static int all(int fd, void *data, size_t count, int out)
{
    char *at = data;
    while (count) {
        ssize_t n = out ? write(fd, at, count) : read(fd, at, count);
        if (n <= 0) return 0;
        at += n; count -= n;
    }
    return 1;
}

static void __attribute__((noinline)) run(void)
{
    __asm__ volatile(
        "push %%rbx\n push %%rbp\n"
        "fxrstor64 %[in]\n"
        "lea %[mem], %%rbx\n"
        "push 24+%[regs]\n popfq\n"
        "mov %[regs], %%rax\n mov 8+%[regs], %%rcx\n mov 16+%[regs], %%rdx\n"
        "call *%[code]\n"
        "mov %%rax, %[regs]\n mov %%rcx, 8+%[regs]\n mov %%rdx, 16+%[regs]\n"
        "pushfq\n pop 24+%[regs]\n"
        "fxsave64 %[out]\n"
        "fninit\n cld\n"
        "pop %%rbp\n pop %%rbx\n"
        : [out] "+m"(out_image), [regs] "+m"(regs), [mem] "+m"(memory) : [in] "m"(in_image), [code] "m"(code)
        : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
}

int main(void)
{
    struct test t;
    struct result r;
    static char stack[65536];
    stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_NODEFER };
    sigaltstack(&alternate, 0);
    for (int n = 0; n < 5; n++) sigaction((int[]){ SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGTRAP }[n], &action, 0);
    code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (all(0, &t, sizeof t, 0)) {
        memcpy(code, t.code, t.length);
        code[t.length] = 0xC3;
        memcpy(in_image, t.image, 512);
        memcpy(memory, t.memory, 64);
        memcpy(regs, t.regs, 32);
        memset(&r, 0, sizeof r);
        int number = sigsetjmp(back, 0);
        if (!number) run();
        else __asm__ volatile("fninit\n cld");
        uint32_t mxcsr = 0x1F80;
        __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
        r.signal = number;
        memcpy(r.image, out_image, 512);
        memcpy(r.memory, memory, 64);
        memcpy(r.regs, regs, 32);
        if (!all(1, &r, sizeof r, 1)) return 1;
    }
    return 0;
}
