//! Which instructions this processor has.

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with VNNI and VBMI: four int8 products summed in one step (Ice Lake, Zen 4 and later).
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2 with FMA: int16 products summed by pairs (every x86-64 processor since 2015 or so).
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON with the dot product: as VNNI, of signed bytes (Cortex-A55, A75 and later; not A53, A72, whose f32 layers run by
    /// NEON all the same).
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    /// What every processor of the target has.
    Portable,
}

impl Isa {
    /// The best of this processor.
    #[must_use]
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All that this processor can run, the best first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi") {
                found.push(Self::Vnni);
            }
            if avx2 {
                found.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            found.push(Self::Dotprod);
        }
        found.push(Self::Portable);
        found
    }
}

impl Isa {
    /// Whether f32 layers have kernels that name their instructions.
    #[must_use]
    pub fn has_f32(self) -> bool {
        self != Self::Portable || cfg!(target_arch = "aarch64")
    }

    /// Whether its kernels take int16.
    pub(crate) fn is_wide(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx2 {
            return true;
        }
        false
    }

    /// What its kernels add to each element of a row: VNNI multiplies unsigned bytes by signed ones.
    pub(crate) fn row_offset(self) -> i32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => 128,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 0,
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => 0,
            Self::Portable => 0,
        }
    }
}
