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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use moli_kernels::SUPPORTED;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    /// The names of a folder's files, in order.
    fn names(name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(folder(name)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// `fingerprint` of scripts/compile-kernels.py, computed the same way.
    #[test]
    fn ptx_is_that_of_the_sources() {
        let mut state = 0xcbf2_9ce4_8422_2325_u64;
        for name in names("kernels") {
            let text = std::fs::read(folder("kernels").join(&name)).unwrap();
            for byte in name.bytes().chain(text) {
                state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        let committed = std::fs::read_to_string(folder("ptx/fingerprint")).unwrap();
        assert_eq!(committed.trim(), format!("{state:016x}"), "run scripts/compile-kernels.py");
    }

    /// Each line of modules.txt: a name, a source, and definitions.
    fn listed() -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(folder("kernels/modules.txt")).unwrap();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    #[test]
    fn modules_are_those_that_are_listed() {
        let mut listed: Vec<String> = listed().into_iter().map(|mut line| line.swap_remove(0)).collect();
        let mut included: Vec<&str> = MODULES.iter().map(|(name, _)| *name).collect();
        included.sort_unstable();
        listed.sort();
        assert_eq!(included, listed);
        let mut files: Vec<String> = listed.iter().map(|name| format!("{name}.ptx")).collect();
        files.push("fingerprint".to_owned());
        files.sort();
        assert_eq!(names("ptx"), files);
    }

    /// What every driver since that of CUDA 12.0 takes, for every device since compute capability 8.0.
    #[test]
    fn ptx_is_for_the_oldest_driver_and_device() {
        let (version, (major, minor)) = (crate::driver::VERSION, crate::driver::CAPABILITY);
        assert_eq!(version, 12_000);
        for (name, text) in MODULES {
            let directive = |directive: &str| {
                text.lines().filter_map(|line| line.strip_prefix(directive)).collect::<Vec<_>>()
            };
            // The PTX version of CUDA 12.0.
            assert_eq!(directive(".version "), ["8.0"], "{name}");
            assert_eq!(directive(".target "), [format!("sm_{major}{minor}")], "{name}");
        }
    }

    /// `LEN`, `BODY`, `HEAD`, `HALVES` and `MIN` of a format in formats.cuh.
    fn constants(format: &str) -> [usize; 5] {
        let text = include_str!("../kernels/formats.cuh");
        let (_, rest) = text.split_once(&format!("struct {format} {{")).unwrap();
        let (list, _) = rest.split_once("enum {").unwrap().1.split_once('}').unwrap();
        let values: Vec<(&str, usize)> = list
            .split(',')
            .map(|item| item.trim().split_once(" = ").unwrap())
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect();
        ["LEN", "BODY", "HEAD", "HALVES", "MIN"]
            .map(|name| values.iter().find(|(found, _)| *found == name).unwrap().1)
    }

    #[test]
    fn formats_are_those_of_the_kernels() {
        let listed = listed();
        for ttype in SUPPORTED {
            let name = ttype.name().to_lowercase();
            let line = listed.iter().find(|line| line[0] == name).unwrap();
            if ttype.block_len() == 1 {
                let type_name = format!("TYPE={}", ttype.name());
                assert_eq!(line[1..], ["float_product.cu".to_owned(), type_name, format!("NAME={name}")]);
                continue;
            }
            let format = format!("FORMAT={}", ttype.name());
            assert_eq!(line[1..], ["quantized.cu".to_owned(), format, format!("NAME={name}")]);
            let [len, body, own, halves, min] = constants(ttype.name());
            assert_eq!((len, body + own), (ttype.block_len(), ttype.block_bytes()), "{name}");
            assert_eq!(own, head(ttype).map_or(0, |(bytes, _)| bytes), "{name}");
            assert_eq!((halves == 1, min == 1), scales(ttype), "{name}");
            // What is read in whole words lies at whole words.
            assert!(body % 4 == 0 && own % 2 == 0 || ttype == TensorType::MXFP4, "{name}");
        }
    }
}
