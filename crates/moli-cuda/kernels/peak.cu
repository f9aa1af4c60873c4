// What the device can do at most: for `moli bench`, which says how near a model comes to it.

#include "device.cuh"

// Reads all of it. The sum is written where it is a number that it never is, so that nothing of it can be left out.
extern "C" __global__ void __launch_bounds__(256) read_all(const uint4* data, size_t count, u32* out) {
    u32 sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
        const uint4 x = __ldg(data + i);
        sum += x.x ^ x.y ^ x.z ^ x.w;
    }
    if (sum == 0x9e3779b9u && count == 1) out[0] = sum;
}

// Eight chains of products of the matrix units, of 16 * 8 * 32 multiply-adds for each warp and step.
extern "C" __global__ void __launch_bounds__(256) multiply_int8(int steps, u32* out) {
    int c[8][4] = {};
    const u32 a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {threadIdx.x, 5};
    for (int step = 0; step < steps; step++) {
#pragma unroll
        for (int i = 0; i < 8; i++) mma_s8_m16n8k32(c[i], a, b, c[i]);
    }
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += c[i][0] ^ c[i][1] ^ c[i][2] ^ c[i][3];
    if (sum == 0x1e3779b9 && steps == 1) out[0] = sum;
}

// Eight chains of multiply-adds for each thread and step.
extern "C" __global__ void __launch_bounds__(256) multiply_f32(int steps, u32* out) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = float(threadIdx.x + i);
    for (int step = 0; step < steps; step++) {
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = __fmaf_rn(x[i], 0.9999f, 0.5f);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += x[i];
    if (sum == -1.0f) out[0] = 1;
}
