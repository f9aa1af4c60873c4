// Runs a kernel's threads on this processor, block after block. A thread is a fibre: it runs until it waits at a barrier or
// a warp collective, and the next one goes on in its place. A fibre whose thread has ended takes the next thread, so that
// threads that never wait share one stack and cost a function call. The last lane to arrive at a collective computes it for
// all. When nothing can run and not all have ended, the threads have diverged: that is an error, not a hang.
#include "mock.h"

#include <csetjmp>
#include <cstdarg>
#include <map>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
unsigned char* moli_dynamic_shared;

namespace {

constexpr size_t STACK = 128 << 10, GUARD = 64 << 10, DYNAMIC = 256 << 10;
constexpr unsigned LANES = 32, MAX_THREADS = 1024;

// ---- Fibres

struct Fibre {
    void* stack_pointer = nullptr;
    char* memory = nullptr; // what can't be touched, then the stack
    unsigned thread = 0;
    uint3 index = {};
    bool active = false; // has a thread that hasn't ended
};

#if defined(__x86_64__) && !defined(MOLI_UCONTEXT)
extern "C" void moli_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden moli_switch
    .globl moli_switch
moli_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
void prepare(Fibre& fibre, char* top, void (*body)()) {
    void** stack = reinterpret_cast<void**>(top) - 8; // six registers, where to return to, and body's own caller: none
    memset(stack, 0, 8 * sizeof *stack);
    stack[6] = reinterpret_cast<void*>(body);
    fibre.stack_pointer = stack;
}
void switch_fibres(Fibre& from, Fibre& to) { moli_switch(&from.stack_pointer, to.stack_pointer); }
#elif defined(__aarch64__) && !defined(MOLI_UCONTEXT)
extern "C" void moli_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden moli_switch
    .globl moli_switch
moli_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
void prepare(Fibre& fibre, char* top, void (*body)()) {
    void** stack = reinterpret_cast<void**>(top) - 20;
    memset(stack, 0, 20 * sizeof *stack);
    stack[11] = reinterpret_cast<void*>(body); // x30
    fibre.stack_pointer = stack;
}
void switch_fibres(Fibre& from, Fibre& to) { moli_switch(&from.stack_pointer, to.stack_pointer); }
#else // slow, since each switch is a system call
} // namespace
#include <ucontext.h>
namespace {
void prepare(Fibre& fibre, char* top, void (*body)()) {
    if (!fibre.stack_pointer) fibre.stack_pointer = new ucontext_t;
    ucontext_t* context = static_cast<ucontext_t*>(fibre.stack_pointer);
    getcontext(context);
    context->uc_stack.ss_sp = fibre.memory + GUARD;
    context->uc_stack.ss_size = top - (fibre.memory + GUARD);
    context->uc_link = nullptr;
    makecontext(context, body, 0);
}
void switch_fibres(Fibre& from, Fibre& to) {
    if (!from.stack_pointer) from.stack_pointer = new ucontext_t;
    swapcontext(static_cast<ucontext_t*>(from.stack_pointer), static_cast<ucontext_t*>(to.stack_pointer));
}
#endif

// ---- The launch and the block that run now

// Lanes that have arrived at one collective, of those of its mask. Several may be waited for in a warp.
struct Gathering {
    unsigned kind, mask, arrived;
};
struct Warp {
    Gathering gatherings[LANES];
    unsigned open; // bits: which of them lanes wait at
    Fibre* fibres[LANES];
    unsigned in[10][LANES], out[4][LANES];
};

const MoliKernel* kernel; // null while none runs
void** arguments;
bool reverse_order;
pthread_t runner;
sigjmp_buf escape;

Fibre home; // the caller's own stack
Fibre* current = &home;
std::vector<Fibre*> fibres, idle;
Fibre* ready[2 * MAX_THREADS]; // a ring
unsigned ready_first, ready_last;
Warp warps[MAX_THREADS / LANES];
unsigned threads, begun, ended;
struct {
    unsigned kind, arrived;
    int sum, result;
    Fibre* fibres[MAX_THREADS];
} barrier;

void report(const char* text) {
    fprintf(stderr, "mock CUDA: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s\n", kernel->name, blockIdx.x,
            blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, text);
}

[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(CUresult code, const char* format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    report(text);
    siglongjmp(escape, code);
}

void begin_thread() {
    unsigned thread = begun++;
    if (reverse_order) thread = threads - 1 - thread;
    current->thread = thread;
    current->active = true;
    threadIdx = current->index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
    warps[thread / LANES].fibres[thread % LANES] = current;
}

void next();

// What a fibre does: threads, as long as there are any.
void work() {
    for (;;) {
        while (begun < threads) {
            begin_thread();
            kernel->call(arguments);
            ended++;
        }
        current->active = false;
        idle.push_back(current);
        next();
    }
}

void reset(Fibre& fibre, size_t number) {
    // Tops at different offsets in a page: else those of all threads fight for a few sets of the first-level cache.
    char* top = fibre.memory + GUARD + STACK - number % 64 * 320;
    prepare(fibre, top, work);
    fibre.active = false;
}

Fibre* idle_fibre() {
    if (idle.empty()) {
        Fibre* fibre = new Fibre;
        void* memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail(CUDA_ERROR_OUT_OF_MEMORY, "no memory for its stack");
        mprotect(memory, GUARD, PROT_NONE);
        fibre->memory = static_cast<char*>(memory);
        reset(*fibre, fibres.size());
        fibres.push_back(fibre);
        return fibre;
    }
    Fibre* fibre = idle.back();
    idle.pop_back();
    return fibre;
}

void make_ready(Fibre* fibre) { ready[ready_last++ % (2 * MAX_THREADS)] = fibre; }

[[noreturn]] void report_divergence() {
    unsigned in_warps = 0, first_mask = 0, first_arrived = 0, first_warp = 0;
    for (unsigned w = 0; w < (threads + LANES - 1) / LANES; w++) {
        for (const Gathering& gathering : warps[w].gatherings) {
            if (gathering.arrived && !in_warps) {
                first_warp = w, first_mask = gathering.mask, first_arrived = gathering.arrived;
            }
            in_warps += __builtin_popcount(gathering.arrived);
        }
    }
    if (!in_warps) {
        fail(CUDA_ERROR_LAUNCH_FAILED, "%u of %u threads wait at a barrier of the block, the others have ended",
             barrier.arrived, threads);
    }
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "of %u threads %u have ended, %u wait at a barrier of the block and %u at warp collectives: in warp %u those of "
         "%08x, for those of %08x",
         threads, ended, barrier.arrived, in_warps, first_warp, first_arrived, first_mask);
}

// Leaves this fibre for one that can go on.
void next() {
    Fibre* from = current;
    if (ready_first != ready_last) current = ready[ready_first++ % (2 * MAX_THREADS)];
    else if (begun < threads) current = idle_fibre();
    else if (ended == threads) current = &home;
    else report_divergence();
    if (from == current) return;
    threadIdx = current->index;
    switch_fibres(*from, *current);
}

// Brings the words of one lane to those that its mask names; the last to arrive computes what all get. A lane's results are
// LANES apart.
template <class Combine>
const unsigned* collective(unsigned kind, unsigned mask, const unsigned* words, unsigned count, Combine combine) {
    Warp& warp = warps[current->thread / LANES];
    const unsigned lane = current->thread % LANES;
    if (!(mask >> lane & 1)) fail(CUDA_ERROR_LAUNCH_FAILED, "a warp collective whose mask %08x leaves out its lane", mask);
    unsigned number = __builtin_ctz(~warp.open); // the first that is free, unless one has this mask
    for (unsigned rest = warp.open; rest; rest &= rest - 1) {
        const unsigned other = __builtin_ctz(rest);
        if (warp.gatherings[other].mask == mask) number = other;
    }
    Gathering& gathering = warp.gatherings[number];
    if (!(warp.open >> number & 1)) {
        warp.open |= 1u << number;
        gathering = {kind, mask, 0};
    } else if (gathering.kind != kind) {
        fail(CUDA_ERROR_LAUNCH_FAILED, "it is at another warp collective than those that wait in its warp");
    }
    for (unsigned i = 0; i < count; i++) warp.in[i][lane] = words[i];
    gathering.arrived |= 1u << lane;
    if (gathering.arrived != mask) {
        next();
    } else {
        gathering.arrived = 0;
        warp.open &= ~(1u << number);
        combine(warp);
        for (unsigned i = 0; i < LANES; i++) {
            const unsigned other = reverse_order ? LANES - 1 - i : i;
            if (other != lane && mask >> other & 1) make_ready(warp.fibres[other]);
        }
    }
    return &warp.out[0][lane];
}

// ---- Faults

struct sigaction previous_handlers[NSIG];
char* fault_address;
constexpr int FAULT = -1; // no error of the driver

CUresult report_fault() {
    char text[256];
    CUresult code = CUDA_ERROR_LAUNCH_FAILED;
    if (fault_address >= current->memory && fault_address < current->memory + GUARD) {
        snprintf(text, sizeof text, "its stack of %zu KiB is full", STACK >> 10);
    } else {
        code = CUDA_ERROR_ILLEGAL_ADDRESS;
        snprintf(text, sizeof text, "touched %p, %s", fault_address, describe_address(fault_address).c_str());
    }
    report(text);
    return code;
}

void on_fault(int signal, siginfo_t* info, void* context) {
    if (kernel && pthread_equal(pthread_self(), runner)) {
        fault_address = static_cast<char*>(info->si_addr);
        siglongjmp(escape, FAULT); // what is to be said is said there: this stack may be a small one
    }
    // Not ours: as it would have been without us.
    const struct sigaction& previous = previous_handlers[signal];
    if (previous.sa_flags & SA_SIGINFO) previous.sa_sigaction(signal, info, context);
    else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) previous.sa_handler(signal);
    else sigaction(signal, &previous, nullptr); // and the instruction faults again
}

std::map<std::string, MoliKernel>& registry() {
    static std::map<std::string, MoliKernel> kernels;
    return kernels;
}

} // namespace

// Kernels are compiled with -fsanitize= for what this processor lets pass or does in a way of its own: misaligned accesses,
// indices out of a (shared) array, which would reach its neighbour, shifts by 32 and more, divisions by zero.
struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
#define NOTICED(name, code, text)                                                                                 \
    extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##name##_abort(SourceLocation* at) {     \
        fail(code, "%s:%u: " text, at->file, at->line);                                                           \
    }
NOTICED(type_mismatch_v1, CUDA_ERROR_MISALIGNED_ADDRESS, "a misaligned address")
NOTICED(out_of_bounds, CUDA_ERROR_ILLEGAL_ADDRESS, "an index out of bounds")
NOTICED(shift_out_of_bounds, CUDA_ERROR_LAUNCH_FAILED, "a shift by as many bits as there are, or more")
NOTICED(divrem_overflow, CUDA_ERROR_LAUNCH_FAILED, "a division by zero")

// A stack that is full leaves no room for the handler: a thread needs another one for it, unless it has (Rust's do).
static void ensure_signal_stack() {
    static thread_local char memory[32 << 10];
    stack_t stack = {};
    sigaltstack(nullptr, &stack);
    if (!(stack.ss_flags & SS_DISABLE)) return;
    stack = {};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, nullptr);
}

void install_fault_handlers() {
    static bool installed;
    if (installed) return;
    installed = true;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : {SIGSEGV, SIGBUS}) sigaction(signal, &action, &previous_handlers[signal]);
}

void moli_register(const MoliKernel& kernel) {
    if (!registry().insert({kernel.name, kernel}).second) {
        fprintf(stderr, "mock CUDA: two kernels have the name %s\n", kernel.name);
        abort();
    }
}

const MoliKernel* find_kernel(const std::string& name) {
    const auto found = registry().find(name);
    return found == registry().end() ? nullptr : &found->second;
}

CUresult run_kernel(const MoliKernel& what, void** with, dim3 grid, dim3 block, unsigned shared, bool reverse) {
    static char* dynamic = [] {
        char* memory = static_cast<char*>(
            mmap(nullptr, DYNAMIC + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(memory + DYNAMIC, GUARD, PROT_NONE);
        return memory;
    }();
    ensure_signal_stack();
    arguments = with, reverse_order = reverse, gridDim = grid, blockDim = block;
    threads = block.x * block.y * block.z;
    shared = (shared + 15) / 16 * 16;
    moli_dynamic_shared = reinterpret_cast<unsigned char*>(dynamic) + DYNAMIC - shared; // what follows it can't be touched
    runner = pthread_self();
    current = &home;
    kernel = &what;
    int code = sigsetjmp(escape, 1);
    if (code == CUDA_SUCCESS) {
        const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
        for (uint64_t i = 0; i < blocks; i++) {
            const uint64_t b = reverse ? blocks - 1 - i : i;
            blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
            // What nobody has written yet reads as NaN.
            if (what.shared) memset(what.shared, 0xFF, what.shared_end - what.shared);
            memset(moli_dynamic_shared, 0xFF, shared);
            begun = ended = 0;
            next();
        }
    } else { // threads were left where they stood
        if (code == FAULT) code = report_fault();
        ready_first = ready_last = 0;
        barrier.arrived = 0;
        memset(warps, 0, sizeof warps);
        idle.clear();
        for (size_t i = 0; i < fibres.size(); i++) {
            reset(*fibres[i], i);
            idle.push_back(fibres[i]);
        }
    }
    kernel = nullptr;
    current = &home;
    return static_cast<CUresult>(code);
}

// ---- Barriers and collectives

int moli_block_barrier(MoliBlockReduce kind, int value) {
    if (!barrier.arrived) {
        barrier.kind = kind, barrier.sum = 0;
    } else if (barrier.kind != kind) {
        fail(CUDA_ERROR_LAUNCH_FAILED, "it is at another barrier of the block than those that wait");
    }
    barrier.sum += value;
    barrier.fibres[barrier.arrived++] = current;
    if (barrier.arrived != threads) {
        next();
    } else {
        barrier.result = barrier.sum;
        for (unsigned i = 0; i + 1 < threads; i++) make_ready(barrier.fibres[i]);
        barrier.arrived = 0;
    }
    return barrier.result; // no thread can end the next barrier before all have left this one
}

unsigned moli_shuffle(MoliShuffle kind, unsigned mask, unsigned value, int argument, int width) {
    const unsigned words[] = {value, (unsigned)argument, (unsigned)width};
    return *collective(kind, mask, words, 3, [=](Warp& warp) {
        int from[LANES];
        for (int lane = 0; lane < (int)LANES; lane++) {
            const int by = warp.in[1][lane], size = warp.in[2][lane], first = lane & -size, last = first + size - 1;
            const int other = kind == MOLI_INDEX  ? first | (by & (size - 1))
                              : kind == MOLI_UP   ? lane - by
                              : kind == MOLI_DOWN ? lane + by
                                                  : lane ^ by;
            // Up to the first lane of a segment, down and across to its last: beyond, a lane keeps its own.
            const bool inside = kind == MOLI_UP ? other >= first : (unsigned)other <= (unsigned)last;
            from[lane] = inside ? other : lane;
        }
        for (unsigned lane = 0; lane < LANES; lane++) {
            if (!(mask >> lane & 1)) continue;
            warp.out[0][lane] = mask >> from[lane] & 1 ? warp.in[0][from[lane]] : ~0u; // undefined: let it show
        }
    });
}

unsigned moli_reduce(MoliReduce kind, unsigned mask, unsigned value) {
    return *collective(4 + kind, mask, &value, 1, [=](Warp& warp) {
        unsigned result = 0;
        for (unsigned lane = 0, first = 1; lane < LANES; lane++) {
            if (!(mask >> lane & 1)) continue;
            const unsigned x = warp.in[0][lane];
            if (kind == MOLI_BALLOT) result |= (unsigned)(x != 0) << lane;
            else if (first) result = x;
            else if (kind == MOLI_ADD) result += x;
            else if (kind == MOLI_MIN) result = min((int)result, (int)x);
            else if (kind == MOLI_MAX) result = max((int)result, (int)x);
            else if (kind == MOLI_UMIN) result = min(result, x);
            else if (kind == MOLI_UMAX) result = max(result, x);
            else if (kind == MOLI_AND) result &= x;
            else if (kind == MOLI_OR) result |= x;
            else result ^= x;
            first = 0;
        }
        for (unsigned lane = 0; lane < LANES; lane++) {
            if (mask >> lane & 1) warp.out[0][lane] = result;
        }
    });
}

// Lane 4 g + t holds, in registers of 32 bits with `per` elements: of A rows g and g + 8 (which alternate) and the columns
// from per t on, then those from 4 per + per t on; of B the same rows of its column g; of C and D rows g and g + 8 of
// columns 2 t and 2 t + 1. (PTX ISA, "Matrix Fragments for mma.m16n8k16" and its neighbours.)
template <class Element, class Number, class Convert> static void multiply(Warp& warp, int k, Convert convert) {
    constexpr int per = 4 / sizeof(Element);
    const int a_words = k / per / 2, b_words = k / per / 4;
    Number a[16][32], b[32][8];
    for (unsigned lane = 0; lane < LANES; lane++) {
        const int g = lane / 4, t = lane % 4;
        Element elements[per];
        for (int word = 0; word < a_words; word++) {
            memcpy(elements, &warp.in[word][lane], 4);
            for (int i = 0; i < per; i++) a[g + word % 2 * 8][word / 2 * 4 * per + per * t + i] = convert(elements[i]);
        }
        for (int word = 0; word < b_words; word++) {
            memcpy(elements, &warp.in[a_words + word][lane], 4);
            for (int i = 0; i < per; i++) b[word * 4 * per + per * t + i][g] = convert(elements[i]);
        }
    }
    Number sums[16][8];
    const auto place = [](unsigned lane, int i) { return std::make_pair(lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2); };
    for (unsigned lane = 0; lane < LANES; lane++) {
        for (int i = 0; i < 4; i++) {
            const auto [row, column] = place(lane, i);
            memcpy(&sums[row][column], &warp.in[a_words + b_words + i][lane], 4);
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int i = 0; i < k; i++) {
            for (int column = 0; column < 8; column++) sums[row][column] += a[row][i] * b[i][column];
        }
    }
    for (unsigned lane = 0; lane < LANES; lane++) {
        for (int i = 0; i < 4; i++) {
            const auto [row, column] = place(lane, i);
            memcpy(&warp.out[i][lane], &sums[row][column], 4);
        }
    }
}

void moli_mma(MoliMma type, int k, unsigned d[4], const unsigned* a, const unsigned* b, const unsigned* c) {
    const int per = type == MOLI_S8 ? 4 : 2, a_words = k / per / 2, b_words = k / per / 4;
    unsigned words[10];
    memcpy(words, a, 4 * a_words);
    memcpy(words + a_words, b, 4 * b_words);
    memcpy(words + a_words + b_words, c, 16);
    const unsigned* result = collective(16 + type * 64 + k, ~0u, words, a_words + b_words + 4, [=](Warp& warp) {
        if (type == MOLI_S8) multiply<int8_t, int>(warp, k, [](int8_t x) { return x; });
        else if (type == MOLI_F16) multiply<uint16_t, float>(warp, k, moli_half_to_float);
        else multiply<uint16_t, float>(warp, k, moli_bf16_to_float);
    });
    for (int i = 0; i < 4; i++) d[i] = result[i * LANES];
}
