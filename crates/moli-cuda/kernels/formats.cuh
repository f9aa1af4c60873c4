// The quantised formats: how a group of 32 weights is taken out of its block.
//
// Every format comes to the same form: 32 bytes with signs, `q`, in the order of the columns, and
//
//     w[k] = s[k / 16] * q[k] + m[k / 16]
//
// where formats with a scale for each 32 have s[0] = s[1], and formats without a minimum have no m. Layouts of blocks are those of
// GGUF files (moli-kernels/src/quant/blocks.rs describes them); what stands before or behind the part of a block that can be read
// in whole words is kept apart, as its head: `body` is `BODY` bytes, a multiple of 4, and `head` is `HEAD` bytes.
#pragma once

#include "device.cuh"

struct Group {
    u32 q[8];
    float s[2];
    float m[2];
};

// The grids of the IQ formats, expanded: see moli-kernels/src/quant/grids.rs.
struct Codebooks {
    u32 iq2xxs[256][2];
    u32 iq2xs[512][2];
    u32 iq2s[1024][2];
    u32 iq1[2048][2];
    u32 iq3xxs[256];
    u32 iq3s[512];
};

__device__ __forceinline__ u32 word(const u8* p) { return __ldg(reinterpret_cast<const u32*>(p)); }
__device__ __forceinline__ uint4 words4(const u8* p) { return __ldg(reinterpret_cast<const uint4*>(p)); }
__device__ __forceinline__ u32 pair(const u8* p) { return __ldg(reinterpret_cast<const u16*>(p)); }
__device__ __forceinline__ u32 byte(const u8* p) { return __ldg(p); }
__device__ __forceinline__ float half_at(const u8* p) { return half_to_float(u16(pair(p))); }

// Four bytes below 128, each less `by`, with signs.
__device__ __forceinline__ u32 minus(u32 x, u32 by) { return ((x | 0x80808080u) - by * 0x01010101u) ^ 0x80808080u; }

// Bit `k` of four bits into byte `k`.
__device__ __forceinline__ u32 spread(u32 bits) { return ((bits & 15u) * 0x00204081u) & 0x01010101u; }

// The low halves of 16 bytes, then their high halves.
__device__ __forceinline__ void halves(uint4 w, u32 q[8]) {
    const u32 in[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        q[i] = in[i] & 0x0f0f0f0fu;
        q[4 + i] = in[i] >> 4 & 0x0f0f0f0fu;
    }
}

__device__ __forceinline__ void one_scale(Group& g, float s) { g.s[0] = g.s[1] = s; }
__device__ __forceinline__ void one_minimum(Group& g, float m) { g.m[0] = g.m[1] = m; }

// Four numbers below 16 in the low halves of the bytes of `x`, each into its level: `levels` are 16 bytes.
__device__ __forceinline__ u32 look_up(u32 x, const u32 levels[4]) {
    // Selectors of three bits in halves of bytes that follow each other.
    u32 low = x & 0x07070707u;
    low = (low | low >> 4) & 0x00ff00ffu;
    low = (low | low >> 8) & 0xffffu;
    const u32 above = (x >> 3 & 0x01010101u) * 0xffu;
    return (__byte_perm(levels[0], levels[1], low) & ~above) | (__byte_perm(levels[2], levels[3], low) & above);
}

__device__ __forceinline__ void iq4_levels(u32 q[8]) {
    // -127 -104 -83 -65  -49 -35 -22 -10  1 13 25 38  53 69 89 113
    const u32 levels[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = look_up(q[i], levels);
}

__device__ __forceinline__ u32 fp4_levels(u32 x) {
    // 0 1 2 3  4 6 8 12  and the same, negative: twice the floats of 2 bits of exponent and 1 of mantissa
    const u32 levels[4] = {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu};
    return look_up(x, levels);
}

// Four values of a grid, none of them 0, with four signs.
__device__ __forceinline__ u32 with_signs(u32 values, u32 signs) {
    const u32 ones = spread(signs);
    return (values ^ ones * 0xffu) + ones;
}

// Seven signs, and an eighth that makes their number even.
__device__ __forceinline__ u32 even(u32 bits) {
    bits &= 127u;
    return bits | (__popc(bits) & 1u) << 7;
}

// Half `i` of the byte, as the scale `2 v + 1`.
__device__ __forceinline__ float odd(u32 byte, int i) { return float(2 * (byte >> (4 * i) & 15u) + 1); }

struct Q4_0 {
    enum { LEN = 32, BODY = 16, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int, const Codebooks*) {
        halves(words4(body), g.q);
#pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] = minus(g.q[i], 8);
        one_scale(g, half_at(head));
    }
};

struct Q4_1 {
    enum { LEN = 32, BODY = 16, HEAD = 4, HALVES = 0, MIN = 1 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int, const Codebooks*) {
        halves(words4(body), g.q);
        one_scale(g, half_at(head));
        one_minimum(g, half_at(head + 2));
    }
};

// The fifth bits of 32 values.
__device__ __forceinline__ void fifth_bits(u32 bits, u32 q[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] |= spread(bits >> (4 * i)) << 4;
}

__device__ __forceinline__ void five_bits(const u8* body, u32 q[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 w = word(body + 4 + 4 * i);
        q[i] = w & 0x0f0f0f0fu;
        q[4 + i] = w >> 4 & 0x0f0f0f0fu;
    }
    fifth_bits(word(body), q);
}

struct Q5_0 {
    enum { LEN = 32, BODY = 20, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int, const Codebooks*) {
        five_bits(body, g.q);
#pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] = minus(g.q[i], 16);
        one_scale(g, half_at(head));
    }
};

struct Q5_1 {
    enum { LEN = 32, BODY = 20, HEAD = 4, HALVES = 0, MIN = 1 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int, const Codebooks*) {
        five_bits(body, g.q);
        one_scale(g, half_at(head));
        one_minimum(g, half_at(head + 2));
    }
};

struct Q8_0 {
    enum { LEN = 32, BODY = 32, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int, const Codebooks*) {
        const uint4 a = words4(body), b = words4(body + 16);
        g.q[0] = a.x, g.q[1] = a.y, g.q[2] = a.z, g.q[3] = a.w;
        g.q[4] = b.x, g.q[5] = b.y, g.q[6] = b.z, g.q[7] = b.w;
        one_scale(g, half_at(head));
    }
};

// Two bits of each of 32 bytes: value `128 n + 32 j + l` in bits `2 j` and up of byte `32 n + l`.
__device__ __forceinline__ void two_bits(const u8* qs, int group, u32 q[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = word(qs + 32 * (group / 4) + 4 * i) >> (2 * (group % 4)) & 0x03030303u;
}

struct Q2_K {
    enum { LEN = 256, BODY = 80, HEAD = 4, HALVES = 1, MIN = 1 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks*) {
        two_bits(body + 16, group, g.q);
        const float d = half_at(head), min = -half_at(head + 2);
        const u32 scales = pair(body + 2 * group);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 both = scales >> (8 * i) & 255u;
            g.s[i] = __fmul_rn(d, float(both & 15u));
            g.m[i] = __fmul_rn(min, float(both >> 4));
        }
    }
};

struct Q3_K {
    enum { LEN = 256, BODY = 108, HEAD = 2, HALVES = 1, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks*) {
        two_bits(body + 32, group, g.q);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 third = word(body + 4 * i) >> group & 0x01010101u;
            g.q[i] = minus(g.q[i] | third << 2, 4);
        }
        const float d = half_at(head);
        const u8* scales = body + 96;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int i = 2 * group + k;
            const u32 low = byte(scales + i % 8) >> (4 * (i / 8)) & 15u;
            const u32 high = byte(scales + 8 + i % 4) >> (2 * (i / 4)) & 3u;
            g.s[k] = __fmul_rn(d, float(int(low | high << 4) - 32));
        }
    }
};

// The scale and the minimum of a group in Q4_K and Q5_K, six bits each.
__device__ __forceinline__ void six_bits(Group& g, const u8* body, int group) {
    const float d = half_at(body), min = -half_at(body + 2);
    const u8* packed = body + 4;
    u32 scale, minimum;
    if (group < 4) {
        scale = byte(packed + group) & 63u;
        minimum = byte(packed + 4 + group) & 63u;
    } else {
        const u32 low = byte(packed + 4 + group);
        scale = (low & 15u) | byte(packed + group - 4) >> 6 << 4;
        minimum = low >> 4 | byte(packed + group) >> 6 << 4;
    }
    one_scale(g, __fmul_rn(d, float(scale)));
    one_minimum(g, __fmul_rn(min, float(minimum)));
}

// The low or the high halves of the 32 bytes that two groups share.
__device__ __forceinline__ void four_bits(const u8* qs, int group, u32 q[8]) {
    const u8* own = qs + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    const uint4 a = words4(own), b = words4(own + 16);
    q[0] = a.x, q[1] = a.y, q[2] = a.z, q[3] = a.w, q[4] = b.x, q[5] = b.y, q[6] = b.z, q[7] = b.w;
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = q[i] >> shift & 0x0f0f0f0fu;
}

struct Q4_K {
    enum { LEN = 256, BODY = 144, HEAD = 0, HALVES = 0, MIN = 1 };
    static __device__ void unpack(Group& g, const u8* body, const u8*, int group, const Codebooks*) {
        four_bits(body + 16, group, g.q);
        six_bits(g, body, group);
    }
};

struct Q5_K {
    enum { LEN = 256, BODY = 176, HEAD = 0, HALVES = 0, MIN = 1 };
    static __device__ void unpack(Group& g, const u8* body, const u8*, int group, const Codebooks*) {
        four_bits(body + 48, group, g.q);
        const uint4 a = words4(body + 16), b = words4(body + 32);
        const u32 fifth[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] |= (fifth[i] >> group & 0x01010101u) << 4;
        six_bits(g, body, group);
    }
};

struct Q6_K {
    enum { LEN = 256, BODY = 208, HEAD = 2, HALVES = 1, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks*) {
        const int n = group / 4, j = group % 4;
        const u8 *low = body + 64 * n + 32 * (j % 2), *high = body + 128 + 32 * n;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 four = word(low + 4 * i) >> (4 * (j / 2)) & 0x0f0f0f0fu;
            const u32 two = word(high + 4 * i) >> (2 * j) & 0x03030303u;
            g.q[i] = minus(four | two << 4, 32);
        }
        const float d = half_at(head);
        const u32 scales = pair(body + 192 + 2 * group);
        g.s[0] = __fmul_rn(d, float(int(i8(scales))));
        g.s[1] = __fmul_rn(d, float(int(i8(scales >> 8))));
    }
};

// Digit `n` of four bytes of five ternary digits each, less 1.
__device__ __forceinline__ u32 digits(u32 bytes, int n) {
    u32 power = 1;
    for (int i = 0; i < n; i++) power *= 3;
    u32 out = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const u32 rest = (bytes >> (8 * k) & 255u) * power & 255u;
        out |= (rest * 3 >> 8) << (8 * k);
    }
    return minus(out, 1);
}

struct TQ1_0 {
    enum { LEN = 256, BODY = 52, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks*) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int k = 32 * group + 4 * i;
            const u8* from = k < 160 ? body + k % 32 : k < 240 ? body + 32 + k % 16 : body + 48;
            const int n = k < 160 ? k / 32 : k < 240 ? k / 16 - 10 : k / 4 % 4;
            g.q[i] = digits(word(from), n);
        }
        one_scale(g, half_at(head));
    }
};

struct TQ2_0 {
    enum { LEN = 256, BODY = 64, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks*) {
        two_bits(body, group, g.q);
#pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] = minus(g.q[i], 1);
        one_scale(g, half_at(head));
    }
};

struct IQ4_NL {
    enum { LEN = 32, BODY = 16, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int, const Codebooks*) {
        halves(words4(body), g.q);
        iq4_levels(g.q);
        one_scale(g, half_at(head));
    }
};

struct IQ4_XS {
    enum { LEN = 256, BODY = 136, HEAD = 0, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8*, int group, const Codebooks*) {
        // Blocks of 136 bytes: every other one lies at 8 beyond a multiple of 16.
        const u8* qs = body + 8 + 16 * group;
        const uint2 a = __ldg(reinterpret_cast<const uint2*>(qs)), b = __ldg(reinterpret_cast<const uint2*>(qs + 8));
        halves(make_uint4(a.x, a.y, b.x, b.y), g.q);
        iq4_levels(g.q);
        const u32 low = byte(body + 4 + group / 2) >> (4 * (group % 2)) & 15u;
        const u32 high = pair(body + 2) >> (2 * group) & 3u;
        one_scale(g, __fmul_rn(half_at(body), float(int(low | high << 4) - 32)));
    }
};

struct MXFP4 {
    enum { LEN = 32, BODY = 16, HEAD = 1, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int, const Codebooks*) {
        halves(words4(body), g.q);
#pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] = fp4_levels(g.q[i]);
        // Half of the power of two, since levels are twice their floats; the first two are below the normal numbers.
        const u32 e = byte(head);
        one_scale(g, __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23));
    }
};

struct NVFP4 {
    enum { LEN = 64, BODY = 32, HEAD = 4, HALVES = 1, MIN = 0 };
    // Half of a float of 4 bits of exponent and 3 of mantissa, without its sign; its NaN counts as 0.
    static __device__ float half_e4m3(u32 byte) {
        const u32 exponent = byte >> 3 & 15u, mantissa = byte & 7u;
        const float power = __uint_as_float((116 + (exponent == 0 ? 1 : exponent)) << 23);
        const float value = __fmul_rn(power, float(exponent == 0 ? mantissa : 8 + mantissa));
        return byte == 0x7fu ? 0.0f : value;
    }
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks*) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const u8* qs = body + 16 * group + 8 * k;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 w = word(qs + 4 * i);
                g.q[4 * k + i] = fp4_levels(w & 0x0f0f0f0fu);
                g.q[4 * k + 2 + i] = fp4_levels(w >> 4 & 0x0f0f0f0fu);
            }
            g.s[k] = half_e4m3(byte(head + 2 * group + k));
        }
    }
};

// Eight values of a grid with eight signs.
__device__ __forceinline__ void eight(u32* q, const u32 entry[2], u32 signs) {
    q[0] = with_signs(__ldg(entry), signs);
    q[1] = with_signs(__ldg(entry + 1), signs >> 4);
}

struct IQ2_XXS {
    enum { LEN = 256, BODY = 64, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks* books) {
        const u32 entries = word(body + 8 * group), bits = word(body + 8 * group + 4);
#pragma unroll
        for (int i = 0; i < 4; i++) eight(g.q + 2 * i, books->iq2xxs[entries >> (8 * i) & 255u], even(bits >> (7 * i)));
        one_scale(g, __fmul_rn(__fmul_rn(half_at(head), 0.125f), float(2 * (bits >> 28) + 1)));
    }
};

struct IQ2_XS {
    enum { LEN = 256, BODY = 72, HEAD = 2, HALVES = 1, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks* books) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 bits = pair(body + 8 * group + 2 * i);
            eight(g.q + 2 * i, books->iq2xs[bits & 511u], even(bits >> 9));
        }
        const float d = __fmul_rn(half_at(head), 0.125f);
        const u32 scales = byte(body + 64 + group);
        g.s[0] = __fmul_rn(d, odd(scales, 0));
        g.s[1] = __fmul_rn(d, odd(scales, 1));
    }
};

struct IQ2_S {
    enum { LEN = 256, BODY = 80, HEAD = 2, HALVES = 1, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks* books) {
        const u32 high = byte(body + 64 + group), low = word(body + 4 * group), signs = word(body + 32 + 4 * group);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 entry = (low >> (8 * i) & 255u) | (high >> (2 * i) & 3u) << 8;
            eight(g.q + 2 * i, books->iq2s[entry], signs >> (8 * i));
        }
        const float d = __fmul_rn(half_at(head), 0.125f);
        const u32 scales = byte(body + 72 + group);
        g.s[0] = __fmul_rn(d, odd(scales, 0));
        g.s[1] = __fmul_rn(d, odd(scales, 1));
    }
};

struct IQ3_XXS {
    enum { LEN = 256, BODY = 96, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks* books) {
        const u32 bits = word(body + 64 + 4 * group);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 entries = pair(body + 8 * group + 2 * i), signs = even(bits >> (7 * i));
            g.q[2 * i] = with_signs(__ldg(&books->iq3xxs[entries & 255u]), signs);
            g.q[2 * i + 1] = with_signs(__ldg(&books->iq3xxs[entries >> 8]), signs >> 4);
        }
        one_scale(g, __fmul_rn(__fmul_rn(half_at(head), 0.25f), float(2 * (bits >> 28) + 1)));
    }
};

struct IQ3_S {
    enum { LEN = 256, BODY = 108, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks* books) {
        const u32 ninth = byte(body + 64 + group), signs = word(body + 72 + 4 * group);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 entry = byte(body + 8 * group + i) | (ninth >> i & 1u) << 8;
            g.q[i] = with_signs(__ldg(&books->iq3s[entry]), signs >> (4 * i));
        }
        one_scale(g, __fmul_rn(half_at(head), odd(byte(body + 104 + group / 2), group % 2)));
    }
};

// Eight times the values of an entry, each plus or minus 1.
__device__ __forceinline__ void shifted(u32* q, const u32 entry[2], bool minus_one) {
    // The values are -8, 0 and 8, so that their lowest three bits are free: 7 more and 8 less are 1 less.
    const u32 low = minus_one ? 0x07070707u : 0x01010101u, eights = minus_one ? 8u : 0u;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 values = __ldg(entry + i);
        // -8, 0, 8 as 8, 16, 24: nothing is borrowed from the byte above.
        const u32 raised = (values ^ 0x80808080u) - (0x80808080u - 0x10101010u);
        q[i] = minus(raised | low, 16 + eights);
    }
}

struct IQ1_S {
    enum { LEN = 256, BODY = 48, HEAD = 2, HALVES = 0, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8* head, int group, const Codebooks* books) {
        const u32 low = word(body + 4 * group), bits = pair(body + 32 + 2 * group);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 entry = (low >> (8 * i) & 255u) | (bits >> (3 * i) & 7u) << 8;
            shifted(g.q + 2 * i, books->iq1[entry], bits >> 15 == 1);
        }
        one_scale(g, __fmul_rn(__fmul_rn(half_at(head), 0.125f), float(2 * (bits >> 12 & 7u) + 1)));
    }
};

struct IQ1_M {
    enum { LEN = 256, BODY = 56, HEAD = 0, HALVES = 1, MIN = 0 };
    static __device__ void unpack(Group& g, const u8* body, const u8*, int group, const Codebooks* books) {
        const u32 low = word(body + 4 * group), highs = pair(body + 32 + 2 * group);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 bits = highs >> (4 * i) & 15u;
            shifted(g.q + 2 * i, books->iq1[(low >> (8 * i) & 255u) | (bits & 7u) << 8], bits >> 3 == 1);
        }
        u32 d = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) d |= (pair(body + 48 + 2 * i) >> 12) << (4 * i);
        const float scale = __fmul_rn(half_to_float(u16(d)), 0.125f);
        const u32 scales = pair(body + 48 + 2 * (group / 2)) >> (6 * (group % 2));
        g.s[0] = __fmul_rn(scale, float(2 * (scales & 7u) + 1));
        g.s[1] = __fmul_rn(scale, float(2 * (scales >> 3 & 7u) + 1));
    }
};
