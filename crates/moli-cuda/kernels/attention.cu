// Attention over pages of keys and values.
//
// A page holds 32 consecutive positions of one sequence. A query visits the pages that it attends to in ascending order with a running
// maximum; every 512 positions, counted from the sequence's start, it begins anew, and the results of these spans are merged in
// ascending order. All of this depends on absolute positions alone, so a row has the same bits in whatever batch it is, and
// whether one block of threads does all spans or each has its own.
//
// A block of threads takes a tile of queries that share one key head: rows of a sequence that follow each other, times query heads.
// Each of its four warps has `QUERIES` of them. A page's keys, then its values, are brought into shared memory as f32 and used by all.

#include "device.cuh"

constexpr int PAGE = 32;
constexpr int SPAN = 16 * PAGE;
constexpr int WARPS = 4;
// Elements of a head that share a scale in q8_0.
constexpr int KV_BLOCK = 32;

// Rows, and heads of those that share a key head.
struct Queries {
    u32 first_row, rows, first_head, heads;
};

enum Kind { KV_F32 = 0, KV_F16 = 1, KV_Q8_0 = 2 };

// Keys or values: [page, kv_head, token, dim], and in q8_0 scales: [page, kv_head, token, blocks].
struct Pages {
    void* elements;
    u16* scales;
    u32 kind;
    u32 blocks;

    template <int KIND>
    __device__ __forceinline__ float load(size_t token, int dim, int d) const {
        const size_t at = token * dim + d;
        if (KIND == KV_F16) return half_to_float(static_cast<const u16*>(elements)[at]);
        if (KIND == KV_F32) return static_cast<const float*>(elements)[at];
        return __fmul_rn(float(static_cast<const i8*>(elements)[at]), half_to_float(scales[token * blocks + d / KV_BLOCK]));
    }
};

// Brings tokens `from` to `to` of a page into shared memory, as f32: each warp every fourth of them, some at a time, so that it need
// not wait for one before it asks for the next.
template <int DIMS, int KIND>
__device__ __forceinline__ void bring_kind(const Pages& pages, size_t page, int from, int to, int dim, float* tile) {
    constexpr int TOKENS = DIMS < 8 ? 8 / DIMS : 1;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, stride = dim | 1;
#pragma unroll 1
    for (int first = from + warp; first < to; first += WARPS * TOKENS) {
        float values[TOKENS][DIMS];
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const int token = first + WARPS * t;
#pragma unroll
            for (int i = 0; i < DIMS; i++) {
                const int d = lane + 32 * i;
                values[t][i] = token < to && d < dim ? pages.load<KIND>(page + token, dim, d) : 0.0f;
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const int token = first + WARPS * t;
#pragma unroll
            for (int i = 0; i < DIMS; i++) {
                const int d = lane + 32 * i;
                if (token < to && d < dim) tile[token * stride + d] = values[t][i];
            }
        }
    }
}

template <int DIMS>
__device__ __forceinline__ void bring(const Pages& pages, size_t page, int from, int to, int dim, float* tile) {
    if (pages.kind == KV_F16) {
        bring_kind<DIMS, KV_F16>(pages, page, from, to, dim, tile);
    } else if (pages.kind == KV_F32) {
        bring_kind<DIMS, KV_F32>(pages, page, from, to, dim, tile);
    } else {
        bring_kind<DIMS, KV_Q8_0>(pages, page, from, to, dim, tile);
    }
}

// A softmax in progress: the maximum, and the sum of the exponentials.
struct Running {
    float max, sum;

    // Whether any key counts. The maximum can't tell: it leaves out scores that are no numbers, which the sum shows.
    __device__ __forceinline__ bool any() const { return sum != 0.0f; }
};

// Factors of two parts of a softmax that become one, whose state goes to `into`.
__device__ __forceinline__ float2 merge(Running& into, const Running& part) {
    const float max = fmaxf(into.max, part.max);
    const float2 factors = make_float2(expf(__fsub_rn(into.max, max)), expf(__fsub_rn(part.max, max)));
    into.sum = __fmaf_rn(into.sum, factors.x, __fmul_rn(part.sum, factors.y));
    into.max = max;
    return factors;
}

__device__ __forceinline__ float merged(float total, float part, float2 factors) {
    return __fmaf_rn(total, factors.x, __fmul_rn(part, factors.y));
}

// What sums of values are multiplied with in the end. `sink`: the score of a further key whose value is 0.
__device__ __forceinline__ float last_factor(Running state, const float* sink) {
    if (sink) {
        const float max = fmaxf(state.max, *sink), factor = expf(__fsub_rn(state.max, max));
        return __fdiv_rn(factor, __fmaf_rn(state.sum, factor, expf(__fsub_rn(*sink, max))));
    }
    return state.sum == 0.0f ? 0.0f : __fdiv_rn(1.0f, state.sum);
}

// q: [rows, heads, dim]; out: the same, or where `split` is set the spans' own results: parts: [queries of all rows, spans, dim] and
// states: [queries of all rows, spans], of the span blockIdx.z each.
//
// `table`: page numbers of all sequences, those of row r from offsets[sequences[r]] on. `lengths`: tokens of each sequence where rows
// attend to all of them. `cap`: 0 for none. `window`: positions, 0 for all.
template <int QUERIES, int DIMS>
__device__ __forceinline__ void attention(const float* q, const float* sinks, Pages keys, Pages values, const u32* table,
                                          const u32* offsets, const Queries* tiles, const u32* positions, const u32* sequences,
                                          const u32* lengths, int heads, int kv_heads, int dim, float scale, float cap, u32 window,
                                          float* out, int split, int spans, float* parts, Running* states) {
    const Queries tile = tiles[blockIdx.x];
    const int kv_head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int count = tile.rows * tile.heads, stride = dim | 1;
    DYNAMIC_SHARED(shared);
    float* q_tile = reinterpret_cast<float*>(shared);         // [WARPS * QUERIES, dim]
    float* totals = q_tile + WARPS * QUERIES * dim;           // [WARPS * QUERIES, dim]
    float* page_tile = totals + WARPS * QUERIES * dim;        // [PAGE, stride]

    const u32 sequence = sequences[tile.first_row];
    const u32* pages = table + offsets[sequence];
    const auto row_of = [&](int query) { return tile.first_row + query / tile.heads; };
    const auto head_of = [&](int query) { return kv_head * (heads / kv_heads) + tile.first_head + query % tile.heads; };
    // The keys that a row attends to.
    const auto first_key = [&](u32 row) { return window && positions[row] + 1 > window ? positions[row] + 1 - window : 0; };
    const auto end_of_keys = [&](u32 row) {
        if (!lengths) return positions[row] + 1;
        const u32 all = lengths[sequence];
        return window ? min(all, positions[row] + window) : all;
    };

    u32 first = 0xffffffffu, end = 0;
#pragma unroll 1
    for (u32 row = tile.first_row; row < tile.first_row + tile.rows; row++) {
        first = min(first, first_key(row));
        end = max(end, end_of_keys(row));
    }
    if (split) {
        first = max(first, blockIdx.z * SPAN);
        end = min(end, (blockIdx.z + 1) * SPAN);
    }

#pragma unroll 1
    for (int i = threadIdx.x; i < WARPS * QUERIES * dim; i += blockDim.x) {
        const int query = i / dim;
        q_tile[i] = query < count ? __fmul_rn(q[(size_t(row_of(query)) * heads + head_of(query)) * dim + i % dim], scale) : 0.0f;
        totals[i] = 0.0f;
    }

    const Running none = {-infinity(), 0.0f};
    Running total[QUERIES], state[QUERIES];
    float sums[QUERIES][DIMS];
    u32 low[QUERIES], high[QUERIES];
    const float* own_q[QUERIES];
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        const int query = n * WARPS + warp;
        total[n] = state[n] = none;
        low[n] = query < count ? first_key(row_of(query)) : 0;
        high[n] = query < count ? end_of_keys(row_of(query)) : 0;
        own_q[n] = q_tile + query * dim;
#pragma unroll
        for (int i = 0; i < DIMS; i++) sums[n][i] = 0.0f;
    }

    // Queries take turns among the warps, so that few of them occupy all.
    const int own = min(QUERIES, (count - warp + WARPS - 1) / WARPS);

    for (u32 start = first / PAGE * PAGE; start < end; start += PAGE) {
        const size_t page = (size_t(pages[start / PAGE]) * kv_heads + kv_head) * PAGE;
        // What none of them attends to may never have been written.
        const int from = int(max(first, start) - start), to = int(min(end, start + PAGE) - start);
        __syncthreads();
        bring<DIMS>(keys, page, from, to, dim, page_tile);
        __syncthreads();

        float weight[QUERIES] = {};
        const bool there = lane >= from && lane < to;
        if (there && own == 1) {
#pragma unroll 4
            for (int d = 0; d < dim; d++) weight[0] = __fmaf_rn(own_q[0][d], page_tile[lane * stride + d], weight[0]);
        } else if (there && own > 1) {
#pragma unroll 4
            for (int d = 0; d < dim; d++) {
                const float key = page_tile[lane * stride + d];
#pragma unroll
                for (int n = 0; n < QUERIES; n++) weight[n] = __fmaf_rn(own_q[n][d], key, weight[n]);
            }
        }
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            if (n >= own) break;
            float score = weight[n];
            if (cap != 0.0f) score = __fmul_rn(cap, tanhf(__fdiv_rn(score, cap)));
            const u32 position = start + lane;
            const bool seen = there && position >= low[n] && position < high[n];
            const float greatest = fmaxf(state[n].max, warp_max(seen ? score : -infinity()));
            // A maximum of minus infinity: there was no key yet.
            const float base = greatest == -infinity() ? 0.0f : greatest;
            const float rescale = expf(__fsub_rn(state[n].max, base));
            weight[n] = seen ? expf(__fsub_rn(score, base)) : 0.0f;
            state[n].sum = __fmaf_rn(state[n].sum, rescale, warp_sum(weight[n]));
            state[n].max = greatest;
#pragma unroll
            for (int i = 0; i < DIMS; i++) sums[n][i] = __fmul_rn(sums[n][i], rescale);
        }

        __syncthreads();
        bring<DIMS>(values, page, from, to, dim, page_tile);
        __syncthreads();
#pragma unroll 1
        for (int key = from; key < to; key++) {
#pragma unroll
            for (int n = 0; n < QUERIES; n++) {
                if (n >= own) break;
                const float factor = __shfl_sync(ALL_LANES, weight[n], key);
                // A value that a query doesn't attend to must not come in, not even by 0: it may be no number.
                if (start + key < low[n] || start + key >= high[n]) continue;
#pragma unroll
                for (int i = 0; i < DIMS; i++) {
                    const int d = lane + 32 * i;
                    if (d < dim) sums[n][i] = __fmaf_rn(factor, page_tile[key * stride + d], sums[n][i]);
                }
            }
        }

        // The end of a span, or of all.
        if ((start + PAGE) % SPAN != 0 && start + PAGE < end) continue;
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            if (!split && state[n].any()) {
                const float2 factors = merge(total[n], state[n]);
                float* own = totals + (n * WARPS + warp) * dim;
#pragma unroll
                for (int i = 0; i < DIMS; i++) {
                    const int d = lane + 32 * i;
                    if (d < dim) own[d] = merged(own[d], sums[n][i], factors);
                }
            }
            if (split) continue;
            state[n] = none;
#pragma unroll
            for (int i = 0; i < DIMS; i++) sums[n][i] = 0.0f;
        }
    }

#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        const int query = n * WARPS + warp;
        if (query >= count) continue;
        const size_t at = size_t(row_of(query)) * heads + head_of(query);
        if (split) {
            const size_t part = at * spans + blockIdx.z;
#pragma unroll
            for (int i = 0; i < DIMS; i++) {
                const int d = lane + 32 * i;
                if (d < dim) parts[part * dim + d] = sums[n][i];
            }
            if (lane == 0) states[part] = state[n];
            continue;
        }
        const float factor = last_factor(total[n], sinks ? sinks + head_of(query) : nullptr);
        const float* own = totals + query * dim;
#pragma unroll
        for (int i = 0; i < DIMS; i++) {
            const int d = lane + 32 * i;
            if (d < dim) out[at * dim + d] = __fmul_rn(own[d], factor);
        }
    }
}

#define ATTENTION(NAME, QUERIES, DIMS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128)                                                                        \
        NAME(const float* q, const float* sinks, Pages keys, Pages values, const u32* table, const u32* offsets,             \
             const Queries* tiles, const u32* positions, const u32* sequences, const u32* lengths, int heads, int kv_heads,  \
             int dim, float scale, float cap, u32 window, float* out, int split, int spans, float* parts, Running* states) { \
        attention<QUERIES, DIMS>(q, sinks, keys, values, table, offsets, tiles, positions, sequences, lengths, heads,        \
                                 kv_heads, dim, scale, cap, window, out, split, spans, parts, states);                       \
    }
// By the widest head that each takes.
ATTENTION(attention_64, 4, 2)
ATTENTION(attention_128, 4, 4)
ATTENTION(attention_256, 2, 8)
ATTENTION(attention_608, 1, 19)

// The spans of each query, merged in ascending order: a block for each row and head.
extern "C" __global__ void __launch_bounds__(256)
    merge_spans(const float* parts, const Running* states, const float* sinks, int heads, int dim, int spans, float* out) {
    const size_t query = blockIdx.x;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        Running total = {-infinity(), 0.0f};
        float sum = 0.0f;
        for (int s = 0; s < spans; s++) {
            const Running state = states[query * spans + s];
            if (!state.any()) continue;
            const float2 factors = merge(total, state);
            sum = merged(sum, parts[(query * spans + s) * dim + d], factors);
        }
        out[query * dim + d] = __fmul_rn(sum, last_factor(total, sinks ? sinks + query % heads : nullptr));
    }
}

// Where a row's key and value go.
struct Slot {
    u32 page, token;
};

__device__ __forceinline__ size_t slot_of(const Slot& slot, int kv_heads, int head) {
    return (size_t(slot.page) * kv_heads + head) * PAGE + slot.token;
}

// x: [rows, kv_heads, dim], as f32 or f16; blockIdx.y: the row.
extern "C" __global__ void __launch_bounds__(256) store_kv(const float* x, const Slot* slots, int kv_heads, int dim, Pages pages) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, head = i / dim;
    if (head >= kv_heads) return;
    const size_t to = slot_of(slots[blockIdx.y], kv_heads, head) * dim + i % dim;
    const float value = x[size_t(blockIdx.y) * kv_heads * dim + i];
    if (pages.kind == KV_F16) {
        static_cast<u16*>(pages.elements)[to] = float_to_half(value);
    } else {
        static_cast<float*>(pages.elements)[to] = value;
    }
}

// The same as q8_0: a warp for each block of 32 elements of a head, of which the last may be shorter.
extern "C" __global__ void __launch_bounds__(256)
    store_kv_q8_0(const float* x, const Slot* slots, int kv_heads, int dim, Pages pages) {
    const int blocks = pages.blocks, lane = threadIdx.x % 32;
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, head = i / blocks, block = i % blocks;
    if (head >= kv_heads) return;
    const int d = block * KV_BLOCK + lane;
    const float value = d < dim ? x[(size_t(blockIdx.y) * kv_heads + head) * dim + d] : 0.0f;
    const bool odd = __any_sync(ALL_LANES, !(fabsf(value) < infinity()));
    const float greatest = warp_max(fabsf(value));
    const float step = odd ? not_a_number() : __fdiv_rn(greatest, 127.0f), inverse = __fdiv_rn(1.0f, step);
    const bool zeros = odd || !(inverse < infinity());
    const int byte = zeros ? 0 : min(127, max(-128, __float2int_rn(__fmul_rn(value, inverse))));
    const size_t token = slot_of(slots[blockIdx.y], kv_heads, head);
    if (d < dim) static_cast<i8*>(pages.elements)[token * dim + d] = i8(byte);
    if (lane == 0) pages.scales[token * blocks + block] = float_to_half(step);
}
