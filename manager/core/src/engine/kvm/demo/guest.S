# The demo guest: a whole tiny operating system of one vCPU.
#
# It starts at the reset vector in real mode, builds its own page tables, enters long mode, and
# then answers requests one at a time. A request reaches it through its data page: it says "ready"
# with an OUT to the doorbell port, the host fills in the request and lets it run on, it fills in
# the response and rings again. It uses no stack, no interrupts and no SSE, so an idle clone has
# one private page: the data page. Offsets and numbers come from `layout.rs`.
#
# All stores outside the data page are plain `mov`s: a store to memory that has no slot yet leaves
# KVM as MMIO, and the host then adds the slot (see `machine.rs`).

    .pushsection .rodata.brood_demo_guest, "a"
    .globl brood_demo_guest_start, brood_demo_guest_end
    .globl brood_demo_reset_start, brood_demo_reset_end

# ---- The last 16 bytes below 4 GiB: where a processor starts after reset -------------------------
    .code16
brood_demo_reset_start:
    cli
    .byte 0xea                          # ljmp 0:CODE, encoded here so that the target needs no relocation
    .word {CODE}
    .word 0
    .balign 16, 0xf4
brood_demo_reset_end:

# ---- Real mode ----------------------------------------------------------------------------------
    .balign 16
brood_demo_guest_start:
    jmp real_mode
    .balign 8
gdt:                                    # at CODE + 8
    .quad 0
    .quad 0x00209b0000000000            # 8: 64-bit code, accessed
    .quad 0x0000930000000000            # 16: data, accessed
gdt_pointer:                            # at CODE + 32
    .word 23
    .long {CODE} + 8
real_mode:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax

    # Page tables, identity-mapped with 2 MiB pages up to 3 GiB. Accessed and dirty bits are set
    # from the start, so that no walk ever has to write to them. Entries are written as two 32-bit
    # halves; the upper half of a fresh page is zero already.
    mov dword ptr [{PML4}], {PDPT} + 0x63
    mov dword ptr [{PDPT}], {PD} + 0x63
    mov dword ptr [{PDPT} + 8], {PD} + 0x1063
    mov dword ptr [{PDPT} + 16], {PD} + 0x2063
    mov di, {PD}
    mov eax, 0xe3                       # present, writable, accessed, dirty, 2 MiB
4:  mov dword ptr [di], eax
    add di, 8
    add eax, 0x200000
    cmp di, {PD} + 0x3000
    jne 4b
    lgdt [{CODE}+32]
    lgdt [{CODE} + 32]
    mov eax, {PML4}
    mov cr3, eax
    mov eax, 0x20                       # CR4.PAE
    mov cr4, eax
    mov ecx, 0xc0000080                 # EFER
    mov eax, 0x100                      # LME
    xor edx, edx
    wrmsr
    mov eax, 0x80000001                 # CR0.PG | CR0.PE

    mov cr0, eax
    .byte 0x66, 0xea                    # ljmp 8:long_mode, 32-bit offset
    .long {CODE} + long_mode - brood_demo_guest_start
    .word 8

# ---- Long mode: boot ----------------------------------------------------------------------------
# rbx holds the data page from here on, always.
    .code64
long_mode:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    xor esp, esp
    mov ebx, {DATA}
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rbx + {STATE_BOOT_TSC}], rax
    # The boot nonce lives in RAM only: it tells a restored guest from a rebooted one. SplitMix64 of
    # the time and the host's entropy.
    mov rsi, [rbx + {ID_ENTROPY}]
    xor rsi, rax
    mov rdi, 0x9e3779b97f4a7c15
    add rsi, rdi
    mov rax, rsi
    shr rax, 30
    xor rsi, rax
    mov rax, 0xbf58476d1ce4e5b9
    imul rsi, rax
    mov rax, rsi
    shr rax, 27
    xor rsi, rax
    mov rax, 0x94d049bb133111eb
    imul rsi, rax
    mov rax, rsi
    shr rax, 31
    xor rsi, rax
    mov [rbx + {STATE_NONCE}], rsi

# ---- The request loop ---------------------------------------------------------------------------
ring:
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rbx + {STATE_LAST_TSC}], rax
    mov edx, {DOORBELL}
    mov eax, 1
    out dx, eax

    # A new generation id means that this is a clone: adopt the identity and the entropy that the
    # host laid down, before anything is answered.
    mov rax, [rbx + {ID_GENERATION}]
    mov rcx, [rbx + {ID_GENERATION} + 8]
    cmp rax, [rbx + {STATE_GENERATION}]
    jne adopt
    cmp rcx, [rbx + {STATE_GENERATION} + 8]
    je adopted
adopt:
    mov [rbx + {STATE_GENERATION}], rax
    mov [rbx + {STATE_GENERATION} + 8], rcx
    # The host has laid down what time it is now. What the counter says now is for the guest itself
    # to see: whether it went on since the checkpoint or was set back depends on the hypervisor.
    # The time in between was not spent running.
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rbx + {STATE_TSC_BASE}], rax
    sub rax, [rbx + {STATE_LAST_TSC}]
    add [rbx + {STATE_BOOT_TSC}], rax
    # Loops are written out here: this is on the way to a clone's first answer, and where a
    # software KVM runs it, each instruction counts.
    .irp word, 0, 8, 16, 24, 32, 40     # name, MAC address and seed lie together
    mov rax, [rbx + {ID_NAME} + \word]
    mov [rbx + {STATE_NAME} + \word], rax
    .endr
    # The generator's state becomes a mix of what it was and the fresh entropy, which is used once.
    mov rdx, 0xd1342543de82ef95
    xor ecx, ecx
    .irp word, 0, 8, 16, 24
    mov rax, [rbx + {STATE_RNG} + \word]
    imul rax, rdx
    xor rax, [rbx + {ID_ENTROPY} + \word]
    mov [rbx + {STATE_RNG} + \word], rax
    mov [rbx + {ID_ENTROPY} + \word], rcx
    .endr
adopted:
    inc qword ptr [rbx + {STATE_COUNTER}]
    mov rax, [rbx + {REQUEST_SEQ}]
    mov [rbx + {RESPONSE_SEQ}], rax
    mov qword ptr [rbx + {RESPONSE_STATUS}], {STATUS_OK}
    # Every response carries these two.
    mov rax, [rbx + {STATE_NONCE}]
    mov [rbx + {RESPONSE_NONCE}], rax
    mov rax, [rbx + {STATE_COUNTER}]
    mov [rbx + {RESPONSE_COUNTER}], rax

    mov rax, [rbx + {REQUEST_OP}]
    mov r8, [rbx + {REQUEST_ARGS}]
    mov r9, [rbx + {REQUEST_ARGS} + 8]
    mov r10, [rbx + {REQUEST_ARGS} + 16]
    mov r15, [rbx + {ID_MEMORY_SIZE}]
    cmp eax, {OP_PING}
    je ping
    cmp eax, {OP_SUM}
    je sum
    cmp eax, {OP_DIRTY}
    je dirty
    cmp eax, {OP_PEEK}
    je peek
    cmp eax, {OP_POKE}
    je poke
    cmp eax, {OP_IDENTITY}
    je identity
    cmp eax, {OP_RANDOM}
    je random
    cmp eax, {OP_TIME}
    je time
    cmp eax, {OP_SPIN}
    je spin
    cmp eax, {OP_CRASH}
    je crash
    mov qword ptr [rbx + {RESPONSE_STATUS}], {STATUS_UNKNOWN}
    jmp ring
out_of_range:
    mov qword ptr [rbx + {RESPONSE_STATUS}], {STATUS_RANGE}
    jmp ring

# ping(bytes): copies as much of the payload back, in whole words.
ping:
    mov [rbx + {RESPONSE_VALUES}], r8
    xor ecx, ecx
4:  cmp ecx, r8d
    jae ring
    mov rax, [rbx + rcx + {REQUEST_PAYLOAD}]
    mov [rbx + rcx + {RESPONSE_PAYLOAD}], rax
    add ecx, 8
    jmp 4b

# sum(address, words, stride): h = rol(h, 5) + word, over `words` 64-bit words, `stride` bytes apart.
# The host has checked the range against overflow; the guest checks it against its memory.
sum:
    xor eax, eax
    test r9, r9
    jz 5f
    lea rcx, [r9 - 1]
    mov rdx, rcx
    imul rdx, r10
    jo out_of_range
    add rdx, r8
    jc out_of_range
    add rdx, 8
    jc out_of_range
    cmp rdx, r15
    ja out_of_range
4:  mov rdx, [r8]
    rol rax, 5
    add rax, rdx
    add r8, r10
    dec r9
    jnz 4b
5:  mov [rbx + {RESPONSE_VALUES}], rax
    jmp ring

# dirty(pages): writes one word in each of the next `pages` pages of the heap, going round at its end.
dirty:
    mov rcx, r15
    sub rcx, {HEAP}
    shr rcx, 12                         # pages in the heap
    cmp r8, rcx
    ja out_of_range
    mov rdx, [rbx + {STATE_DIRTY_NEXT}]
    mov [rbx + {RESPONSE_VALUES} + 8], rdx
    mov [rbx + {RESPONSE_VALUES}], r8
    mov r11, [rbx + {STATE_COUNTER}]
    test r8, r8
    jz 6f
4:  mov rax, rdx
    shl rax, 12
    mov [rax + {HEAP}], r11
    inc rdx
    cmp rdx, rcx
    jne 5f
    xor edx, edx
5:  dec r8
    jnz 4b
6:  mov [rbx + {STATE_DIRTY_NEXT}], rdx
    jmp ring

peek:
    lea rax, [r15 - 8]
    cmp r8, rax
    ja out_of_range
    mov rax, [r8]
    mov [rbx + {RESPONSE_VALUES}], rax
    jmp ring

# poke(address, value): not below the heap's floor, where the guest itself lives.
poke:
    cmp r8, {USER}
    jb out_of_range
    lea rax, [r15 - 8]
    cmp r8, rax
    ja out_of_range
    mov [r8], r9
    jmp ring

identity:
    mov rax, [rbx + {STATE_GENERATION}]
    mov [rbx + {RESPONSE_VALUES}], rax
    mov rax, [rbx + {STATE_GENERATION} + 8]
    mov [rbx + {RESPONSE_VALUES} + 8], rax
    xor ecx, ecx
4:  mov rax, [rbx + rcx + {STATE_NAME}]
    mov [rbx + rcx + {RESPONSE_PAYLOAD}], rax
    add ecx, 8
    cmp ecx, {ID_NAMED_SIZE}
    jne 4b
    jmp ring

# random(words): xoshiro256** (Blackman and Vigna), its state in RAM.
random:
    cmp r8, {PAYLOAD_SIZE} / 8
    ja out_of_range
    xor ecx, ecx
    mov r11, [rbx + {STATE_RNG}]
    mov r12, [rbx + {STATE_RNG} + 8]
    mov r13, [rbx + {STATE_RNG} + 16]
    mov r14, [rbx + {STATE_RNG} + 24]
4:  cmp rcx, r8
    je 5f
    lea rax, [r12 + r12 * 4]
    rol rax, 7
    lea rax, [rax + rax * 8]
    mov [rbx + rcx * 8 + {RESPONSE_PAYLOAD}], rax
    mov rdx, r12
    shl rdx, 17
    xor r13, r11
    xor r14, r12
    xor r12, r13
    xor r11, r14
    xor r13, rdx
    rol r14, 45
    inc rcx
    jmp 4b
5:  mov [rbx + {STATE_RNG}], r11
    mov [rbx + {STATE_RNG} + 8], r12
    mov [rbx + {STATE_RNG} + 16], r13
    mov [rbx + {STATE_RNG} + 24], r14
    mov [rbx + {RESPONSE_VALUES}], rcx
    jmp ring

# time: wall clock from the host's base, time since boot from the counter alone.
time:
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r11, rax
    sub rax, [rbx + {STATE_TSC_BASE}]
    mul qword ptr [rbx + {ID_TSC_TO_NS}]
    shrd rax, rdx, 32
    add rax, [rbx + {ID_WALL_NS}]
    mov [rbx + {RESPONSE_VALUES}], rax
    mov rax, r11
    sub rax, [rbx + {STATE_BOOT_TSC}]
    mul qword ptr [rbx + {ID_TSC_TO_NS}]
    shrd rax, rdx, 32
    mov [rbx + {RESPONSE_VALUES} + 8], rax
    jmp ring

# spin(iterations): keeps the vCPU busy.
spin:
    test r8, r8
    jz ring
4:  dec r8
    jnz 4b
    jmp ring

# crash: an undefined instruction with no handler is a triple fault.
crash:
    ud2
    jmp crash
brood_demo_guest_end:
    .popsection
