// What the kernels use of the device, in one place: the names of types, half precision, dot products of bytes, the matrix
// instructions, and sums over a warp.
//
// Everything that is rounded is written with the intrinsics that round once (`__fmul_rn`, `__fmaf_rn` …), so that no compiler
// fuses a product and a sum in one kernel and leaves them apart in another: two kernels that compute the same number come to the
// same bits.
//
// Kernels include no header of the toolkit, so the compiler that turns them into PTX is all that is needed. `MOLI_MOCK` is set
// where they are compiled for the processor, by `mock/`.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef signed char i8;
typedef short i16;

#ifdef MOLI_MOCK

__device__ __forceinline__ float half_to_float(u16 h) { return moli_half_to_float(h); }
__device__ __forceinline__ u16 float_to_half(float x) { return moli_float_to_half(x); }
__device__ __forceinline__ int dot4(u32 a, u32 b, int c) { return __dp4a(int(a), int(b), c); }

#else

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ float half_to_float(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

// To the nearest, ties to even.
__device__ __forceinline__ u16 float_to_half(float x) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

// c + the dot product of four bytes with signs.
__device__ __forceinline__ int dot4(u32 a, u32 b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// d = a · b + c of bytes, a: [16, 32] by rows, b: [32, 8] by columns, in the fragments of the PTX ISA.
__device__ __forceinline__ void mma_s8_m16n8k32(int d[4], const u32 a[4], const u32 b[2], const int c[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// The same of a: [16, 16] and b: [16, 8].
__device__ __forceinline__ void mma_s8_m16n8k16(int d[4], const u32 a[2], const u32 b[1], const int c[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

#endif

constexpr u32 ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float bf16_to_float(u16 h) { return __uint_as_float(u32(h) << 16); }

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// The sum and the maximum over a warp, in every lane: by a tree of a fixed shape.
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 1; step < 32; step *= 2) x = __fadd_rn(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int step = 1; step < 32; step *= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over a block of at most 32 warps, in every thread. `parts` holds 32 floats.
__device__ __forceinline__ float block_sum(float x, float* parts) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0.0f;
    sum = warp_sum(sum);
    __syncthreads();
    return sum;
}

// A row's groups of 32 columns are added up in segments of 8: those of a segment as a tree, and the segments from the first to
// the last. Every product of matrices follows this, whatever its shape, so its bits don't depend on how many rows it has.
constexpr int GROUP = 32;
constexpr int SEGMENT = 8 * GROUP;

__device__ __forceinline__ float segment_sum(const float v[8]) {
    float a = __fadd_rn(__fadd_rn(v[0], v[1]), __fadd_rn(v[2], v[3]));
    float b = __fadd_rn(__fadd_rn(v[4], v[5]), __fadd_rn(v[6], v[7]));
    return __fadd_rn(a, b);
}

// The same where each of 8 lanes that follow each other has one of them.
__device__ __forceinline__ float segment_sum(float v) {
    for (int step = 1; step < 8; step *= 2) v = __fadd_rn(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

// The sums of segments, from the first to the last: of `own` rows of weights from number `first` on with R rows of activations, `sums`:
// [own, R, segments]; out: [tokens, rows].
template <int R>
__device__ __forceinline__ void add_segments(const float* sums, const float* bias, float* out, int first, int own, int segments, int rows,
                                             int tokens) {
    for (int i = threadIdx.x; i < own * R; i += blockDim.x) {
        const int row = first + i / R, r = i % R;
        if (r >= tokens) continue;
        float total = 0.0f;
        for (int s = 0; s < segments; s++) total = __fadd_rn(total, sums[i * segments + s]);
        if (bias) total = __fadd_rn(total, bias[row]);
        out[size_t(r) * rows + row] = total;
    }
}

// What belongs to a group of 32 activations beside their bytes.
struct __align__(8) Scale {
    float d;      // what a byte stands for
    i16 sums[2];  // of the first and the last 16 bytes
};
