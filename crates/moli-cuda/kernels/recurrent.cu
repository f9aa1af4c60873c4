// Layers that carry a state from token to token: the short convolution and the gated delta rule (arXiv:2412.06464).
//
// The tokens of a sequence are taken one by one in their order, and each element of a state is changed by the same operations for
// each token; so the chunking of a text changes no bit.

#include "device.cuh"

// Consecutive rows of one sequence, and the slots of the state before the first (NO_STATE: zeros) and behind the last.
struct Run {
    u32 first, rows, from, to;
};

constexpr u32 NO_STATE = 0xffffffffu;

// x *= sigmoid(gate)
extern "C" __global__ void __launch_bounds__(256) gate_sigmoid(float* x, const float* gate, size_t count) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) x[i] = __fmul_rn(x[i], __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-gate[i]))));
}

// x *= y
extern "C" __global__ void __launch_bounds__(256) multiply(float* x, const float* y, size_t count) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) x[i] = __fmul_rn(x[i], y[i]);
}

// Input `at` of a run that begins with the `before` inputs of its state.
__device__ __forceinline__ float input(const float* x, const float* states, const Run& run, int before, int channels, int at, int channel) {
    if (at >= before) return x[(size_t(run.first) + at - before) * channels + channel];
    if (run.from == NO_STATE) return 0.0f;
    return states[(size_t(run.from) * before + at) * channels + channel];
}

// out[t] = sum over j of taps[j] * x[t - n + 1 + j] of each channel, n = before + 1: taps: [n, channels]; states: [slots, before,
// channels]. blockIdx.y: the run; the grid's first dimension has a thread for each row and channel of the longest.
extern "C" __global__ void __launch_bounds__(256)
    short_conv(const float* x, const float* taps, const float* states, const Run* runs, int before, int channels, float* out) {
    const Run run = runs[blockIdx.y];
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int row = int(i / channels), channel = int(i % channels);
    if (row >= int(run.rows)) return;
    float sum = 0.0f;
    for (int j = 0; j <= before; j++) {
        sum = __fmaf_rn(input(x, states, run, before, channels, row + j, channel), taps[size_t(j) * channels + channel], sum);
    }
    out[(size_t(run.first) + row) * channels + channel] = sum;
}

// The latest inputs become the state. A thread for each channel; inputs of the old state move forward, from the first on.
extern "C" __global__ void __launch_bounds__(256)
    short_conv_state(const float* x, float* states, const Run* runs, int before, int channels) {
    const Run run = runs[blockIdx.y];
    const int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    for (int i = 0; i < before; i++) {
        const float value = input(x, states, run, before, channels, int(run.rows) + i, channel);
        states[(size_t(run.to) * before + i) * channels + channel] = value;
    }
}

// a = exp(slope * log(1 + exp(a + bias))), b = sigmoid(b), of [rows, heads].
extern "C" __global__ void __launch_bounds__(256)
    delta_gates(float* a, float* b, const float* slope, const float* bias, int heads, size_t count) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float x = __fadd_rn(a[i], bias[i % heads]);
    // Beyond 20 the logarithm is x; written so that a NaN passes.
    const float softplus = x > 20.0f ? x : log1pf(expf(x));
    a[i] = expf(__fmul_rn(slope[i % heads], softplus));
    b[i] = __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-b[i])));
}

// Queries and keys become unit vectors, queries times 1 / sqrt(dim). A warp for each of the 2 `heads` of a row of `width`.
extern "C" __global__ void __launch_bounds__(256) delta_units(float* mixed, int rows, int heads, int dim, int width) {
    const size_t piece = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32, row = int(piece / (2 * heads)), head = int(piece % (2 * heads));
    if (row >= rows) return;
    float* x = mixed + size_t(row) * width + size_t(head) * dim;
    float squares = 0.0f;
    for (int i = lane; i < dim; i += 32) squares = __fmaf_rn(x[i], x[i], squares);
    squares = warp_sum(squares);
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(squares, 1e-6f)));
    if (head < heads) factor = __fmul_rn(factor, __fdiv_rn(1.0f, __fsqrt_rn(float(dim))));
    for (int i = lane; i < dim; i += 32) x[i] = __fmul_rn(x[i], factor);
}

// S = decay * S; S = S + k ⊗ (rate * (v - Sᵀk)); out = Sᵀq, for each token of a run.
//
// mixed: [rows, width]: queries, keys, values; decays, rates: [rows, value_heads]; states: [slots, value_heads, key_dim, value_dim]; out:
// [rows, value_heads, value_dim]. blockIdx.x: the value head, blockIdx.y: the run; a thread for each column of the state, which no
// other touches. Where it fits, the state is in shared memory meanwhile (`in_shared`).
extern "C" __global__ void __launch_bounds__(1024)
    delta_rule(const float* mixed, const float* decays, const float* rates, float* states, const Run* runs, int key_heads,
               int value_heads, int key_dim, int value_dim, int tiled, int in_shared, float* out) {
    DYNAMIC_SHARED(shared);
    const Run run = runs[blockIdx.y];
    const int head = blockIdx.x, column = threadIdx.x;
    if (column >= value_dim) return;
    const int key_head = tiled ? head % key_heads : head / (value_heads / key_heads);
    const int keys = key_heads * key_dim, width = 2 * keys + value_heads * value_dim;
    const size_t size = size_t(key_dim) * value_dim;
    float* to = states + (size_t(run.to) * value_heads + head) * size + column;
    const float* from = states + (size_t(run.from == NO_STATE ? 0 : run.from) * value_heads + head) * size + column;
    float* state = in_shared ? reinterpret_cast<float*>(shared) + column : to;
    for (int k = 0; k < key_dim; k++) {
        const size_t at = size_t(k) * value_dim;
        state[at] = run.from == NO_STATE ? 0.0f : from[at];
    }
    for (u32 i = 0; i < run.rows; i++) {
        const size_t row = size_t(run.first) + i;
        const float* query = mixed + row * width + size_t(key_head) * key_dim;
        const float* key = query + keys;
        const float value = mixed[row * width + 2 * keys + size_t(head) * value_dim + column];
        const float decay = decays[row * value_heads + head], rate = rates[row * value_heads + head];
        float found = 0.0f;
        for (int k = 0; k < key_dim; k++) found = __fmaf_rn(state[size_t(k) * value_dim], key[k], found);
        const float delta = __fmul_rn(__fmaf_rn(found, -decay, value), rate);
        float sum = 0.0f;
        for (int k = 0; k < key_dim; k++) {
            const size_t at = size_t(k) * value_dim;
            const float next = __fmaf_rn(delta, key[k], __fmul_rn(state[at], decay));
            state[at] = next;
            sum = __fmaf_rn(next, query[k], sum);
        }
        out[(row * value_heads + head) * value_dim + column] = sum;
    }
    if (!in_shared) return;
    for (int k = 0; k < key_dim; k++) to[size_t(k) * value_dim] = state[size_t(k) * value_dim];
}
