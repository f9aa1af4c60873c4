//! The kernels as PTX: text that the driver compiles for its device when it is loaded, and keeps compiled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, sys};
use moli_format::TensorType;

use crate::CudaError;
use crate::driver::failed;

macro_rules! modules {
    ($($name:literal)*) => {
        /// Every module by its name.
        pub(crate) const MODULES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../ptx/", $name, ".ptx")))),*];
    };
}
modules! {
    "activations" "attention" "gemm" "peak" "recurrent" "f32" "f16" "bf16" "q4_0" "q4_1" "q5_0" "q5_1" "q8_0" "q2_k" "q3_k" "q4_k" "q5_k" "q6_k"
    "iq1_s" "iq1_m" "iq2_xxs" "iq2_xs" "iq2_s" "iq3_xxs" "iq3_s" "iq4_nl" "iq4_xs" "tq1_0" "tq2_0" "mxfp4" "nvfp4"
}

/// A loaded module.
pub(crate) struct Module(Arc<CudaModule>);

impl Module {
    pub(crate) fn load(context: &Arc<CudaContext>, name: &str) -> Result<Self, CudaError> {
        let text = MODULES.iter().find(|(module, _)| *module == name).map_or("", |(_, text)| text);
        let module = context.load_module(cudarc::nvrtc::Ptx::from_src(text));
        Ok(Self(module.map_err(|error| failed("loading the kernels", error))?))
    }

    pub(crate) fn function(&self, name: &str) -> Result<CudaFunction, CudaError> {
        self.0.load_function(name).map_err(|error| failed("looking for a kernel", error))
    }

    /// A function that takes up to so many bytes of dynamic shared memory.
    pub(crate) fn function_with_shared(&self, name: &str, bytes: usize) -> Result<CudaFunction, CudaError> {
        let function = self.function(name)?;
        let limit = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        function.set_attribute(limit, bytes).map_err(|error| failed("asking for shared memory", error))?;
        Ok(function)
    }
}

/// The kernels of a type of weights.
pub(crate) struct Format {
    /// For at most 1, 4 and 8 rows of activations.
    pub(crate) matvec: [(usize, CudaFunction); 3],
    pub(crate) rest: Rest,
}

/// What else there is of a type.
pub(crate) enum Rest {
    /// Products of many rows, and rows as f32.
    Float { gemm: CudaFunction, rows: CudaFunction },
    /// Rows as bytes with scales. `halves`: a scale for each 16 of them; `min`: whether there are minima.
    Quantized { unpack: CudaFunction, halves: bool, min: bool },
}

/// The kernels of the types that were needed so far.
pub(crate) struct Formats {
    context: Arc<CudaContext>,
    loaded: Mutex<HashMap<TensorType, Arc<Format>>>,
}

impl Formats {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Self {
        Self { context: context.clone(), loaded: Mutex::default() }
    }

    pub(crate) fn get(&self, ttype: TensorType) -> Result<Arc<Format>, CudaError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(format) = loaded.get(&ttype) {
            return Ok(format.clone());
        }
        let name = ttype.name().to_lowercase();
        let module = Module::load(&self.context, &name)?;
        let function = |stem: &str| module.function(&format!("{stem}_{name}"));
        let rest = if ttype.block_len() == 1 {
            Rest::Float { gemm: function("gemm")?, rows: function("rows")? }
        } else {
            let (halves, min) = scales(ttype);
            Rest::Quantized { unpack: function("unpack")?, halves, min }
        };
        let matvec = [(1, function("matvec1")?), (4, function("matvec4")?), (8, function("matvec8")?)];
        let format = Arc::new(Format { matvec, rest });
        loaded.insert(ttype, format.clone());
        Ok(format)
    }
}

/// Whether a type's unpacked form has a scale for each half of 32 bytes, and whether it has minima: `HALVES` and `MIN` of
/// `kernels/formats.cuh`.
pub(crate) fn scales(ttype: TensorType) -> (bool, bool) {
    use TensorType::*;
    let halves = matches!(ttype, Q2K | Q3K | Q6K | IQ1M | IQ2XS | IQ2S | NVFP4);
    (halves, matches!(ttype, Q4_1 | Q5_1 | Q2K | Q4K | Q5K))
}

/// How many bytes of a block are kept apart from the rest, and whether they are its last: `HEAD` of `kernels/formats.cuh`.
pub(crate) fn head(ttype: TensorType) -> Option<(usize, bool)> {
    use TensorType::*;
    match ttype {
        Q4_0 | Q5_0 | Q8_0 | IQ4NL | IQ1S | IQ2XXS | IQ2XS | IQ2S | IQ3XXS | IQ3S => Some((2, false)),
        Q4_1 | Q5_1 | NVFP4 => Some((4, false)),
        MXFP4 => Some((1, false)),
        Q3K | Q6K | TQ1_0 | TQ2_0 => Some((2, true)),
        Q2K => Some((4, true)),
        _ => None,
    }
}
