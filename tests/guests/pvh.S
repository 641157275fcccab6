# elf32 0x100000
#
# A PVH image: says what hvm_start_info holds. Its ELF entry is another, which only says so.
#
# Exits, on the first vCPU:
#   port 0xE9 OUT size 1 for each character of: the command line, "\n"; for each module its string, "=", its bytes, "\n";
#   the first 7 bytes at the RSDP address unless that is 0
#   port 0xF4 OUT size 1: the number of entries of the memory map, or ff when EBX did not point to the magic number, or
#   fe when it was started at the ELF entry; then, if it is run on, HLT

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4
        .set    START_MAGIC, 0x336ec578
        .set    PHYS32_ENTRY, 18
        # offsets in hvm_start_info
        .set    MODULES, 12
        .set    MODULE_LIST, 16
        .set    COMMAND_LINE, 24
        .set    RSDP, 32
        .set    MEMORY_MAP_ENTRIES, 48

        .globl  _start
_start:
        mov     $0xfe, %al
        jmp     done

pvh_start:
        mov     $stack_end, %esp                # PVH gives none
        mov     $0xff, %al
        cmpl    $START_MAGIC, (%ebx)
        jne     done
        mov     COMMAND_LINE(%ebx), %esi
        call    say
        call    newline
        mov     MODULES(%ebx), %ecx
        mov     MODULE_LIST(%ebx), %edi
1:      test    %ecx, %ecx
        jz      3f
        mov     16(%edi), %esi
        call    say
        mov     $'=', %al
        out     %al, $DEBUG_CONSOLE
        mov     (%edi), %esi
        mov     8(%edi), %edx
        call    say_edx
        call    newline
        add     $32, %edi
        dec     %ecx
        jmp     1b
3:      mov     RSDP(%ebx), %esi
        mov     $7, %edx
        test    %esi, %esi
        jz      4f
        call    say_edx
4:      mov     MEMORY_MAP_ENTRIES(%ebx), %eax

done:   out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

say_edx:
        test    %edx, %edx
        jz      1f
        mov     (%esi), %al
        out     %al, $DEBUG_CONSOLE
        inc     %esi
        dec     %edx
        jmp     say_edx

say:    mov     (%esi), %al
        test    %al, %al
        jz      1f
        out     %al, $DEBUG_CONSOLE
        inc     %esi
        jmp     say
1:      ret

newline:
        mov     $'\n', %al
        out     %al, $DEBUG_CONSOLE
        ret

        .section .note.Xen, "a", @note
        .long   4, 4, PHYS32_ENTRY
        .asciz  "Xen"
        .long   pvh_start

        .bss
        .skip   256
stack_end:
