// What nvcc gives a kernel, for g++: qualifiers, built-in variables, intrinsics, vectors and warp collectives.
// build.sh puts it in front of each file of kernels. Only what moves between threads lives elsewhere, in exec.cpp.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>
#include <utility>

#define MOLI_MOCK 1
#define MOLI_TEXT2(x) #x
#define MOLI_TEXT(x) MOLI_TEXT2(x)
#define MOLI_JOIN2(a, b) a##b
#define MOLI_JOIN(a, b) MOLI_JOIN2(a, b)

#define __global__ __attribute__((__used__)) // build.sh finds and registers kernels by this very attribute
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#ifdef MOLI_MODULE // not for the mock itself, whose libraries have another use for it
#define __noinline__ __attribute__((noinline))
#endif
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One section for each module, which exec.cpp fills with 0xFF before each block.
#define __shared__ static __attribute__((section("shared_" MOLI_TEXT(MOLI_MODULE))))
#define DYNAMIC_SHARED(name) unsigned char* const name = moli_dynamic_shared

// ---- Vectors

#define MOLI_VECTORS(T, name)                                                                       \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                            \
    struct name##3 { T x, y, z; };                                                                  \
    struct __align__(4 * sizeof(T)) name##4 { T x, y, z, w; };                                      \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                               \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                       \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
MOLI_VECTORS(signed char, char)
MOLI_VECTORS(unsigned char, uchar)
MOLI_VECTORS(short, short)
MOLI_VECTORS(unsigned short, ushort)
MOLI_VECTORS(int, int)
MOLI_VECTORS(unsigned, uint)
MOLI_VECTORS(float, float)
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// ---- Where a thread is, and how a kernel is known to the driver (exec.cpp)

#pragma GCC visibility push(hidden)
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;
extern unsigned char* moli_dynamic_shared;

struct MoliParameter {
    size_t size;
    bool pointer;
};
struct MoliKernel {
    const char* name;
    void (*call)(void** arguments);
    const MoliParameter* parameters;
    size_t count;
    char *shared, *shared_end; // the static shared memory of the kernel's file
};
void moli_register(const MoliKernel& kernel);

// Warp collectives and barriers; unsigned stands for any 32 bits.
enum MoliShuffle { MOLI_INDEX, MOLI_UP, MOLI_DOWN, MOLI_XOR };
enum MoliReduce { MOLI_BALLOT, MOLI_ADD, MOLI_MIN, MOLI_MAX, MOLI_UMIN, MOLI_UMAX, MOLI_AND, MOLI_OR, MOLI_BITXOR };
enum MoliBlockReduce { MOLI_PLAIN, MOLI_COUNT };
unsigned moli_shuffle(MoliShuffle kind, unsigned mask, unsigned value, int argument, int width);
unsigned moli_reduce(MoliReduce kind, unsigned mask, unsigned value);
int moli_block_barrier(MoliBlockReduce kind, int value);
// mma.sync with `k` columns of A: `words` of a, b and c of one lane in, four of d out.
enum MoliMma { MOLI_S8, MOLI_F16, MOLI_BF16 };
void moli_mma(MoliMma type, int k, unsigned d[4], const unsigned* a, const unsigned* b, const unsigned* c);
#pragma GCC visibility pop

template <auto kernel> struct MoliRegistration;
template <class... A, void (*kernel)(A...)> struct MoliRegistration<kernel> {
    template <size_t... I> static void call(void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    }
    static void run(void** arguments) { call(arguments, std::index_sequence_for<A...>()); }
    MoliRegistration(const char* name, char* shared, char* shared_end) {
        static const MoliParameter parameters[] = {{sizeof(A), std::is_pointer<A>::value}..., {0, false}};
        moli_register({name, run, parameters, sizeof...(A), shared, shared_end});
    }
};
// The linker names the ends of a section, if there is one.
#define MOLI_SHARED_START MOLI_JOIN(__start_shared_, MOLI_MODULE)
#define MOLI_SHARED_STOP MOLI_JOIN(__stop_shared_, MOLI_MODULE)
extern char MOLI_SHARED_START[] __attribute__((weak, visibility("hidden")));
extern char MOLI_SHARED_STOP[] __attribute__((weak, visibility("hidden")));

// ---- Bits

template <class To, class From> static inline To moli_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return moli_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return moli_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return moli_bits<float>(x); }
static inline float __int_as_float(int x) { return moli_bits<float>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned select = selector >> 4 * i & 15, byte = bytes >> 8 * (select & 7) & 255;
        result |= (select & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i; // bit 3: only the sign, eight times
    }
    return result;
}

// ---- Integers

template <class A, class B> static inline int moli_dp4a(unsigned a, unsigned b, int sum) {
    unsigned result = sum; // wraps
    for (int i = 0; i < 4; i++) result += (unsigned)((A)(a >> 8 * i) * (B)(b >> 8 * i));
    return result;
}
static inline int __dp4a(int a, int b, int c) { return moli_dp4a<int8_t, int8_t>(a, b, c); }
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return moli_dp4a<uint8_t, uint8_t>(a, b, c); }
static inline int moli_dp4a_us(unsigned a, int b, int c) { return moli_dp4a<uint8_t, int8_t>(a, b, c); }
static inline int moli_dp4a_su(int a, unsigned b, int c) { return moli_dp4a<int8_t, uint8_t>(a, b, c); }

template <class T> static inline T moli_min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T moli_max(T a, T b) { return a < b ? b : a; }
#define MOLI_MIN_MAX(T)                                              \
    static inline T min(T a, T b) { return moli_min<T>(a, b); }      \
    static inline T max(T a, T b) { return moli_max<T>(a, b); }
MOLI_MIN_MAX(int)
MOLI_MIN_MAX(unsigned)
MOLI_MIN_MAX(long)
MOLI_MIN_MAX(unsigned long)
MOLI_MIN_MAX(long long)
MOLI_MIN_MAX(unsigned long long)
static inline unsigned min(int a, unsigned b) { return moli_min<unsigned>(a, b); }
static inline unsigned min(unsigned a, int b) { return moli_min<unsigned>(a, b); }
static inline unsigned max(int a, unsigned b) { return moli_max<unsigned>(a, b); }
static inline unsigned max(unsigned a, int b) { return moli_max<unsigned>(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

// ---- Floats. No sum is fused with a product (-ffp-contract=off) unless the source says so; the device's compiler
// fuses unless it is told --fmad=false. Fast functions are the exact ones here, and their last bits differ.

static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(x) expf(x) // glibc has these names for itself
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
// The device saturates and turns NaN into 0; x86 would give INT_MIN.
static inline int moli_float2int(float x) {
    return x != x ? 0 : x >= 2147483648.0f ? INT32_MAX : x <= -2147483648.0f ? INT32_MIN : (int)x;
}
static inline int __float2int_rn(float x) { return moli_float2int(rintf(x)); }
static inline int __float2int_rz(float x) { return moli_float2int(truncf(x)); }
static inline int __float2int_rd(float x) { return moli_float2int(floorf(x)); }
static inline int __float2int_ru(float x) { return moli_float2int(ceilf(x)); }
static inline float __int2float_rn(int x) { return x; }
static inline float __uint2float_rn(unsigned x) { return x; }

// f16 and bf16 to and from f32, to the nearest, ties to even; a NaN becomes the device's, 0x7fff.
static inline float moli_half_to_float(unsigned short half) {
    const unsigned rest = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    const unsigned bits = rest >= 0x0f800000u ? rest | 0x7f800000u : __float_as_uint(__uint_as_float(rest) * 0x1p112f);
    return __uint_as_float(bits | sign);
}
static inline unsigned short moli_float_to_half(float x) {
    const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return 0x7fff;
    if (rest >= 0x477ff000u) return sign | 0x7c00u; // 65520 and more
    if (rest < 0x38800000u) { // subnormal: the last bit of a sum with 0.5 is worth 2^-24, as theirs is
        return sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u);
    }
    return sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13);
}
static inline float moli_bf16_to_float(unsigned short x) { return __uint_as_float((unsigned)x << 16); }
static inline unsigned short moli_float_to_bf16(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// ---- Memory. Blocks run one after the other, and a thread is only left at a barrier, so plain updates are atomic.

template <class T> static inline T __ldg(const T* at) { return *at; }
template <class T, class Update> static inline T moli_atomic(T* at, Update update) {
    const T old = *at;
    *at = update(old);
    return old;
}
#define MOLI_ATOMICS(T)                                                                                          \
    static inline T atomicAdd(T* at, T x) { return moli_atomic(at, [x](T old) { return old + x; }); }            \
    static inline T atomicMin(T* at, T x) { return moli_atomic(at, [x](T old) { return moli_min(old, x); }); }   \
    static inline T atomicMax(T* at, T x) { return moli_atomic(at, [x](T old) { return moli_max(old, x); }); }
MOLI_ATOMICS(int)
MOLI_ATOMICS(unsigned)
MOLI_ATOMICS(unsigned long long)
static inline float atomicAdd(float* at, float x) { return moli_atomic(at, [x](float old) { return old + x; }); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// ---- Barriers and warp collectives

static inline void __syncthreads() { moli_block_barrier(MOLI_PLAIN, 0); }
static inline int __syncthreads_count(int predicate) { return moli_block_barrier(MOLI_COUNT, predicate != 0); }
static inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
static inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
static inline void __syncwarp(unsigned mask = ~0u) { moli_reduce(MOLI_BALLOT, mask, 0); }
static inline unsigned __ballot_sync(unsigned mask, int predicate) { return moli_reduce(MOLI_BALLOT, mask, predicate); }
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
static inline int __reduce_add_sync(unsigned mask, int x) { return moli_reduce(MOLI_ADD, mask, x); }
static inline unsigned __reduce_add_sync(unsigned mask, unsigned x) { return moli_reduce(MOLI_ADD, mask, x); }
static inline int __reduce_min_sync(unsigned mask, int x) { return moli_reduce(MOLI_MIN, mask, x); }
static inline int __reduce_max_sync(unsigned mask, int x) { return moli_reduce(MOLI_MAX, mask, x); }
static inline unsigned __reduce_min_sync(unsigned mask, unsigned x) { return moli_reduce(MOLI_UMIN, mask, x); }
static inline unsigned __reduce_max_sync(unsigned mask, unsigned x) { return moli_reduce(MOLI_UMAX, mask, x); }
static inline unsigned __reduce_and_sync(unsigned mask, unsigned x) { return moli_reduce(MOLI_AND, mask, x); }
static inline unsigned __reduce_or_sync(unsigned mask, unsigned x) { return moli_reduce(MOLI_OR, mask, x); }
static inline unsigned __reduce_xor_sync(unsigned mask, unsigned x) { return moli_reduce(MOLI_BITXOR, mask, x); }
#define MOLI_SHUFFLES(T)                                                                              \
    static inline T __shfl_sync(unsigned mask, T x, int lane, int width = 32) {                       \
        return moli_bits<T>(moli_shuffle(MOLI_INDEX, mask, moli_bits<unsigned>(x), lane, width));     \
    }                                                                                                 \
    static inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32) {                 \
        return moli_bits<T>(moli_shuffle(MOLI_UP, mask, moli_bits<unsigned>(x), by, width));          \
    }                                                                                                 \
    static inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32) {               \
        return moli_bits<T>(moli_shuffle(MOLI_DOWN, mask, moli_bits<unsigned>(x), by, width));        \
    }                                                                                                 \
    static inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32) {                   \
        return moli_bits<T>(moli_shuffle(MOLI_XOR, mask, moli_bits<unsigned>(x), bits, width));       \
    }
MOLI_SHUFFLES(int)
MOLI_SHUFFLES(unsigned)
MOLI_SHUFFLES(float)

// mma.sync.aligned.*.row.col with the fragments of the PTX ISA. s32 wraps and is exact. f16 and bf16 are multiplied
// exactly and added in f32 in ascending k, then c before all: hardware's order and rounding are not specified.
static inline void mma_s8_m16n8k32(int d[4], const unsigned a[4], const unsigned b[2], const int c[4]) {
    moli_mma(MOLI_S8, 32, (unsigned*)d, a, b, (const unsigned*)c);
}
static inline void mma_s8_m16n8k16(int d[4], const unsigned a[2], const unsigned b[1], const int c[4]) {
    moli_mma(MOLI_S8, 16, (unsigned*)d, a, b, (const unsigned*)c);
}
static inline void mma_f16_m16n8k16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
    moli_mma(MOLI_F16, 16, (unsigned*)d, a, b, (const unsigned*)c);
}
static inline void mma_bf16_m16n8k16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
    moli_mma(MOLI_BF16, 16, (unsigned*)d, a, b, (const unsigned*)c);
}
