//! Exponential and logarithm with the same bits on every platform.
//!
//! The standard library's differ in the last place from one C library to the next, and a sampled token hangs on such a
//! place now and then. These use nothing but additions, multiplications and divisions in a fixed order, which IEEE 754
//! defines to the bit. Both are within 2 ulp or so of the exact value.

const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1; // the first 33 bits of ln 2: its multiples by an exponent are exact
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Adding and subtracting it rounds to the nearest integer.
const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52

/// `e^x` for `x <= 0`; values that would be subnormal are 0. Above 0 it is exact enough up to 700; NaN gives 0.
pub(crate) fn exp(x: f64) -> f64 {
    if x.is_nan() || x <= -708.0 {
        return 0.0;
    }
    let x = x.min(709.0);
    let k = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    // |r| <= ln 2 / 2: the Taylor series to the 13th power errs by less than 5e-18.
    const INVERSE_FACTORIALS: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let series = INVERSE_FACTORIALS.iter().fold(0.0, |sum, &c| sum * r + c);
    // k is an integer between -1022 and 1023.
    series * f64::from_bits(((k as i64 + 1023) as u64) << 52)
}

/// The natural logarithm of a positive normal number; minus infinity for 0 and below.
pub(crate) fn ln(x: f64) -> f64 {
    if x.is_nan() || x < f64::MIN_POSITIVE {
        return f64::NEG_INFINITY;
    }
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)), whose argument is at most 0.172: twelve terms err by less than 1e-19.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..12).rev().fold(0.0, |sum, n| sum * square + 1.0 / f64::from(2 * n + 1));
    let exponent = exponent as f64;
    exponent * LN_2_HIGH + (exponent * LN_2_LOW + 2.0 * s * series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_ln_agree_with_the_standard_library() {
        for i in 0..200_000_u32 {
            let x = -f64::from(i) * 0.003_53;
            let (mine, std) = (exp(x), x.exp());
            assert!((mine - std).abs() <= 4e-16 * std, "exp({x}) = {mine}, not {std}");
            let x = 1e-300 * 1.007_f64.powi(i as i32 % 190_000) + f64::from(i);
            let (mine, std) = (ln(x), x.ln());
            assert!((mine - std).abs() <= 4e-16 * std.abs().max(0.05), "ln({x}) = {mine}, not {std}");
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!((exp(0.0), exp(-1e300), exp(f64::NEG_INFINITY), exp(f64::NAN)), (1.0, 0.0, 0.0, 0.0));
        assert_eq!((ln(1.0), ln(0.0), ln(-1.0)), (0.0, f64::NEG_INFINITY, f64::NEG_INFINITY));
        assert!(exp(-707.9) > 0.0);
    }
}
