"""The real gdb against a machine, and guests that are assembled for it with symbols."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

DEADLINE = 60.0
# gdb says it of every target without a program; it is no fault.
NO_PROGRAM = re.compile(
    r"warning: No executable has been specified and target does not support\n"
    r"determining executable automatically\.  Try using the \"file\" command\.\n"
)
FAULTS = re.compile(r".*(?:warning|error|ignoring|unknown|invalid|malformed|not supported by).*", re.IGNORECASE)
EXPECTED = ("error-message+",)  # a feature of the protocol


def run_gdb(address: object, *commands: str, before: tuple[str, ...] = (), faults: tuple[str, ...] = ()) -> str:
    """Run gdb's commands, connected and with its log on; fail when it has other warnings or errors than `faults`.

    Return what it says without the log.
    """
    where = str(address).removeprefix("unix:")
    lines = [
        "set pagination off",
        "set confirm off",
        "set debug remote 1",
        *before,
        f"target remote {where}",
        *commands,
    ]
    arguments = [part for line in lines for part in ("-ex", line)]
    done = subprocess.run(
        ["gdb", "-nx", "-nh", "-q", "-batch", *arguments],
        capture_output=True,
        text=True,
        errors="replace",  # the log has bytes of memory
        timeout=DEADLINE,
        check=False,
    )
    text = NO_PROGRAM.sub("", done.stdout + done.stderr)
    found = [line for line in FAULTS.findall(text) if not any(word in line for word in EXPECTED)]
    assert found == list(faults), text
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("[remote]"))


def assembled(folder: Path, text: str, address: int = 0x100000) -> Path:
    """Assemble and link a program at `address`; return its ELF file. The flat image lies beside it, as .bin."""
    source, program = folder / "guest.S", folder / "guest.elf"
    source.write_text(text, encoding="utf-8")
    subprocess.run(["as", source, "-o", folder / "guest.o"], check=True)
    subprocess.run(
        [
            "ld",
            "-N",
            "--no-warn-rwx-segments",
            f"-Ttext={address:#x}",
            "-z",
            "noexecstack",
            folder / "guest.o",
            "-o",
            program,
        ],
        check=True,
    )
    subprocess.run(["objcopy", "-O", "binary", program, program.with_suffix(".bin")], check=True)
    return program


def listing(program: Path) -> list[int]:
    """Return the address of each instruction, as objdump has them."""
    done = subprocess.run(["objdump", "-d", program], capture_output=True, text=True, check=True)
    return [
        int(found, 16) for found in re.findall(r"^ +([0-9a-f]+):\t(?:[0-9a-f]{2} )+ *\t", done.stdout, re.MULTILINE)
    ]


# Counts in `counter` and in ECX for ever; RBX is the vCPU's index.
COUNTER = """
        .code64
        .globl _start, loop, work, counter
        .type work, @function
_start: mov %rdi, %rbx
        xor %ecx, %ecx
loop:   inc %ecx
        mov %ecx, counter(%rip)
        call work
        jmp loop
work:   add $2, %edx
        mov %edx, %esi
        ret
        .size work, . - work
counter: .long 0
"""

# 64 different instructions, then again from the start: what a step leads to can be read in the listing.
STRAIGHT = """
        .code64
        .globl _start
_start:
        .rept 16
        inc %eax
        lea 4(%rax, %rbx, 2), %rcx
        push %rcx
        pop %rdx
        .endr
        jmp _start
"""

# From real mode to 32-bit code and on to 64-bit code; stops for good there.
MODES = """
        .code16
        .globl _start, real_code, protected_code, long_code
_start: xor %ax, %ax
        mov %ax, %ds
real_code:
        mov $0x16, %bx
        lgdtl gdtr
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        ljmpl $8, $protected
        .code32
protected:
        mov $16, %eax
        mov %eax, %ds
        mov %eax, %ss
protected_code:
        mov $0x32, %ebx
        movl $0x21007, 0x20000
        movl $0x83, 0x21000
        movl $0x20000, %eax
        mov %eax, %cr3
        movl $0x21003, 0x20000
        movl $0x22003, 0x21000
        movl $0x83, 0x22000
        mov $0x20, %eax
        mov %eax, %cr4
        mov $0xc0000080, %ecx
        rdmsr
        or $0x100, %eax
        wrmsr
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        ljmpl $24, $long
        .code64
long:   mov $0x64, %ebx
long_code:
        inc %ebx
1:      jmp 1b
        .align 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff
        .quad 0x00af9b000000ffff
gdtr:   .word 31
        .long gdt
"""
