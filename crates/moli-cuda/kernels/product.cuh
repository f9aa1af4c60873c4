// What the products of quantised matrices have in common: one group's part of a product.
#pragma once

#include "device.cuh"

// The part of a group, of whose first and last 16 bytes the integer dot products with the activations are `i`: with a scale for each
// half or one for all (`HALVES`), with a minimum or without (`MIN`).
template <bool HALVES, bool MIN>
__device__ __forceinline__ float part(const float s[2], const float m[2], const int i[2], const Scale& x) {
    float sum;
    if (HALVES) {
        sum = __fmaf_rn(s[1], float(i[1]), __fmul_rn(s[0], float(i[0])));
        if (MIN) sum = __fmaf_rn(m[1], float(x.sums[1]), __fmaf_rn(m[0], float(x.sums[0]), sum));
    } else {
        sum = __fmul_rn(s[0], float(i[0] + i[1]));
        if (MIN) sum = __fmaf_rn(m[0], float(x.sums[0] + x.sums[1]), sum);
    }
    return __fmul_rn(sum, x.d);
}
