//! A GPU that is in use: its kernels, its one stream, and what products work in.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig};

use crate::driver::{self, DeviceInfo, failed};
use crate::memory::{Array, Number};
use crate::modules::{Formats, Module};
use crate::{CudaError, attention, product, recurrent};

/// A GPU.
///
/// Everything that is asked of it is done in order, some time later: what fails is reported by the call itself, or by the
/// next one that waits, which is reading something back.
pub struct Gpu {
    info: DeviceInfo,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) formats: Formats,
    pub(crate) kernels: Kernels,
    /// The grids of the IQ formats.
    pub(crate) codebooks: Array<u32>,
    pub(crate) products: product::Scratch,
    pub(crate) attention: attention::Scratch,
    /// The runs of recurrent layers that were brought to the device last, and where they are.
    pub(crate) runs: (Vec<u32>, Array<u32>),
}

/// The kernels that don't depend on a type of weights.
pub(crate) struct Kernels {
    pub(crate) quantize: CudaFunction,
    pub(crate) rms_norm: CudaFunction,
    pub(crate) layer_norm: CudaFunction,
    pub(crate) rope: CudaFunction,
    pub(crate) gated: CudaFunction,
    pub(crate) activate: CudaFunction,
    pub(crate) scale: CudaFunction,
    pub(crate) add: CudaFunction,
    pub(crate) soft_cap: CudaFunction,
    pub(crate) copy_columns: CudaFunction,
    pub(crate) select: CudaFunction,
    pub(crate) scatter_add: CudaFunction,
    pub(crate) unpacked_to_float: CudaFunction,
    /// By halves and minima.
    pub(crate) gemm: [[CudaFunction; 2]; 2],
    pub(crate) attention: [CudaFunction; attention::FORMS.len()],
    pub(crate) merge_spans: CudaFunction,
    pub(crate) store_kv: CudaFunction,
    pub(crate) store_kv_q8_0: CudaFunction,
    pub(crate) gate_sigmoid: CudaFunction,
    pub(crate) multiply: CudaFunction,
    pub(crate) short_conv: CudaFunction,
    pub(crate) short_conv_state: CudaFunction,
    pub(crate) delta_gates: CudaFunction,
    pub(crate) delta_units: CudaFunction,
    pub(crate) delta_rule: CudaFunction,
}

impl Kernels {
    fn load(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        let of = |name: &str| Module::load(context, name);
        let (activations, attention, gemm) = (of("activations")?, of("attention")?, of("gemm")?);
        let states = of("recurrent")?;
        let f = |name: &str| activations.function(name);
        let product =
            |name: &str, scales: usize| gemm.function_with_shared(name, product::tile_bytes(scales));
        let form = |form: &attention::Form| {
            attention.function_with_shared(form.name, form.shared_bytes(form.widest))
        };
        let [a, b, c, d] = &attention::FORMS;
        Ok(Self {
            quantize: f("quantize")?,
            rms_norm: f("rms_norm")?,
            layer_norm: f("layer_norm")?,
            rope: f("rope")?,
            gated: f("gated")?,
            activate: f("activate")?,
            scale: f("scale")?,
            add: f("add")?,
            soft_cap: f("soft_cap")?,
            copy_columns: f("copy_columns")?,
            select: f("select")?,
            scatter_add: f("scatter_add")?,
            unpacked_to_float: gemm.function("unpacked_to_float")?,
            gemm: [
                [product("gemm", 1)?, product("gemm_min", 2)?],
                [product("gemm_halves", 2)?, product("gemm_halves_min", 4)?],
            ],
            attention: [form(a)?, form(b)?, form(c)?, form(d)?],
            merge_spans: attention.function("merge_spans")?,
            store_kv: attention.function("store_kv")?,
            store_kv_q8_0: attention.function("store_kv_q8_0")?,
            gate_sigmoid: states.function("gate_sigmoid")?,
            multiply: states.function("multiply")?,
            short_conv: states.function("short_conv")?,
            short_conv_state: states.function("short_conv_state")?,
            delta_gates: states.function("delta_gates")?,
            delta_units: states.function("delta_units")?,
            delta_rule: states.function_with_shared("delta_rule", recurrent::STATE_BYTES)?,
        })
    }
}

impl Gpu {
    /// Takes the GPU of this number into use.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] and [`CudaError::NoDevice`] where there is none, [`CudaError::DeviceIndex`] for a number that is
    /// not one of them, [`CudaError::Capability`] and [`CudaError::DriverTooOld`] for what the kernels don't run on, or what the
    /// driver reports.
    pub fn open(index: usize) -> Result<Self, CudaError> {
        let (context, info) = driver::opened(index)?;
        // SAFETY: there is one stream, so nothing has to be told of what another one does with the same memory.
        #[allow(unsafe_code)]
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(|error| failed("making a stream", error))?;
        let words = moli_kernels::codebooks();
        let mut codebooks = Array::new(&stream, "the grids of quantised formats", words.len())?;
        codebooks.write(&stream, 0, &words)?;
        Ok(Self {
            kernels: Kernels::load(&context)?,
            formats: Formats::new(&context),
            products: product::Scratch::new(&stream)?,
            attention: attention::Scratch::new(&stream)?,
            runs: (Vec::new(), Array::new(&stream, "the runs of a batch", 0)?),
            codebooks,
            info,
            stream,
            context,
        })
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Bytes of its memory that nobody uses now.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        let told = self.context.mem_get_info().map_err(|error| failed("asking for free memory", error))?;
        Ok(told.0 as u64)
    }

    /// Elements in its memory, which hold nothing yet.
    pub(crate) fn array<T: Number>(&self, what: &'static str, len: usize) -> Result<Array<T>, CudaError> {
        Array::new(&self.stream, what, len)
    }

    /// A vector in its memory.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or what the driver reports.
    pub fn vector(&self, values: &[f32]) -> Result<Array<f32>, CudaError> {
        let mut array = self.array("a vector of weights", values.len())?;
        array.write(&self.stream, 0, values)?;
        Ok(array)
    }
}

/// A grid of blocks of `threads` threads, with `shared` bytes of dynamic shared memory each.
pub(crate) fn grid(
    blocks: (usize, usize, usize),
    threads: usize,
    shared: usize,
) -> Result<LaunchConfig, CudaError> {
    let fits = |blocks: usize, most: usize| match u32::try_from(blocks) {
        Ok(number) if blocks <= most => Ok(number),
        _ => Err(CudaError::Shape { what: "blocks of a launch", expected: most, actual: blocks }),
    };
    Ok(LaunchConfig {
        grid_dim: (fits(blocks.0, i32::MAX as usize)?, fits(blocks.1, 65_535)?, fits(blocks.2, 65_535)?),
        block_dim: (fits(threads, 1024)?, 1, 1),
        shared_mem_bytes: fits(shared, i32::MAX as usize)?,
    })
}

/// A grid with a thread for each of `count` elements.
pub(crate) fn each(count: usize) -> Result<LaunchConfig, CudaError> {
    grid((count.div_ceil(256), 1, 1), 256, 0)
}

/// A number as kernels take it.
pub(crate) fn int(what: &'static str, number: usize) -> Result<i32, CudaError> {
    i32::try_from(number).map_err(|_| CudaError::Shape { what, expected: i32::MAX as usize, actual: number })
}

/// Launches a kernel with these arguments, each of the type that it has in the kernel: an address (`u64`), an `i32`, `u32`, `u64`
/// or `f32`, or a structure. The shapes have been checked by the caller.
macro_rules! launch {
    ($gpu:expr, $function:expr, $grid:expr; $($argument:expr),* $(,)?) => {{
        let mut builder = $gpu.stream.launch_builder(&$function);
        launch!(@push builder; $($argument),*);
        // SAFETY: the arguments are those of the kernel, and it stays within the arrays whose shapes were checked.
        #[allow(unsafe_code)]
        let launched = unsafe { builder.launch($grid) };
        launched.map(drop).map_err(|error| crate::driver::failed("starting a kernel", error))
    }};
    (@push $builder:ident; $first:expr $(, $rest:expr)*) => {
        let first = $first;
        cudarc::driver::PushKernelArg::arg(&mut $builder, &first);
        launch!(@push $builder; $($rest),*);
    };
    (@push $builder:ident;) => {};
}
pub(crate) use launch;
