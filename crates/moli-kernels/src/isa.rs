//! Instruction sets, and proofs that this processor has them.

use std::fmt;

/// An instruction set that has kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain code for any processor: the truth that the others are tested against.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VNNI besides those.
    Avx512Vnni,
}

impl Isa {
    /// Every instruction set, from the plainest to the best.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512Vnni];

    /// The best instruction set of this processor.
    ///
    /// The environment variable `MOLI_ISA` (`scalar`, `avx2` or `avx512vnni`) lowers it and never raises it; another
    /// value is ignored.
    #[must_use]
    pub fn detect() -> Self {
        let wanted = std::env::var("MOLI_ISA").ok().and_then(|name| Self::from_name(&name));
        Self::best_up_to(wanted.unwrap_or(Self::Avx512Vnni))
    }

    fn best_up_to(limit: Self) -> Self {
        Self::ALL.into_iter().rfind(|isa| *isa <= limit && isa.is_available()).unwrap_or(Self::Scalar)
    }

    /// The instruction sets of this processor, from the plainest to the best.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// True if this processor has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Avx2 => Avx2::new().is_some(),
            Self::Avx512Vnni => Avx512Vnni::new().is_some(),
        }
    }

    /// The name in lower case, as `MOLI_ISA` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512vnni",
        }
    }

    /// The instruction set of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Proof that this processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Looks at the processor.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Some(Self(()));
        }
        None
    }
}

/// Proof that this processor has AVX-512 F, BW, VL and VNNI, and all that [`Avx2`] proves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni(());

impl Avx512Vnni {
    /// Looks at the processor.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
        {
            return Some(Self(()));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_a_limit_only_lowers() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(&isa.name().to_uppercase()), Some(isa));
            assert!(Isa::best_up_to(isa) <= isa);
            assert!(Isa::best_up_to(isa).is_available());
        }
        assert_eq!(Isa::from_name("sse9"), None);
        assert_eq!(Isa::best_up_to(Isa::Scalar), Isa::Scalar);
        assert_eq!(Isa::available().last(), Some(&Isa::best_up_to(Isa::Avx512Vnni)));
    }
}
