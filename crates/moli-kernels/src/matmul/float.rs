//! The product with unquantised weights, written once over [`Vector`]: 16 virtual lanes are 1, 2 or 4 registers.

#![allow(unsafe_code)]

use std::ops::Range;

use super::Job;
use crate::vector::{Vector, ask_for};

/// An unquantised type of `BYTES` bytes.
pub(super) trait Float {
    const BYTES: usize;
    /// The elements at `from`, exactly.
    ///
    /// # Safety
    /// As [`Vector`].
    unsafe fn load<V: Vector>(from: *const u8) -> V;
}

macro_rules! types {
    ($($name:ident of $bytes:literal bytes: $from:ident => $load:expr;)*) => {$(
        pub(super) struct $name;

        impl Float for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<V: Vector>($from: *const u8) -> V {
                // SAFETY: the caller's promise.
                unsafe { $load }
            }
        }
    )*};
}

types! {
    F32 of 4 bytes: from => V::load(from.cast());
    F16 of 2 bytes: from => V::load_f16(from);
    Bf16 of 2 bytes: from => V::load_bf16(from);
}

/// The outputs `rows` for all tokens, with 16 lanes in `P` registers.
///
/// # Safety
/// As [`MatmulFn`](super::MatmulFn), with the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn product<V: Vector, F: Float, const P: usize>(job: &Job<'_>, rows: Range<usize>) {
    const { assert!(P * V::LANES == 16) }
    let mut token = 0;
    // A few tokens at a time stay in cache for all rows.
    // SAFETY: the caller's promise; the tokens are inside the job.
    unsafe {
        if P == 1 {
            while job.input.rows - token >= 6 {
                rows_of::<V, F, P, 4, 6>(job, &rows, token);
                token += 6;
            }
        }
        while job.input.rows - token >= 3 {
            rows_of::<V, F, P, 2, 3>(job, &rows, token);
            token += 3;
        }
        while token < job.input.rows {
            rows_of::<V, F, P, 4, 1>(job, &rows, token);
            token += 1;
        }
    }
}

/// The outputs `rows` for `T` tokens, `R` rows at a time.
///
/// # Safety
/// As [`product`]; the tokens are inside the job.
#[inline(always)]
unsafe fn rows_of<V: Vector, F: Float, const P: usize, const R: usize, const T: usize>(
    job: &Job<'_>,
    rows: &Range<usize>,
    token: usize,
) {
    let mut row = rows.start;
    // SAFETY: the caller's promise; R rows from `row` are inside the range.
    unsafe {
        while rows.end - row >= R {
            some::<V, F, P, R, T>(job, row, token);
            row += R;
        }
        while row < rows.end {
            some::<V, F, P, 1, T>(job, row, token);
            row += 1;
        }
    }
}

/// `R` rows of weights by `T` tokens.
///
/// # Safety
/// As [`product`]; the rows and tokens are inside the job.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // The indices of three loops meet in `lanes`.
unsafe fn some<V: Vector, F: Float, const P: usize, const R: usize, const T: usize>(
    job: &Job<'_>,
    row: usize,
    token: usize,
) {
    let cols = job.input.cols;
    let whole = cols / 16 * 16;
    // SAFETY: the caller's promise: each row of weights is `cols * F::BYTES` long, each token `cols`, and nothing is read
    // beyond. The outputs are no one else's.
    unsafe {
        let w: [*const u8; R] = std::array::from_fn(|r| job.weights.as_ptr().add((row + r) * job.row_bytes));
        let x: [*const f32; T] = std::array::from_fn(|t| job.input.x.as_ptr().add((token + t) * cols));
        let mut lanes = [[[V::splat(0.0); P]; T]; R];
        for k in (0..whole).step_by(16) {
            // One token is bound by reading, and rows are too short for the processor to see where they go on: the next ones'
            // lines are asked for as these are used.
            if T == 1 && (k * F::BYTES).is_multiple_of(64) {
                for w in w {
                    ask_for(w.wrapping_add(R * job.row_bytes + k * F::BYTES));
                }
            }
            for p in 0..P {
                let x: [V; T] = std::array::from_fn(|t| V::load(x[t].add(k + V::LANES * p)));
                for r in 0..R {
                    let w = F::load(w[r].add((k + V::LANES * p) * F::BYTES));
                    for t in 0..T {
                        lanes[r][t][p] = V::fma(w, x[t], lanes[r][t][p]);
                    }
                }
            }
        }
        let rest = cols - whole;
        for t in 0..T {
            let mut of_token = [[V::splat(0.0); P]; R];
            for r in 0..R {
                of_token[r] = lanes[r][t];
                if rest > 0 {
                    add_rest::<V, F, P>(w[r].add(whole * F::BYTES), x[t].add(whole), rest, &mut of_token[r]);
                }
            }
            job.out.write(token + t, row, &V::sums(of_token));
        }
    }
}

/// Adds the products of the last columns, fewer than 16, to their lanes; the others stay.
///
/// # Safety
/// As [`Vector`]: both have so many columns.
#[inline(always)]
unsafe fn add_rest<V: Vector, F: Float, const P: usize>(
    w: *const u8,
    x: *const f32,
    rest: usize,
    lanes: &mut [V; P],
) {
    let (mut bytes, mut values, mut all) = ([0u8; 64], [0f32; 16], [0f32; 16]);
    // SAFETY: the caller's promise; the arrays hold 16 elements.
    unsafe {
        std::ptr::copy_nonoverlapping(w, bytes.as_mut_ptr(), rest * F::BYTES);
        for (p, lanes) in lanes.iter().enumerate() {
            let value: V = F::load(bytes.as_ptr().add(V::LANES * p * F::BYTES));
            value.store(values.as_mut_ptr().add(V::LANES * p));
            lanes.store(all.as_mut_ptr().add(V::LANES * p));
        }
        for (k, lane) in all.iter_mut().enumerate().take(rest) {
            *lane = values[k].mul_add(*x.add(k), *lane);
        }
        for (p, lanes) in lanes.iter_mut().enumerate() {
            *lanes = V::load(all.as_ptr().add(V::LANES * p));
        }
    }
}
