//! The loops of aarch64. Instructions that `std` offers in unstable functions only are written in assembly.

#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::arch::asm;
use std::hint::black_box;

use super::{Loop, ROUNDS};
use crate::Isa;
use crate::isa::{Neon, NeonDot, NeonI8mm};

/// Chains that hide an instruction's latency and fit, with what they are multiplied with, in 32 registers.
const CHAINS: usize = 24;

/// The loop of 8-bit multiply-adds.
pub(super) fn int8(isa: Isa) -> Option<Loop> {
    match isa {
        Isa::Neon => Some(Loop { run: int8_neon, macs: CHAINS * 8 }),
        Isa::NeonDot => Some(Loop { run: int8_dot, macs: CHAINS * 16 }),
        Isa::NeonI8mm => Some(Loop { run: int8_i8mm, macs: CHAINS * 32 }),
        _ => None,
    }
}

/// The loop of f32 multiply-adds.
pub(super) fn f32(isa: Isa) -> Option<Loop> {
    match isa {
        Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => Some(Loop { run: f32_neon, macs: CHAINS * 4 }),
        _ => None,
    }
}

/// Products of bytes, added as i16 as the kernels do while they fit; the widening to i32 that follows now and then is not
/// counted against the peak.
fn int8_neon() {
    #[target_feature(enable = "neon")]
    fn run() {
        let mut sums = black_box([vdupq_n_s16(0); CHAINS]);
        let (w, a) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = vmlal_high_s8(*sum, w, a);
            }
        }
        black_box(sums);
    }
    if Neon::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}

/// A loop of one instruction of three registers, given as its assembly.
macro_rules! assembly {
    ($features:literal, $instruction:literal) => {{
        #[target_feature(enable = $features)]
        fn run() {
            let mut sums = black_box([vdupq_n_s32(0); CHAINS]);
            let (w, a) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    // SAFETY: it touches nothing but its operands.
                    unsafe {
                        asm!($instruction, acc = inout(vreg) *sum, w = in(vreg) w, a = in(vreg) a,
                            options(pure, nomem, nostack, preserves_flags));
                    }
                }
            }
            black_box(sums);
        }
        run
    }};
}

fn int8_dot() {
    let run = assembly!("neon,dotprod", "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b");
    if NeonDot::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}

fn int8_i8mm() {
    let run = assembly!("neon,i8mm", "smmla {acc:v}.4s, {w:v}.16b, {a:v}.16b");
    if NeonI8mm::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}

fn f32_neon() {
    #[target_feature(enable = "neon")]
    fn run() {
        let mut sums = black_box([vdupq_n_f32(1.0); CHAINS]);
        let (factor, term) = (black_box(vdupq_n_f32(0.5)), black_box(vdupq_n_f32(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = vfmaq_f32(term, *sum, factor);
            }
        }
        black_box(sums);
    }
    if Neon::new().is_some() {
        // SAFETY: the processor has it.
        unsafe { run() }
    }
}
