// What test_kernels.cu includes, as kernels do.
#pragma once

template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int by = 16; by; by /= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
    return x;
}
