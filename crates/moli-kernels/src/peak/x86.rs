//! The loops of x86-64.

#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::hint::black_box;

use super::{Loop, ROUNDS};
use crate::Isa;
use crate::isa::{Avx2, Avx512Amx, Avx512Vnni};

/// Chains that hide an instruction's latency and fit, with what they are multiplied with, in 16 registers.
const CHAINS: usize = 13;
/// The same for 32 registers.
const WIDE_CHAINS: usize = 20;

/// The loop of 8-bit multiply-adds.
pub(super) fn int8(isa: Isa) -> Option<Loop> {
    match isa {
        Isa::Avx2 => Some(Loop { run: int8_avx2, macs: CHAINS * 32 }),
        Isa::Avx512Vnni => Some(Loop { run: int8_avx512, macs: WIDE_CHAINS * 64 }),
        Isa::Avx512Amx => Some(Loop { run: int8_amx, macs: 4 * 16 * 16 * 64 }),
        _ => None,
    }
}

/// The loop of f32 multiply-adds.
pub(super) fn f32(isa: Isa) -> Option<Loop> {
    match isa {
        Isa::Avx2 => Some(Loop { run: f32_avx2, macs: CHAINS * 8 }),
        Isa::Avx512Vnni | Isa::Avx512Amx => Some(Loop { run: f32_avx512, macs: WIDE_CHAINS * 16 }),
        _ => None,
    }
}

/// Products of bytes, added as i16 as the kernels do while they fit; the widening to i32 that follows now and then is not
/// counted against the peak.
fn int8_avx2() {
    #[target_feature(enable = "avx2")]
    fn run() {
        let mut sums = black_box([_mm256_set1_epi8(3); CHAINS]);
        let a = black_box(_mm256_set1_epi8(5));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                // The weights are the sum itself: other ones each time, so that no product can be taken out of the loop.
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, a));
            }
        }
        black_box(sums);
    }
    if Avx2::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}

fn int8_avx512() {
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn run() {
        let mut sums = black_box([_mm512_setzero_si512(); WIDE_CHAINS]);
        let (w, a) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, a);
            }
        }
        black_box(sums);
    }
    if Avx512Vnni::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}

fn int8_amx() {
    if Avx512Amx::new().is_some() {
        // SAFETY: the processor has it, and the process may use it.
        unsafe { crate::matmul::amx_loop(ROUNDS) }
    }
}

fn f32_avx2() {
    #[target_feature(enable = "avx2,fma")]
    fn run() {
        let mut sums = black_box([_mm256_set1_ps(1.0); CHAINS]);
        let (factor, term) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
    }
    if Avx2::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}

fn f32_avx512() {
    #[target_feature(enable = "avx512f")]
    fn run() {
        let mut sums = black_box([_mm512_set1_ps(1.0); WIDE_CHAINS]);
        let (factor, term) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
    }
    if Avx512Vnni::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}
