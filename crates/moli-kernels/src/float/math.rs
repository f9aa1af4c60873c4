//! Exponential and its relatives, in one form for every instruction set.
//!
//! Each function is a fixed list of operations that are exactly rounded (add, multiply, fused multiply-add, divide) and
//! of integer operations, without a branch. So a compiler that turns a loop over it into vectors changes no bit, and
//! all instruction sets agree. The errors named here are held by the tests at the end.

/// Adding this to a float below 2^22 rounds it to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
const LN_2_LOW: f32 = (std::f64::consts::LN_2 - std::f32::consts::LN_2 as f64) as f32;

/// `a` where it is greater than `b`, else `b`: the rule of the processor's own maximum. A NaN `a` gives `b`.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Splits `x` so that `e^x = 2^n (1 + q)`, with `x` in -105..=89: `(q, n)`. |q| is at most 0.42.
#[inline(always)]
fn split_exp(x: f32) -> (f32, i32) {
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    // For a NaN this is some number of no meaning; q is NaN then.
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let whole = rounded - ROUND;
    // r = x - n ln 2, |r| <= ln 2 / 2; the second step brings in the digits that ln 2 has beyond an f32.
    let r = whole.mul_add(-std::f32::consts::LN_2, x);
    let r = whole.mul_add(-LN_2_LOW, r);
    // e^r - 1 - r = r^2 (1/2! + r/3! + … + r^5/7!); the next term is below 2^-27.
    let tail = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let tail = tail.mul_add(r, 1.0 / 120.0);
    let tail = tail.mul_add(r, 1.0 / 24.0);
    let tail = tail.mul_add(r, 1.0 / 6.0);
    let tail = tail.mul_add(r, 0.5);
    ((r * r).mul_add(tail, r), n)
}

/// 2^n for n in -126..=127; a number of no meaning beyond.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `e^x` within 1.1 ULP, results below the normal range included; infinity above 88.73, 0 below -103.98, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Written so that a NaN passes both.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let (q, n) = split_exp(x);
    // In two steps, because 2^n itself may be beyond the range in either direction.
    let half = n >> 1;
    (1.0 + q) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `e^x - 1` within 2 ULP, of an x that is not above 88; NaN for NaN.
#[inline(always)]
pub(crate) fn exp_m1(x: f32) -> f32 {
    // From -17.4 on the nearest f32 is -1. Written so that a NaN passes.
    let x = if x < -80.0 { -80.0 } else { x };
    let (q, n) = split_exp(x);
    let power = power_of_two(n);
    power.mul_add(q, power - 1.0)
}

/// The hyperbolic tangent within 2 ULP: (e^2x - 1) / (e^2x + 1), from e^2x - 1 so that nothing cancels near 0.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    // From 9.02 on the nearest f32 is 1. Written so that a NaN passes.
    let a = if a > 10.0 { 10.0 } else { a };
    let (q, n) = split_exp(a + a);
    let power = power_of_two(n);
    let e = power.mul_add(q, power - 1.0);
    // e / (e + 2), with what the sum rounds away (`lost`) and one correction of the quotient.
    let sum = e + 2.0;
    let lost = e - (sum - 2.0);
    let inverse = 1.0 / sum;
    let quotient = e * inverse;
    let rest = (-quotient).mul_add(lost, (-quotient).mul_add(sum, e));
    rest.mul_add(inverse, quotient).copysign(x)
}

/// `x * sigmoid(x) = x / (1 + e^-x)`, within 3 ULP.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `1 / (1 + e^-x)`, within 3 ULP.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)`, within 4 ULP.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    let t = exp(-x.abs());
    // ln(1 + t) = 2 artanh(t / (2 + t)), whose argument is at most 1/3: the first term left out is below 2^-27 of the sum.
    let s = t / (2.0 + t);
    let square = s * s;
    let series = square.mul_add(1.0 / 15.0, 1.0 / 13.0);
    let series = series.mul_add(square, 1.0 / 11.0);
    let series = series.mul_add(square, 1.0 / 9.0);
    let series = series.mul_add(square, 1.0 / 7.0);
    let series = series.mul_add(square, 1.0 / 5.0);
    let series = series.mul_add(square, 1.0 / 3.0);
    let log = 2.0 * (s * square).mul_add(series, s);
    // Written so that a NaN stays one.
    let above = if x < 0.0 { 0.0 } else { x };
    above + log
}

/// `max(x, 0)`; a NaN stays one.
#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// The Gaussian error linear unit in its tanh form: `x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x^3)))`
/// (Hendrycks and Gimpel, arXiv:1606.08415). Within 1e-6 of the formula, relative to max(|x|, 1).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let inner = (0.044_715 * (x * x)).mul_add(x, x);
    (0.5 * x) * (1.0 + tanh(SQRT_2_OVER_PI * inner))
}

/// The error function `erf(x)`, within 1.5e-7: `1 - e^(-|x| P(|x|))` with the sign of `x`.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs();
    // From here on the nearest f32 is 1. Written so that a NaN passes.
    let a = if a > 3.95 { 3.95 } else { a };
    // -ln(1 - erf(a)) / a by a polynomial, whose greatest error of erf is 2.2e-8.
    let p = a.mul_add(3.144_012e-5, -3.088_017e-4);
    let p = p.mul_add(a, 1.032_399_7e-3);
    let p = p.mul_add(a, 5.369_368_6e-4);
    let p = p.mul_add(a, -1.958_396_3e-2);
    let p = p.mul_add(a, 1.029_196_2e-1);
    let p = p.mul_add(a, 6.365_977_5e-1);
    let p = p.mul_add(a, 1.128_380_3);
    let (q, n) = split_exp(-a * p);
    let power = power_of_two(n);
    (-power).mul_add(q, 1.0 - power).copysign(x)
}

/// The Gaussian error linear unit: `x/2 (1 + erf(x/√2))` (Hendrycks and Gimpel, arXiv:1606.08415). Within 1.5e-7 of the
/// formula, relative to max(|x|, 1).
#[inline(always)]
pub fn gelu_erf(x: f32) -> f32 {
    (0.5 * x) * (1.0 + erf(std::f32::consts::FRAC_1_SQRT_2 * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many f32 steps lie between `got` and the real number `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = want as f32;
        if near.is_infinite() || near == 0.0 {
            return if got == near { 0.0 } else { f64::INFINITY };
        }
        let exponent = (near.abs().to_bits() >> 23).max(1) as i32 - 127 - 23;
        (f64::from(got) - want).abs() / 2f64.powi(exponent)
    }

    /// The worst error of `f` over floats of all sizes in `low..=high` and an even grid.
    fn worst(low: f32, high: f32, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f32) {
        let grid = (0..=2_000_000).map(|i| low + (high - low) * (i as f32 / 2e6));
        let sizes = (0..0x7f80_0000u32).step_by(4099).flat_map(|b| [f32::from_bits(b), -f32::from_bits(b)]);
        let mut worst = (0.0, 0.0);
        for x in grid.chain(sizes).filter(|x| (low..=high).contains(x)) {
            let error = ulps(f(x), exact(f64::from(x)));
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    #[test]
    fn exp_is_within_its_bound() {
        let (error, x) = worst(-103.9, 88.72, exp, f64::exp);
        assert!(error <= 1.1, "{error} ULP at {x}");
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for x in [88.73, 89.0, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
        }
        for x in [-104.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(x).to_bits(), 0, "{x}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-103.9) > 0.0);
    }

    #[test]
    fn tanh_is_within_two_ulp() {
        let (error, x) = worst(-20.0, 20.0, tanh, f64::tanh);
        assert!(error <= 2.0, "{error} ULP at {x}");
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn silu_is_within_three_ulp() {
        let (error, x) = worst(-80.0, 80.0, silu, |x| x / (1.0 + (-x).exp()));
        assert!(error <= 3.0, "{error} ULP at {x}");
        assert!(silu(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_within_three_ulp() {
        let (error, x) = worst(-80.0, 80.0, sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        assert!(error <= 3.0, "{error} ULP at {x}");
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn exp_m1_is_within_two_ulp() {
        let (error, x) = worst(-87.0, 87.0, exp_m1, f64::exp_m1);
        assert!(error <= 2.0, "{error} ULP at {x}");
        assert_eq!(exp_m1(f32::NEG_INFINITY), -1.0);
        assert!(exp_m1(f32::NAN).is_nan());
    }

    #[test]
    fn softplus_is_within_four_ulp() {
        let exact = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let (error, x) = worst(-80.0, 80.0, softplus, exact);
        assert!(error <= 4.0, "{error} ULP at {x}");
        assert_eq!(softplus(1e30), 1e30);
        assert_eq!(softplus(f32::NEG_INFINITY), 0.0);
        assert!(softplus(f32::NAN).is_nan());
    }

    #[test]
    fn relu_is_its_formula() {
        assert_eq!([-3.0, -0.0, 0.0, 2.5, f32::NEG_INFINITY].map(relu), [0.0, 0.0, 0.0, 2.5, 0.0]);
        assert!(relu(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_near_its_formula() {
        for i in -200_000..=200_000 {
            let x = i as f32 / 1e4;
            let y = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y);
            let want = 0.5 * y * (1.0 + inner.tanh());
            assert!((f64::from(gelu(x)) - want).abs() <= 1e-6 * y.abs().max(1.0), "{x}");
        }
        assert!(gelu(f32::NAN).is_nan());
    }

    /// The error function in f64: its series, and far out its continued fraction.
    fn exact_erf(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 3.0 {
            let (mut term, mut sum) = (a, a);
            for n in 1..100 {
                term *= -a * a / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            2.0 / std::f64::consts::PI.sqrt() * sum
        } else {
            let fraction = (1..60).rev().fold(a, |below, k| a + f64::from(k) / 2.0 / below);
            1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / fraction
        };
        value.copysign(x)
    }

    #[test]
    fn gelu_by_erf_is_near_its_formula() {
        assert!((exact_erf(0.5) - 0.520_499_877_813_046_5).abs() < 1e-15);
        assert!((exact_erf(3.0) - 0.999_977_909_503_001_4).abs() < 1e-15);
        for i in -200_000..=200_000 {
            let x = i as f32 / 1e4;
            let y = f64::from(x);
            let want = 0.5 * y * (1.0 + exact_erf(y / std::f64::consts::SQRT_2));
            assert!((f64::from(gelu_erf(x)) - want).abs() <= 1.5e-7 * y.abs().max(1.0), "{x}");
        }
        assert_eq!(gelu_erf(100.0), 100.0);
        assert_eq!(gelu_erf(-100.0), 0.0);
        assert!(gelu_erf(f32::NAN).is_nan());
    }
}
