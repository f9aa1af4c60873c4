//! Formats whose quantised values are numbers of entries in a codebook, a *grid*: each stands for 8 values, or 4, which get
//! signs of their own.

use moli_format::TensorType;

use super::blocks::*;
use super::unpack::{Format, Unpacked, formats};

/// The grids one after the other, as `scripts/block-fixtures.py` writes them: 16 bits for each entry, of which each of its
/// values has 2 or 4, the first value lowest. They are numbers of the grid's levels.
const GRIDS: &[u8; 2 * 4608] = include_bytes!("grids.bin");

const IQ2_LEVELS: [i8; 3] = [8, 25, 43];

/// The entries of 8 values from number `at` of all.
const fn eights<const N: usize>(at: usize, levels: [i8; 3]) -> [[i8; 8]; N] {
    let mut grid = [[0; 8]; N];
    let mut n = 0;
    while n < N {
        let mut k = 0;
        while k < 8 {
            grid[n][k] = levels[(GRIDS[2 * (at + n) + k / 4] >> (2 * (k % 4)) & 3) as usize];
            k += 1;
        }
        n += 1;
    }
    grid
}

/// The entries of 4 values from number `at` of all.
const fn fours<const N: usize>(at: usize, levels: [i8; 8]) -> [[i8; 4]; N] {
    let mut grid = [[0; 4]; N];
    let mut n = 0;
    while n < N {
        let mut k = 0;
        while k < 4 {
            grid[n][k] = levels[(GRIDS[2 * (at + n) + k / 2] >> (4 * (k % 2)) & 7) as usize];
            k += 1;
        }
        n += 1;
    }
    grid
}

pub(crate) static IQ2XXS_GRID: [[i8; 8]; 256] = eights(0, IQ2_LEVELS);
pub(crate) static IQ2XS_GRID: [[i8; 8]; 512] = eights(256, IQ2_LEVELS);
pub(crate) static IQ2S_GRID: [[i8; 8]; 1024] = eights(768, IQ2_LEVELS);
/// Eight times the values, so that an eighth is 1.
pub(crate) static IQ1_GRID: [[i8; 8]; 2048] = eights(1792, [-8, 0, 8]);
pub(crate) static IQ3XXS_GRID: [[i8; 4]; 256] = fours(3840, [4, 12, 20, 28, 36, 44, 52, 62]);
pub(crate) static IQ3S_GRID: [[i8; 4]; 512] = fours(4096, [1, 3, 5, 7, 9, 11, 13, 15]);

/// All grids as words of four values, one after the other: of IQ2_XXS, IQ2_XS, IQ2_S and IQ1 two for each entry, of IQ3_XXS and IQ3_S
/// one. What a device without this crate's kernels unpacks the formats with; the values of IQ1 are eight times what they stand
/// for.
#[must_use]
pub fn codebooks() -> Vec<u32> {
    let eights: [&[[i8; 8]]; 4] = [&IQ2XXS_GRID, &IQ2XS_GRID, &IQ2S_GRID, &IQ1_GRID];
    let fours: [&[[i8; 4]]; 2] = [&IQ3XXS_GRID, &IQ3S_GRID];
    let values = eights.iter().flat_map(|grid| grid.as_flattened());
    let values = values.chain(fours.iter().flat_map(|grid| grid.as_flattened()));
    let values: Vec<u8> = values.map(|value| value.cast_unsigned()).collect();
    values.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// For each byte of signs: -1 where there is one, else 0.
static SIGNS: [[i8; 8]; 256] = {
    let mut masks = [[0; 8]; 256];
    let mut n = 0;
    while n < 256 {
        let mut k = 0;
        while k < 8 {
            masks[n][k] = -((n >> k & 1) as i8);
            k += 1;
        }
        n += 1;
    }
    masks
};

/// Values with their signs.
#[inline(always)]
fn signed(values: [i8; 8], signs: u8) -> [i8; 8] {
    let masks = SIGNS[usize::from(signs)];
    std::array::from_fn(|k| (values[k] ^ masks[k]).wrapping_sub(masks[k]))
}

/// The low seven bits, and an eighth that makes the number of ones even.
#[inline(always)]
fn even(bits: u32) -> u8 {
    let bits = (bits & 127) as u8;
    let half = bits ^ bits >> 4;
    bits | ((0x6996 >> (half & 15) & 1) as u8) << 7
}

/// Half `i` of these bytes, low halves first, as the scale `2 v + 1`.
#[inline(always)]
fn odd(bytes: &[u8], i: usize) -> i16 {
    i16::from(bytes[i / 2] >> (4 * (i % 2)) & 15) * 2 + 1
}

/// Two entries of 4 values.
#[inline(always)]
fn two([a, b]: [[i8; 4]; 2]) -> [i8; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// Eight times the values of an entry, plus or minus 1.
#[inline(always)]
fn shifted(entry: usize, minus: bool) -> [i8; 8] {
    let eighth = if minus { -1 } else { 1 };
    IQ1_GRID[entry & 2047].map(|v| v + eighth)
}

formats! {
    /// See [`BlockIQ2XXS`].
    IQ2XXS(BlockIQ2XXS) sub 32 max 43 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d) * 0.125;
        let subs = block.qs.iter().zip(&mut out.scales).zip(out.q.as_chunks_mut::<32>().0);
        for ((qs, scale), q) in subs {
            let [a, b, c, d, bits @ ..] = *qs;
            let bits = u32::from_le_bytes(bits);
            *scale = 2 * (bits >> 28) as i16 + 1;
            for ((g, entry), q) in [a, b, c, d].into_iter().enumerate().zip(q.as_chunks_mut::<8>().0) {
                *q = signed(IQ2XXS_GRID[usize::from(entry)], even(bits >> (7 * g)));
            }
        }
    }
    /// See [`BlockIQ2XS`].
    IQ2XS(BlockIQ2XS) sub 16 max 43 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d) * 0.125;
        out.scales = std::array::from_fn(|i| odd(&block.scales, i));
        for (bits, q) in block.qs.iter().zip(out.q.as_chunks_mut::<8>().0) {
            let bits = u16::from_le_bytes(*bits);
            *q = signed(IQ2XS_GRID[usize::from(bits & 511)], even(u32::from(bits >> 9)));
        }
    }
    /// See [`BlockIQ2S`].
    IQ2S(BlockIQ2S) sub 16 max 43 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d) * 0.125;
        out.scales = std::array::from_fn(|i| odd(&block.scales, i));
        for (g, q) in out.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = usize::from(block.qh[g / 4] >> (2 * (g % 4)) & 3);
            *q = signed(IQ2S_GRID[usize::from(block.qs[g]) | high << 8], block.signs[g]);
        }
    }
    /// See [`BlockIQ3XXS`].
    IQ3XXS(BlockIQ3XXS) sub 32 max 62 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d) * 0.25;
        let subs = block.qs.iter().zip(&block.signs).zip(&mut out.scales).zip(out.q.as_chunks_mut::<32>().0);
        for (((qs, bits), scale), q) in subs {
            let bits = u32::from_le_bytes(*bits);
            *scale = 2 * (bits >> 28) as i16 + 1;
            for ((g, entries), q) in qs.as_chunks::<2>().0.iter().enumerate().zip(q.as_chunks_mut::<8>().0) {
                let values = two(entries.map(|entry| IQ3XXS_GRID[usize::from(entry)]));
                *q = signed(values, even(bits >> (7 * g)));
            }
        }
    }
    /// See [`BlockIQ3S`].
    IQ3S(BlockIQ3S) sub 32 max 15 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d);
        for (i, scale) in out.scales.iter_mut().take(8).enumerate() {
            *scale = odd(&block.scales, i);
        }
        for (g, q) in out.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = usize::from(block.qh[g / 4] >> (2 * (g % 4)));
            let [a, b] = block.qs[g].map(usize::from);
            let values = two([IQ3S_GRID[a | (high & 1) << 8], IQ3S_GRID[b | (high >> 1 & 1) << 8]]);
            *q = signed(values, block.signs[g]);
        }
    }
    /// See [`BlockIQ1S`].
    IQ1S(BlockIQ1S) sub 32 max 9 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d) * 0.125;
        let subs = block.qs.iter().zip(&block.qh).zip(&mut out.scales).zip(out.q.as_chunks_mut::<32>().0);
        for (((qs, bits), scale), q) in subs {
            let bits = usize::from(u16::from_le_bytes(*bits));
            *scale = (bits >> 12 & 7) as i16 * 2 + 1;
            for ((g, low), q) in qs.iter().enumerate().zip(q.as_chunks_mut::<8>().0) {
                *q = shifted(usize::from(*low) | (bits >> (3 * g) & 7) << 8, bits >> 15 == 1);
            }
        }
    }
    /// See [`BlockIQ1M`].
    IQ1M(BlockIQ1M) sub 16 max 9 { const SIGNED: bool = true; } |block, out| {
        let scales = block.scales.map(u16::from_le_bytes);
        let d = scales.iter().rev().fold(0, |d, scales| d << 4 | scales >> 12);
        out.d[0] = half(d.to_le_bytes()) * 0.125;
        out.scales = std::array::from_fn(|i| (scales[i / 4] >> (3 * (i % 4)) & 7).cast_signed() * 2 + 1);
        for (g, q) in out.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let bits = usize::from(block.qh[g / 2] >> (4 * (g % 2)) & 15);
            *q = shifted(usize::from(block.qs[g]) | (bits & 7) << 8, bits >> 3 == 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum that `scripts/block-fixtures.py` prints (FNV-1a) of the values that the Python package has.
    fn checksum<const N: usize>(grid: &[[i8; N]]) -> u64 {
        grid.as_flattened().iter().fold(0xcbf2_9ce4_8422_2325, |state, value| {
            (state ^ u64::from(value.cast_unsigned())).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn the_grids_are_those_of_the_reference() {
        assert_eq!(checksum(&IQ2XXS_GRID), 0xbb4e_e025_b5ac_6e8e);
        assert_eq!(checksum(&IQ2XS_GRID), 0xc9b1_ee61_e799_09bd);
        assert_eq!(checksum(&IQ2S_GRID), 0x123e_dd38_a3b6_2b90);
        assert_eq!(checksum(&IQ3XXS_GRID), 0xdfa5_dc83_d6a1_55d5);
        assert_eq!(checksum(&IQ3S_GRID), 0xfa37_020c_25b4_4829);
        assert!(IQ1_GRID.as_flattened().iter().all(|v| v % 8 == 0));
        let ones: Vec<_> = IQ1_GRID.iter().map(|entry| entry.map(|v| v / 8)).collect();
        assert_eq!(checksum(&ones), 0x6703_ed86_3501_ae2e);
    }

    #[test]
    fn signs_are_as_written() {
        let values = [1, 2, 3, 4, 5, 6, 7, 62];
        assert_eq!(signed(values, 0b1000_0001), [-1, 2, 3, 4, 5, 6, 7, -62]);
        for bits in 0..128 {
            assert_eq!(even(bits | 128).count_ones() % 2, 0);
            assert_eq!(u32::from(even(bits)) & 127, bits);
        }
    }
}
