// What happens to activations between products: norms, activations, rotary embedding, copies, and their quantised form. Buffers are
// [rows, cols] f32.

#include "device.cuh"

// The thread's element, of grids with one thread for each.
__device__ __forceinline__ size_t element() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// x: [rows, cols] in groups of 32 bytes, and zeros behind the last column: q: [rows, 32 padded].
//
// A byte is `round(x * (127 / max))` and stands for `q * (max / 127)`, max being the group's greatest magnitude. A group with a NaN or
// an infinity gets a scale of NaN, which every product then shows; one whose 127 / max is not finite counts as zeros. A warp for
// each group.
extern "C" __global__ void __launch_bounds__(256)
    quantize(const float* x, int rows, int cols, int padded, i8* q, Scale* scales) {
    const size_t group = element() / 32;
    const int lane = threadIdx.x % 32, row = int(group / padded), col = int(group % padded) * GROUP + lane;
    if (row >= rows) return;
    const float value = col < cols ? x[size_t(row) * cols + col] : 0.0f;
    const bool odd = __any_sync(ALL_LANES, !(fabsf(value) < infinity()));
    const float max = warp_max(fabsf(value));
    const float inverse = __fdiv_rn(127.0f, max);
    const bool zeros = odd || !(inverse < infinity());
    const int byte = zeros ? 0 : __float2int_rn(__fmul_rn(value, inverse));
    q[group * GROUP + lane] = i8(byte);
    int sum = byte;
    for (int step = 1; step < 16; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    const int last = __shfl_sync(ALL_LANES, sum, 16);
    if (lane != 0) return;
    Scale scale;
    scale.d = odd ? not_a_number() : zeros ? 0.0f : __fdiv_rn(max, 127.0f);
    scale.sums[0] = i16(sum);
    scale.sums[1] = i16(last);
    scales[group] = scale;
}

// A block for each piece of `cols` elements: out = gain * x / sqrt(mean(x²) + eps).
extern "C" __global__ void __launch_bounds__(256) rms_norm(const float* x, const float* gain, float eps, int cols, float* out) {
    __shared__ float parts[32];
    const size_t start = size_t(blockIdx.x) * cols;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) sum = __fmaf_rn(x[start + i], x[start + i], sum);
    sum = block_sum(sum, parts);
    const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, float(cols)), eps)));
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        out[start + i] = __fmul_rn(__fmul_rn(x[start + i], factor), gain[i]);
    }
}

// out = gain * (x - mean) / sqrt(variance + eps) + bias
extern "C" __global__ void __launch_bounds__(256)
    layer_norm(const float* x, const float* gain, const float* bias, float eps, int cols, float* out) {
    __shared__ float parts[32];
    const size_t start = size_t(blockIdx.x) * cols;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) sum = __fadd_rn(sum, x[start + i]);
    const float mean = __fdiv_rn(block_sum(sum, parts), float(cols));
    float squares = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        const float off = __fsub_rn(x[start + i], mean);
        squares = __fmaf_rn(off, off, squares);
    }
    squares = block_sum(squares, parts);
    const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, float(cols)), eps)));
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        const float normed = __fmul_rn(__fmul_rn(__fsub_rn(x[start + i], mean), factor), gain[i]);
        out[start + i] = bias ? __fadd_rn(normed, bias[i]) : normed;
    }
}

// A block for each row and head: turns the first 2 `half` elements of a head of `dim` by the row's angles, [rows, half].
//
// Style 0: pairs of neighbours; 1: element i with i + half; 2: the same, but the result goes to neighbours.
extern "C" __global__ void __launch_bounds__(512)
    rope(float* x, const float* cos, const float* sin, int heads, int dim, int half, int style) {
    float* head = x + size_t(blockIdx.x) * dim;
    const size_t row = blockIdx.x / heads;
    const int pair = threadIdx.x;
    const int first = style == 0 ? 2 * pair : pair, second = style == 0 ? 2 * pair + 1 : pair + half;
    float a = 0.0f, b = 0.0f, c = 0.0f, s = 0.0f;
    if (pair < half) {
        a = head[first], b = head[second];
        c = cos[row * half + pair], s = sin[row * half + pair];
    }
    __syncthreads();
    if (pair >= half) return;
    head[style == 2 ? 2 * pair : first] = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
    head[style == 2 ? 2 * pair + 1 : second] = __fadd_rn(__fmul_rn(a, s), __fmul_rn(b, c));
}

__device__ __forceinline__ float silu(float x) { return __fdiv_rn(x, __fadd_rn(1.0f, expf(-x))); }

__device__ __forceinline__ float gelu_tanh(float x) {
    const float inner = __fmaf_rn(__fmul_rn(0.044715f, __fmul_rn(x, x)), x, x);
    return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, tanhf(__fmul_rn(0.7978845608f, inner))));
}

__device__ __forceinline__ float gelu_erf(float x) {
    return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, erff(__fmul_rn(0.70710678118f, x))));
}

// A NaN stays one.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

// Kind 0: SiLU; 1: GELU by tanh; 2: GELU by erf; 4: ReLU; 5: its square.
__device__ __forceinline__ float activation(float x, int kind) {
    switch (kind) {
        case 0: return silu(x);
        case 1: return gelu_tanh(x);
        case 2: return gelu_erf(x);
        case 4: return relu(x);
        default: return __fmul_rn(relu(x), relu(x));
    }
}

// gate = activation(gate) * up; kind 3: min(gate, 7) * sigmoid(1.702 gate) * (clamp(up, -7, 7) + 1).
extern "C" __global__ void __launch_bounds__(256) gated(float* gate, const float* up, int kind, size_t count) {
    const size_t i = element();
    if (i >= count) return;
    const float g = gate[i], u = up[i];
    if (kind != 3) {
        gate[i] = __fmul_rn(activation(g, kind), u);
        return;
    }
    // Written so that a NaN stays one.
    const float clamped = g > 7.0f ? 7.0f : g, partner = u > 7.0f ? 7.0f : u < -7.0f ? -7.0f : u;
    const float made = __fdiv_rn(clamped, __fadd_rn(1.0f, expf(__fmul_rn(-1.702f, clamped))));
    gate[i] = __fmul_rn(made, __fadd_rn(1.0f, partner));
}

extern "C" __global__ void __launch_bounds__(256) activate(float* x, int kind, size_t count) {
    const size_t i = element();
    if (i < count) x[i] = activation(x[i], kind);
}

extern "C" __global__ void __launch_bounds__(256) scale(float* x, float factor, size_t count) {
    const size_t i = element();
    if (i < count) x[i] = __fmul_rn(x[i], factor);
}

extern "C" __global__ void __launch_bounds__(256) add(float* x, const float* y, size_t count) {
    const size_t i = element();
    if (i < count) x[i] = __fadd_rn(x[i], y[i]);
}

// x = cap * tanh(x / cap)
extern "C" __global__ void __launch_bounds__(256) soft_cap(float* x, float cap, size_t count) {
    const size_t i = element();
    if (i < count) x[i] = __fmul_rn(cap, tanhf(__fdiv_rn(x[i], cap)));
}

// to[row, to_start + i] = from[row, from_start + i] for i below `width`.
extern "C" __global__ void __launch_bounds__(256) copy_columns(const float* from, int from_cols, int from_start, float* to, int to_cols,
                                                               int to_start, int width, int rows) {
    const size_t i = element(), row = i / width, col = i % width;
    if (row < size_t(rows)) to[row * to_cols + to_start + col] = from[row * from_cols + from_start + col];
}

// out[i] = x[rows[i]]
extern "C" __global__ void __launch_bounds__(256) select(const float* x, const u32* rows, int count, int cols, float* out) {
    const size_t i = element(), row = i / cols, col = i % cols;
    if (row < size_t(count)) out[i] = x[size_t(rows[row]) * cols + col];
}

// to[rows[i]] += weights[i] * from[i], where no row is named twice.
extern "C" __global__ void __launch_bounds__(256)
    scatter_add(const float* from, const u32* rows, const float* weights, int count, int cols, float* to) {
    const size_t i = element(), row = i / cols, col = i % cols;
    if (row >= size_t(count)) return;
    float* own = to + size_t(rows[row]) * cols + col;
    *own = __fadd_rn(*own, __fmul_rn(weights[row], from[i]));
}
