// Products with a few rows, and unpacking, of one quantised format: compiled once for each (`FORMAT`, and its name in lower case,
// `NAME`).

#include "formats.cuh"
#include "product.cuh"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)

constexpr int GROUPS_OF_BLOCK = FORMAT::LEN / GROUP;

// Where the blocks of a matrix are: its bodies, and its heads.
struct Blocks {
    const u8* body;
    const u8* head;
    const Codebooks* books;

    __device__ __forceinline__ void unpack(Group& g, size_t group) const {
        const size_t block = group / GROUPS_OF_BLOCK;
        FORMAT::unpack(g, body + block * FORMAT::BODY, head + block * FORMAT::HEAD, int(group % GROUPS_OF_BLOCK), books);
    }
};

// out[r, n] = w[n] · x[r] + bias[n] for R rows of x at most: each lane unpacks a group and multiplies it with all of them.
//
// w: [rows, 32 groups]; x: [tokens, 32 x_groups] bytes and their scales; out: [tokens, rows]. A block of threads has `per_block` rows
// of w, whose segments' sums meet in shared memory: per_block * R * segments floats.
template <int R>
__device__ __forceinline__ void matvec(Blocks w, const u8* x, const Scale* scales, const float* bias, float* out, int rows,
                                       int groups, int x_groups, int tokens, int per_block) {
    DYNAMIC_SHARED(shared);
    float* sums = reinterpret_cast<float*>(shared);
    const int segments = (groups + 7) / 8, chunks = (groups + 31) / 32;
    const int first = blockIdx.x * per_block, own = min(per_block, rows - first);
    const int lane = threadIdx.x % 32;

    for (int item = threadIdx.x / 32; item < own * chunks; item += blockDim.x / 32) {
        const int row = item / chunks, group = item % chunks * 32 + lane;
        float v[R] = {};
        if (group < groups) {
            Group g;
            w.unpack(g, size_t(first + row) * groups + group);
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (r >= tokens) break;
                const size_t at = size_t(r) * x_groups + group;
                const uint4* bytes = reinterpret_cast<const uint4*>(x + at * GROUP);
                const uint4 a = __ldg(bytes), b = __ldg(bytes + 1);
                int i[2];
                i[0] = dot4(g.q[0], a.x, 0);
                i[0] = dot4(g.q[1], a.y, i[0]);
                i[0] = dot4(g.q[2], a.z, i[0]);
                i[0] = dot4(g.q[3], a.w, i[0]);
                i[1] = dot4(g.q[4], b.x, 0);
                i[1] = dot4(g.q[5], b.y, i[1]);
                i[1] = dot4(g.q[6], b.z, i[1]);
                i[1] = dot4(g.q[7], b.w, i[1]);
                v[r] = part<FORMAT::HALVES != 0, FORMAT::MIN != 0>(g.s, g.m, i, scales[at]);
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

#define MATVEC(R)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128) JOIN(matvec##R, NAME)(                                              \
        const u8* body, const u8* head, const Codebooks* books, const u8* x, const Scale* scales, const float* bias,      \
        float* out, int rows, int groups, int x_groups, int tokens, int per_block) {                                      \
        matvec<R>(Blocks{body, head, books}, x, scales, bias, out, rows, groups, x_groups, tokens, per_block);            \
    }
MATVEC(1)
MATVEC(4)
MATVEC(8)

// Rows `first` to `first + count` of a matrix, or those that `indices` names, as bytes `q`: [count, 32 padded] with their scales:
// [count, padded, 1, 2 or 4]: s, then m, each once or twice. Groups behind the last are zeros.
extern "C" __global__ void __launch_bounds__(256)
    JOIN(unpack, NAME)(const u8* body, const u8* head, const Codebooks* books, const u32* indices, int first, int count, int groups,
                       int padded, u8* q, float* scales) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int row = int(at / padded), group = int(at % padded);
    if (row >= count) return;
    Group g = {};
    if (group < groups) {
        const size_t from = indices ? indices[row] : first + row;
        Blocks{body, head, books}.unpack(g, from * groups + group);
    }
    uint4* to = reinterpret_cast<uint4*>(q + at * GROUP);
    to[0] = make_uint4(g.q[0], g.q[1], g.q[2], g.q[3]);
    to[1] = make_uint4(g.q[4], g.q[5], g.q[6], g.q[7]);
    constexpr int EACH = 1 + FORMAT::HALVES;
    float* own = scales + at * EACH * (1 + FORMAT::MIN);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        own[k] = g.s[k];
        if (FORMAT::MIN) own[EACH + k] = g.m[k];
    }
}
