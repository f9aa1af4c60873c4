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
    /// x86-64 with AMX for bytes besides those (from Sapphire Rapids on): for products of 64 tokens and more.
    Avx512Amx,
    /// Any aarch64.
    Neon,
    /// aarch64 with the dot products of bytes (from Cortex-A55 and A75 on).
    NeonDot,
    /// aarch64 with the matrix products of bytes besides those (from Cortex-A510 and Neoverse V1 on).
    NeonI8mm,
}

impl Isa {
    /// Every instruction set, those of one kind of processor from the plainest to the best.
    pub const ALL: [Self; 7] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512Vnni,
        Self::Avx512Amx,
        Self::Neon,
        Self::NeonDot,
        Self::NeonI8mm,
    ];

    /// The best instruction set of this processor.
    ///
    /// The environment variable `MOLI_ISA`, a [name](Self::name), lowers it and never raises it: what this processor does
    /// not have is ignored, and so is any other value.
    #[must_use]
    pub fn detect() -> Self {
        let wanted = std::env::var("MOLI_ISA").ok().and_then(|name| Self::from_name(&name));
        Self::best_up_to(wanted)
    }

    // The sets of one kind of processor contain each other, so one that is missing limits nothing.
    fn best_up_to(limit: Option<Self>) -> Self {
        let best = Self::available().last().copied().unwrap_or(Self::Scalar);
        limit.filter(|isa| isa.is_available()).unwrap_or(best)
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
            Self::Avx512Amx => Avx512Amx::new().is_some(),
            Self::Neon => Neon::new().is_some(),
            Self::NeonDot => NeonDot::new().is_some(),
            Self::NeonI8mm => NeonI8mm::new().is_some(),
        }
    }

    /// The name in lower case, as `MOLI_ISA` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Amx => "avx512amx",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
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

/// Proof that this processor has AMX for bytes, that Linux lets this process use it, and all that [`Avx512Vnni`] proves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Amx(());

impl Avx512Amx {
    /// Looks at the processor, and asks Linux for the tiles, once: it refuses where a thread's stack for signals has no room for
    /// them.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        {
            static ALLOWED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
            if Avx512Vnni::new().is_some() && *ALLOWED.get_or_init(|| amx::in_processor() && amx::allowed()) {
                return Some(Self(()));
            }
        }
        None
    }
}

/// The standard library does not know AMX yet.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code)]
mod amx {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// AMX's tiles and its products of bytes (CPUID leaf 7, EDX; Intel's manual, volume 2A).
    pub(super) fn in_processor() -> bool {
        const TILES: u32 = 1 << 24;
        const BYTES: u32 = 1 << 25;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (TILES | BYTES) == TILES | BYTES
    }

    /// Linux's answer to `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, which speaks for all threads; it fails where
    /// the kernel knows no tiles.
    pub(super) fn allowed() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XFEATURE_XTILEDATA: i64 = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: this call reads and writes no memory of the process.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}

/// Proof that this processor has NEON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// Looks at the processor.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Some(Self(()));
        }
        None
    }
}

/// Proof that this processor has NEON with the dot products of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NeonDot(());

impl NeonDot {
    /// Looks at the processor.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if Neon::new().is_some() && std::arch::is_aarch64_feature_detected!("dotprod") {
            return Some(Self(()));
        }
        None
    }
}

/// Proof that this processor has NEON with the dot and matrix products of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NeonI8mm(());

impl NeonI8mm {
    /// Looks at the processor.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if NeonDot::new().is_some() && std::arch::is_aarch64_feature_detected!("i8mm") {
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
        let best = Isa::best_up_to(None);
        assert_eq!(Isa::available().last(), Some(&best));
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(&isa.name().to_uppercase()), Some(isa));
            // A name of another kind of processor limits nothing.
            let expected = if isa.is_available() { isa } else { best };
            assert_eq!(Isa::best_up_to(Some(isa)), expected);
        }
        assert_eq!(Isa::from_name("sse9"), None);
    }
}
