// Sample kernels for test.cpp: one for each thing that the mock does, or notices.
#include "test_kernels.cuh"

extern "C" __global__ void __launch_bounds__(256) add(const float* a, const float* b, float* sum, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) sum[i] = a[i] + b[i];
}

// The sum of each row: across a warp by shuffles, across warps by shared memory.
extern "C" __global__ void row_sums(const float* __restrict__ rows, float* __restrict__ sums, int columns) {
    __shared__ float parts[32];
    float sum = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += __ldg(rows + (size_t)blockIdx.x * columns + i);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = warp_sum(threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Turns a block's values round, by dynamic shared memory.
extern "C" __global__ void turn(int* values) {
    DYNAMIC_SHARED(memory);
    int* shared = (int*)memory;
    shared[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

struct Settings {
    int width;
    unsigned mask;
};
// Each kind of shuffle and vote, as columns of `out`: [12, 32].
extern "C" __global__ void warp_functions(int* out, Settings settings) {
    const int lane = threadIdx.x, width = settings.width;
    const unsigned all = 0xffffffffu;
    int column = 0;
    const auto put = [&](int x) { out[column++ * 32 + lane] = x; };
    put(__shfl_sync(all, lane, 5, width));
    put(__shfl_up_sync(all, lane, 3, width));
    put(__shfl_down_sync(all, lane, 3, width));
    put(__shfl_xor_sync(all, lane, 5, width));
    put(__float_as_int(__shfl_xor_sync(all, (float)lane, 1)));
    put(__ballot_sync(all, lane % 3 == 0));
    put(__any_sync(all, lane == 31) + 2 * __all_sync(all, lane < 31));
    put(__reduce_add_sync(all, lane));
    put(__reduce_max_sync(all, -lane));
    // Lanes of the mask and the others, apart.
    const unsigned mine = settings.mask >> lane & 1 ? settings.mask : ~settings.mask;
    put(__reduce_add_sync(mine, 1));
    __syncwarp();
    put(__syncthreads_count(lane < 7));
    put(__dp4a((int)0x80ff7f01, 0x7f02ff03, lane));
}

// A tile of a matrix product, its fragments as they lie in the lanes.
#define TILE(name, mma, type, a_words, b_words)                                                         \
    extern "C" __global__ void name(const unsigned* a, const unsigned* b, const type* c, type* d) {     \
        const int lane = threadIdx.x;                                                                   \
        mma(d + lane * 4, a + lane * a_words, b + lane * b_words, c + lane * 4);                        \
    }
TILE(tile_s8_k32, mma_s8_m16n8k32, int, 4, 2)
TILE(tile_s8_k16, mma_s8_m16n8k16, int, 2, 1)
TILE(tile_f16_k16, mma_f16_m16n8k16, float, 4, 2)
TILE(tile_bf16_k16, mma_bf16_m16n8k16, float, 4, 2)

extern "C" __global__ void halves(const unsigned short* in, float* out, unsigned short* back) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = moli_half_to_float(in[i]);
    back[i] = moli_float_to_half(out[i]);
}
extern "C" __global__ void to_halves(const float* in, unsigned short* out) {
    out[threadIdx.x] = moli_float_to_half(in[threadIdx.x]);
}

extern "C" __global__ void count(int* counter) { atomicAdd(counter, 1); }

// As a decoding step's products: rows of 4 n bytes by one vector, a warp for each row.
extern "C" __global__ void products(const int* rows, const int* x, int* out, int n) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    int sum = 0;
    for (int i = lane; i < n; i += 32) sum = __dp4a(rows[(size_t)row * n + i], x[i], sum);
    for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
    if (lane == 0) out[row] = sum;
}

// ---- What goes wrong

extern "C" __global__ void half_a_barrier() {
    if (threadIdx.x < 32) __syncthreads();
}
extern "C" __global__ void missing_lane(int* out) {
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
}
extern "C" __global__ void at_index(int* out, long long index) { out[index] = 1; }
extern "C" __global__ void misaligned(char* out) { *(int*)(out + 2) = 1; }
extern "C" __global__ void out_of_shared(int* out, int index) {
    __shared__ int small[8];
    small[index] = 1;
    __syncthreads();
    *out = small[index];
}
extern "C" __global__ void shift_and_divide(int* out, int by, int divisor) { *out = (1 << by) / divisor; }
extern "C" __global__ void never_written(unsigned* out) {
    __shared__ unsigned shared;
    DYNAMIC_SHARED(memory);
    out[0] = shared;
    out[1] = *(unsigned*)memory;
    shared = *(unsigned*)memory = blockIdx.x;
}
// Every thread reads what the first one writes, without a barrier: right from first to last, wrong in reverse.
extern "C" __global__ void race(int* out) {
    __shared__ int value;
    if (threadIdx.x == 0) value = 7;
    out[threadIdx.x] = value;
}
static __device__ __noinline__ int deeper(int n) {
    volatile char much[8192];
    much[n] = n > 0 ? deeper(n - 1) : 1;
    return much[n] + 1;
}
extern "C" __global__ void deep(int* out, int n) { *out = deeper(n); }
