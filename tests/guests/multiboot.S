# elf32 0x100000
#
# A Multiboot 1 image: says what the boot information holds.
#
# Exits, on the first vCPU:
#   port 0xE9 OUT size 1 for each character of: the command line, "\n"; for each module its string, "=", its bytes, "\n"
#   port 0xF4 OUT size 1: the number of entries of the memory map, or ff when EAX was not the magic number;
#   then, if it is run on, HLT

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4
        .set    HEADER_MAGIC, 0x1badb002
        .set    HEADER_FLAGS, 3                 # page-aligned modules, memory information
        .set    BOOT_MAGIC, 0x2badb002
        # offsets in the boot information
        .set    COMMAND_LINE, 16
        .set    MODULES, 20
        .set    MODULE_LIST, 24
        .set    MEMORY_MAP_LENGTH, 44
        .set    MEMORY_MAP, 48

        .balign 4, 0
        .long   HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)

        .globl  _start
_start:
        mov     $stack_end, %esp                # Multiboot gives none
        cmp     $BOOT_MAGIC, %eax
        mov     $0xff, %al
        jne     done
        mov     COMMAND_LINE(%ebx), %esi
        call    say
        call    newline
        mov     MODULES(%ebx), %ecx
        mov     MODULE_LIST(%ebx), %edi
1:      test    %ecx, %ecx
        jz      3f
        mov     8(%edi), %esi
        call    say
        mov     $'=', %al
        out     %al, $DEBUG_CONSOLE
        mov     (%edi), %esi
2:      cmp     4(%edi), %esi
        jae     2f
        mov     (%esi), %al
        out     %al, $DEBUG_CONSOLE
        inc     %esi
        jmp     2b
2:      call    newline
        add     $16, %edi
        dec     %ecx
        jmp     1b
3:      mov     MEMORY_MAP(%ebx), %esi
        mov     MEMORY_MAP_LENGTH(%ebx), %edi
        add     %esi, %edi
        xor     %eax, %eax
4:      cmp     %edi, %esi
        jae     done
        inc     %eax
        add     (%esi), %esi                    # an entry's size does not count itself
        add     $4, %esi
        jmp     4b

done:   out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

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

        .bss
        .skip   256
stack_end:
