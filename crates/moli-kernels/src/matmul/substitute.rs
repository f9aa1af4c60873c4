//! The AVX-512 form of the product without AVX-512: each of its registers is an array, each operation a loop. It runs the
//! same text as the real one, so the tests reach that text on every processor.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ops::Range;

use moli_format::TensorType;

use super::amx::{self, Operands, Unit};
use super::few::{self, by_tokens};
use super::float::{self, Bf16, F16, F32};
use super::tile::{Panel, Vectors, product as tile_product};
use super::unpack::{Dwords, Rows};
use super::x86::{Avx512, Wide};
use super::{Job, MatmulFn};
use crate::quant::by_type;
use crate::quant::unpack::*;
use crate::vector::Vector;

struct Arrays;

type Int = [i32; 16];
type Float = [f32; 16];

// SAFETY (for the whole block): only the loads and the store touch memory, within the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Wide for Arrays {
    type Int = Int;
    type Float = Float;
    type Rows = std::arch::x86_64::__m256i;

    unsafe fn load_int(from: *const i32) -> Int {
        unsafe { from.cast::<Int>().read_unaligned() }
    }
    unsafe fn splat(v: i32) -> Int {
        [v; 16]
    }
    unsafe fn dpbusd(acc: Int, w: Int, a: Int) -> Int {
        std::array::from_fn(|i| {
            let (w, a) = (w[i].to_le_bytes(), a[i].to_le_bytes().map(u8::cast_signed));
            (0..4).fold(acc[i], |sum, k| sum.wrapping_add(i32::from(w[k]) * i32::from(a[k])))
        })
    }
    unsafe fn dpwssd(acc: Int, w: Int, a: Int) -> Int {
        std::array::from_fn(|i| {
            let product = |shift: i32| i32::from((w[i] >> shift) as i16) * i32::from((a[i] >> shift) as i16);
            acc[i].wrapping_add(product(0)).wrapping_add(product(16))
        })
    }
    unsafe fn ask(lanes: Int, line: *const u8) -> Int {
        unsafe { Self::Rows::prefetch(line) }
        lanes
    }
    unsafe fn add(a: Int, b: Int) -> Int {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    unsafe fn sub(a: Int, b: Int) -> Int {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    unsafe fn mul(a: Int, b: Int) -> Int {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]))
    }
    unsafe fn shift_left(v: Int, bits: i32) -> Int {
        v.map(|v| v << bits)
    }
    unsafe fn high_half(v: Int) -> Int {
        v.map(|v| v >> 16)
    }
    unsafe fn to_float(v: Int) -> Float {
        v.map(|v| v as f32)
    }
    unsafe fn load(from: *const f32) -> Float {
        unsafe { from.cast::<Float>().read_unaligned() }
    }
    unsafe fn store(to: *mut f32, v: Float) {
        unsafe { to.cast::<Float>().write_unaligned(v) }
    }
    unsafe fn splat_float(v: f32) -> Float {
        [v; 16]
    }
    unsafe fn mul_float(a: Float, b: Float) -> Float {
        std::array::from_fn(|i| a[i] * b[i])
    }
    unsafe fn fma(a: Float, b: Float, c: Float) -> Float {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
}

// SAFETY (for the whole block): only the loads and the store touch memory, within the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for Float {
    const LANES: usize = 16;

    unsafe fn splat(v: f32) -> Self {
        [v; 16]
    }
    unsafe fn load(from: *const f32) -> Self {
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { from.cast::<[[u8; 2]; 16]>().read_unaligned() }.map(|b| half::f16::from_le_bytes(b).to_f32())
    }
    unsafe fn splat_f16(from: *const u8) -> Self {
        [half::f16::from_le_bytes(unsafe { from.cast::<[u8; 2]>().read_unaligned() }).to_f32(); 16]
    }
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe { from.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
    }
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe { from.cast::<[[u8; 2]; 16]>().read_unaligned() }
            .map(|b| half::bf16::from_le_bytes(b).to_f32())
    }
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }
    unsafe fn mul(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] * b[i])
    }
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|i| self[i].mul_add(b[i], c[i]))
    }
}

thread_local! {
    /// What the unit keeps: the sums of the product before.
    static KEPT: RefCell<amx::Sums> = const { RefCell::new([[[0; 16]; 2]; amx::TOKENS]) };
}

impl Arrays {
    /// Writes the sums that are kept, and multiplies `columns` columns.
    ///
    /// # Safety
    /// As [`Unit`].
    unsafe fn multiply(operands: Operands, columns: usize, unsigned: bool, before: &mut amx::Sums) {
        let Operands { a, stride, tokens, panels } = operands;
        KEPT.with_borrow_mut(|kept| {
            *before = *kept;
            for (token, sums) in kept.iter_mut().enumerate().take(tokens) {
                for (panel, sums) in sums.iter_mut().enumerate() {
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let product = |column: usize| {
                            // SAFETY: the caller's promise.
                            let (a, w) = unsafe {
                                let w = panels[panel].add(column / 4 * 64 + row * 4 + column % 4);
                                (*a.add(token * stride + column), *w)
                            };
                            let signed = i32::from(w.cast_signed());
                            i32::from(a) * if unsigned && panel == 0 { i32::from(w) } else { signed }
                        };
                        *sum = (0..columns).map(product).sum();
                    }
                }
            }
        });
    }
}

impl Unit for Arrays {
    unsafe fn begin<const K: usize>(tokens: usize) {
        assert!((1..=amx::TOKENS).contains(&tokens));
    }
    unsafe fn wide(operands: Operands, before: &mut amx::Sums) {
        // SAFETY: the caller's promise.
        unsafe { Self::multiply(operands, 256, true, before) }
    }
    unsafe fn narrow(operands: Operands, before: &mut amx::Sums) {
        // SAFETY: the caller's promise.
        unsafe { Self::multiply(operands, 32, false, before) }
    }
    unsafe fn end(_: usize, before: &mut amx::Sums) {
        KEPT.with_borrow(|kept| *before = *kept);
    }
}

/// As [`amx::table`].
pub(super) fn matrix_product(ttype: TensorType) -> MatmulFn {
    /// # Safety
    /// As [`MatmulFn`]; AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Box<Panel>) {
        // SAFETY: the caller's promise.
        unsafe { amx::product::<Arrays, Arrays, F>(job, rows, panel, product(F::TYPE)) }
    }
    let floats = product(ttype);
    by_type!(ttype, run, floats, floats, floats)
}

/// As [`tile::avx512`](super::tile::avx512).
pub(super) fn product(ttype: TensorType) -> MatmulFn {
    /// # Safety
    /// As [`MatmulFn`]; AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Box<Panel>) {
        // SAFETY: the caller's promise.
        unsafe {
            by_tokens!(Avx512<Arrays>, F, at_once(job, rows), otherwise {
                tile_product::<Avx512<Arrays>, Vectors<Avx512<Arrays>>, F>(job, rows, panel);
            });
        }
    }
    /// # Safety
    /// As [`MatmulFn`]; AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn at_once<F: Rows, const T: usize>(job: &Job<'_>, rows: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe { few::product::<Avx512<Arrays>, F, T>(job, rows) }
    }
    /// # Safety
    /// As [`MatmulFn`].
    unsafe fn floats<F: float::Float>(job: &Job<'_>, rows: Range<usize>, _: &mut Box<Panel>) {
        // SAFETY: the caller's promise.
        unsafe { float::product::<Float, F, 1>(job, rows) }
    }
    by_type!(ttype, run, floats::<F32>, floats::<F16>, floats::<Bf16>)
}
