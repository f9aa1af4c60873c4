// Products of many rows on the matrix units, of weights that `unpack` has made bytes of; and what such bytes stand for.

#include "product.cuh"

constexpr int TILE_ROWS = 128;    // of weights, 16 for each of 8 warps
constexpr int TILE_TOKENS = 64;   // of activations
// Words of a row in shared memory: 4 more than a segment has, so that the lanes of a fragment are in banks of their own.
constexpr int STRIDE = SEGMENT / 4 + 4;

template <int W>
struct Tile {
    u32 w[TILE_ROWS][STRIDE];
    u32 x[TILE_TOKENS][STRIDE];
    float w_scales[TILE_ROWS][8 * W];
    Scale x_scales[TILE_TOKENS][8];
};

// out[t, first + n] = w[n] · x[t] + bias[first + n]
//
// w: [count, 256 segments] bytes, with W scales for each 32; x: [tokens, 256 segments] bytes with their scales; out: [tokens, rows].
// Each segment is loaded into shared memory, its eight groups multiplied one by one, their parts added as a tree.
template <bool HALVES, bool MIN>
__device__ __forceinline__ void gemm(const u8* w, const float* w_scales, const u8* x, const Scale* x_scales, const float* bias,
                                     float* out, int first, int count, int rows, int segments, int tokens) {
    constexpr int EACH = 1 + HALVES, W = EACH * (1 + MIN);
    DYNAMIC_SHARED(shared);
    Tile<W>& tile = *reinterpret_cast<Tile<W>*>(shared);
    const int row0 = blockIdx.x * TILE_ROWS, token0 = blockIdx.y * TILE_TOKENS;
    const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16, g = lane / 4, t = lane % 4;

    float total[TILE_TOKENS / 8][4] = {};
    for (int segment = 0; segment < segments; segment++) {
        for (int i = threadIdx.x; i < TILE_ROWS * 16; i += blockDim.x) {
            const int row = i / 16, part = i % 16;
            uint4 bytes = make_uint4(0, 0, 0, 0);
            if (row0 + row < count) {
                bytes = reinterpret_cast<const uint4*>(w)[(size_t(row0 + row) * segments + segment) * 16 + part];
            }
            *reinterpret_cast<uint4*>(&tile.w[row][4 * part]) = bytes;
        }
        for (int i = threadIdx.x; i < TILE_TOKENS * 16; i += blockDim.x) {
            const int token = i / 16, part = i % 16;
            uint4 bytes = make_uint4(0, 0, 0, 0);
            if (token0 + token < tokens) {
                bytes = reinterpret_cast<const uint4*>(x)[(size_t(token0 + token) * segments + segment) * 16 + part];
            }
            *reinterpret_cast<uint4*>(&tile.x[token][4 * part]) = bytes;
        }
        for (int i = threadIdx.x; i < TILE_ROWS * 8 * W; i += blockDim.x) {
            const int row = i / (8 * W), scale = i % (8 * W);
            const bool there = row0 + row < count;
            tile.w_scales[row][scale] = there ? w_scales[(size_t(row0 + row) * segments + segment) * 8 * W + scale] : 0.0f;
        }
        for (int i = threadIdx.x; i < TILE_TOKENS * 8; i += blockDim.x) {
            const int token = i / 8, group = i % 8;
            Scale scale = {};
            if (token0 + token < tokens) scale = x_scales[(size_t(token0 + token) * segments + segment) * 8 + group];
            tile.x_scales[token][group] = scale;
        }
        __syncthreads();

        u32 a[8][4];
#pragma unroll
        for (int k = 0; k < 8; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) a[k][i] = tile.w[own + g + i % 2 * 8][8 * k + i / 2 * 4 + t];
        }
#pragma unroll
        for (int n = 0; n < TILE_TOKENS / 8; n++) {
            float v[4][8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const u32 b[2] = {tile.x[8 * n + g][8 * k + t], tile.x[8 * n + g][8 * k + 4 + t]};
                const int zero[4] = {};
                int low[4], high[4] = {};
                if (HALVES) {
                    mma_s8_m16n8k16(low, a[k], b, zero);
                    mma_s8_m16n8k16(high, a[k] + 2, b + 1, zero);
                } else {
                    mma_s8_m16n8k32(low, a[k], b, zero);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float* scales = &tile.w_scales[own + g + i / 2 * 8][k * W];
                    const float s[2] = {scales[0], scales[EACH - 1]};
                    const float m[2] = {MIN ? scales[EACH] : 0.0f, MIN ? scales[W - 1] : 0.0f};
                    const int dots[2] = {low[i], high[i]};
                    v[i][k] = part<HALVES, MIN>(s, m, dots, tile.x_scales[8 * n + 2 * t + i % 2][k]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) total[n][i] = __fadd_rn(total[n][i], segment_sum(v[i]));
        }
        __syncthreads();
    }

#pragma unroll
    for (int n = 0; n < TILE_TOKENS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row0 + own + g + i / 2 * 8, token = token0 + 8 * n + 2 * t + i % 2;
            if (row >= count || token >= tokens) continue;
            const float sum = bias ? __fadd_rn(total[n][i], bias[first + row]) : total[n][i];
            out[size_t(token) * rows + first + row] = sum;
        }
    }
}

#define GEMM(NAME, HALVES, MIN)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const u8* w, const float* w_scales, const u8* x, const Scale* x_scales, const float* bias, float* out,       \
             int first, int count, int rows, int segments, int tokens) {                                                  \
        gemm<HALVES, MIN>(w, w_scales, x, x_scales, bias, out, first, count, rows, segments, tokens);                     \
    }
GEMM(gemm, false, false)
GEMM(gemm_min, false, true)
GEMM(gemm_halves, true, false)
GEMM(gemm_halves_min, true, true)

// out[r, k] = factor * (s * q + m), of unpacked rows: q: [count, 32 padded], out: [count, cols].
extern "C" __global__ void __launch_bounds__(256) unpacked_to_float(const i8* q, const float* scales, int halves, int min, int count,
                                                                    int padded, int cols, float factor, float* out) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int row = int(at / cols), col = int(at % cols);
    if (row >= count) return;
    const int each = 1 + halves;
    const float* own = scales + (size_t(row) * padded + col / GROUP) * each * (1 + min);
    const int half = halves ? col % GROUP / 16 : 0;
    float value = __fmul_rn(own[half], float(q[size_t(row) * padded * GROUP + col]));
    if (min) value = __fadd_rn(value, own[each + half]);
    out[at] = factor == 1.0f ? value : __fmul_rn(value, factor);
}
