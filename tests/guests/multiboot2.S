# elf32 0x100000
#
# A Multiboot 2 image that may lie anywhere, and wishes to be as high as possible: says what the boot information holds.
#
# Exits, on the first vCPU:
#   port 0xE9 OUT size 1 for each character of: the command line, "\n"; the loader's name, "\n"; for each module its
#   string, "=", its bytes, "\n"; the first 7 of the RSDP, "\n"; then "base" and "\n" if the load base is where it runs
#   port 0xF4 OUT size 1: the number of entries of the memory map plus 16 times that of ELF sections whose contents are
#   in memory, or ff when EAX was not the magic number;
#   then, if it is run on, HLT

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4
        .set    HEADER_MAGIC, 0xe85250d6
        .set    BOOT_MAGIC, 0x36d76289
        .set    STACK, 0x8000                   # conventional memory, of which the top is taken

        .balign 8, 0
header: .long   HEADER_MAGIC, 0, header_end - header, -(HEADER_MAGIC + (header_end - header))
        .word   1, 0                            # information request
        .long   8 + 5 * 4
        .long   1, 3, 6, 9, 21
        .balign 8, 0
        .word   6, 0                            # module alignment
        .long   8
        .balign 8, 0
        .word   5, 1                            # framebuffer, optional
        .long   20, 800, 600, 32
        .balign 8, 0
        .word   10, 0                           # relocatable: anywhere, 2 MiB aligned, preferably high
        .long   24, 0, 0xffffffff, 0x200000, 2
        .balign 8, 0
        .word   0, 0
        .long   8
header_end:

        .globl  _start
_start:
        mov     $STACK, %esp
        cmp     $BOOT_MAGIC, %eax
        mov     $0xff, %al
        jne     done
        call    1f
1:      pop     %ebp
        sub     $1b - header, %ebp              # where the image begins
        xor     %edx, %edx                      # entries and sections
        mov     %ebx, %edi
        add     $8, %edi
next:   mov     (%edi), %eax                    # a tag's type
        test    %eax, %eax
        jz      end
        lea     8(%edi), %esi
        cmp     $1, %eax
        je      line
        cmp     $2, %eax
        je      line
        cmp     $3, %eax
        je      module
        cmp     $6, %eax
        je      map
        cmp     $9, %eax
        je      sections
        cmp     $15, %eax
        je      rsdp
        cmp     $21, %eax
        je      base
skip:   mov     4(%edi), %eax
        lea     7(%edi, %eax), %edi
        and     $~7, %edi
        jmp     next
end:    mov     %edx, %eax
done:   out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

line:   call    say
        call    newline
        jmp     skip

module: add     $8, %esi
        call    say
        mov     $'=', %al
        out     %al, $DEBUG_CONSOLE
        mov     8(%edi), %esi
1:      cmp     12(%edi), %esi
        jae     2f
        mov     (%esi), %al
        out     %al, $DEBUG_CONSOLE
        inc     %esi
        jmp     1b
2:      call    newline
        jmp     skip

map:    mov     4(%edi), %eax                   # the tag's size, of which 16 are no entries
        sub     $16, %eax
1:      inc     %edx
        sub     8(%edi), %eax
        ja      1b
        jmp     skip

sections:
        mov     8(%edi), %ecx
        lea     20(%edi), %esi
1:      test    %ecx, %ecx
        jz      skip
        cmpl    $2, 4(%esi)                     # a symbol table
        je      2f
        cmpl    $3, 4(%esi)                     # strings
        jne     3f
2:      mov     12(%esi), %eax                  # the address, of which the first byte is zero for both
        test    %eax, %eax
        jz      3f
        cmpb    $0, (%eax)
        jne     3f
        add     $16, %edx
3:      add     12(%edi), %esi
        dec     %ecx
        jmp     1b

rsdp:   mov     $7, %ecx
1:      mov     (%esi), %al
        out     %al, $DEBUG_CONSOLE
        inc     %esi
        dec     %ecx
        jnz     1b
        call    newline
        jmp     skip

base:   cmp     (%esi), %ebp
        jne     skip
        mov     $'b', %al
        out     %al, $DEBUG_CONSOLE
        mov     $'a', %al
        out     %al, $DEBUG_CONSOLE
        mov     $'s', %al
        out     %al, $DEBUG_CONSOLE
        mov     $'e', %al
        out     %al, $DEBUG_CONSOLE
        call    newline
        jmp     skip

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
