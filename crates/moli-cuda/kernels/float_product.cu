// Products with matrices of floats, whose activations stay f32; compiled once for each type (`TYPE`, and its name in lower case, `NAME`).
//
// The order of sums is that of quantised products: 32 columns one after the other, eight of these as a tree, and so on.

#include "device.cuh"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)

struct F32 {
    typedef float Stored;
    static __device__ __forceinline__ float value(float x) { return x; }
};
struct F16 {
    typedef u16 Stored;
    static __device__ __forceinline__ float value(u16 x) { return half_to_float(x); }
};
struct BF16 {
    typedef u16 Stored;
    static __device__ __forceinline__ float value(u16 x) { return bf16_to_float(x); }
};
typedef TYPE::Stored Stored;

// Elements that are read at once.
constexpr int VECTOR = 16 / sizeof(Stored);

// out[r, n] = w[n] · x[r] + bias[n] for R rows of x at most, as `matvec` in quantized.cu. x: [tokens, cols].
template <int R>
__device__ __forceinline__ void matvec(const Stored* w, const float* x, const float* bias, float* out, int rows, int cols, int tokens,
                                       int per_block) {
    DYNAMIC_SHARED(shared);
    float* sums = reinterpret_cast<float*>(shared);
    const int groups = (cols + GROUP - 1) / GROUP, segments = (groups + 7) / 8, chunks = (groups + 31) / 32;
    const int first = blockIdx.x * per_block, own = min(per_block, rows - first);
    const int lane = threadIdx.x % 32;

    for (int item = threadIdx.x / 32; item < own * chunks; item += blockDim.x / 32) {
        const int row = item / chunks, group = item % chunks * 32 + lane;
        float v[R] = {};
        const int start = group * GROUP, end = min(start + GROUP, cols);
        const Stored* weights = w + size_t(first + row) * cols;
        if (cols % VECTOR == 0) {
            for (int k = start; k < end; k += VECTOR) {
                const uint4 bits = __ldg(reinterpret_cast<const uint4*>(weights + k));
                const Stored* values = reinterpret_cast<const Stored*>(&bits);
#pragma unroll
                for (int r = 0; r < R; r++) {
                    if (r >= tokens) break;
                    // Rows of x begin at multiples of 16 bytes where those of w do.
                    const float4* own = reinterpret_cast<const float4*>(x + size_t(r) * cols + k);
#pragma unroll
                    for (int i = 0; i < VECTOR; i += 4) {
                        const float4 four = __ldg(own + i / 4);
                        v[r] = __fmaf_rn(TYPE::value(values[i]), four.x, v[r]);
                        v[r] = __fmaf_rn(TYPE::value(values[i + 1]), four.y, v[r]);
                        v[r] = __fmaf_rn(TYPE::value(values[i + 2]), four.z, v[r]);
                        v[r] = __fmaf_rn(TYPE::value(values[i + 3]), four.w, v[r]);
                    }
                }
            }
        } else {
            for (int k = start; k < end; k++) {
                const float value = TYPE::value(weights[k]);
#pragma unroll
                for (int r = 0; r < R; r++) {
                    if (r < tokens) v[r] = __fmaf_rn(value, x[size_t(r) * cols + k], v[r]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float sum = segment_sum(v[r]);
            if (lane % 8 == 0 && group < groups) sums[(row * R + r) * segments + group / 8] = sum;
        }
    }
    __syncthreads();
    add_segments<R>(sums, bias, out, first, own, segments, rows, tokens);
}

#define MATVEC(R)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(128) JOIN(matvec##R, NAME)(                                               \
        const Stored* w, const float* x, const float* bias, float* out, int rows, int cols, int tokens, int per_block) {   \
        matvec<R>(w, x, bias, out, rows, cols, tokens, per_block);                                                         \
    }
MATVEC(1)
MATVEC(4)
MATVEC(8)

constexpr int TILE = 64;

// The same for many rows of x: a block of 256 threads computes [64 tokens, 64 rows], each thread [4, 4] of them.
extern "C" __global__ void __launch_bounds__(256)
    JOIN(gemm, NAME)(const Stored* w, const float* x, const float* bias, float* out, int rows, int cols, int tokens) {
    __shared__ float w_tile[TILE][GROUP + 1];
    __shared__ float x_tile[TILE][GROUP + 1];
    const int row0 = blockIdx.x * TILE, token0 = blockIdx.y * TILE;
    const int r = threadIdx.x % 16, t = threadIdx.x / 16;
    float total[4][4] = {}, one[4][4], two[4][4], four[4][4];

    for (int start = 0; start < cols; start += SEGMENT) {
#pragma unroll
        for (int group = 0; group < 8; group++) {
            for (int i = threadIdx.x; i < TILE * GROUP; i += blockDim.x) {
                const int line = i / GROUP, k = i % GROUP, col = start + group * GROUP + k;
                const bool w_there = row0 + line < rows && col < cols, x_there = token0 + line < tokens && col < cols;
                w_tile[line][k] = w_there ? TYPE::value(w[size_t(row0 + line) * cols + col]) : 0.0f;
                x_tile[line][k] = x_there ? x[size_t(token0 + line) * cols + col] : 0.0f;
            }
            __syncthreads();
            float v[4][4] = {};
            // What is behind the last column is left out, not multiplied: a NaN elsewhere must not come in by 0.
            const int width = min(GROUP, cols - start - group * GROUP);
            for (int k = 0; k < width; k++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        v[i][j] = __fmaf_rn(w_tile[r + 16 * j][k], x_tile[t + 16 * i][k], v[i][j]);
                    }
                }
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float sum = v[i][j];
                    if (group % 2 == 0) {
                        one[i][j] = sum;
                        continue;
                    }
                    sum = __fadd_rn(one[i][j], sum);
                    if (group % 4 == 1) {
                        two[i][j] = sum;
                        continue;
                    }
                    sum = __fadd_rn(two[i][j], sum);
                    if (group == 3) {
                        four[i][j] = sum;
                        continue;
                    }
                    total[i][j] = __fadd_rn(total[i][j], __fadd_rn(four[i][j], sum));
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int token = token0 + t + 16 * i, row = row0 + r + 16 * j;
            if (token >= tokens || row >= rows) continue;
            out[size_t(token) * rows + row] = bias ? __fadd_rn(total[i][j], bias[row]) : total[i][j];
        }
    }
}

// out[r] = factor * table[indices[r]], of rows of `cols`.
extern "C" __global__ void __launch_bounds__(256)
    JOIN(rows, NAME)(const Stored* table, const u32* indices, int count, int cols, float factor, float* out) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int row = int(at / cols), col = int(at % cols);
    if (row >= count) return;
    const float value = TYPE::value(table[size_t(indices[row]) * cols + col]);
    out[at] = factor == 1.0f ? value : __fmul_rn(value, factor);
}
