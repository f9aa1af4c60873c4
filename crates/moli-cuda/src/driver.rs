//! The NVIDIA driver, looked for when it is wanted: a program that has this crate starts on every machine.

use std::ffi::CStr;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::CudaError;

/// The least compute capability: the kernels' PTX is made for it.
pub(crate) const CAPABILITY: (i32, i32) = (8, 0);
/// The CUDA version whose drivers take that PTX (`.version 8.0`).
pub(crate) const VERSION: i32 = 12_000;

/// What is called of the driver here and in cudarc, which panics where a function is missing.
const FUNCTIONS: [&str; 32] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetPCIBusId",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number: `cuda:0` is the first.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its place on the PCI bus, `domain:bus:device.function`, by which other tools name it.
    pub pci_bus_id: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// Bytes that nobody uses.
    pub free_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
}

/// The GPUs of this machine that Moli's kernels run on or not, as the driver numbers them.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::NoDevice`], or what the driver reports.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    let count = count()?;
    let all = (0..count).map(|index| info(&*context(index)?, index));
    // One that is broken doesn't hide the others.
    let (found, failed): (Vec<_>, Vec<_>) = all.partition(Result::is_ok);
    match failed.into_iter().next() {
        Some(error) if found.is_empty() => error.map(|info| vec![info]),
        _ => found.into_iter().collect(),
    }
}

/// The GPU of this number, if the kernels run on it.
///
/// # Errors
/// As [`Gpu::open`](crate::Gpu::open).
pub fn usable(index: usize) -> Result<DeviceInfo, CudaError> {
    opened(index).map(|(_, info)| info)
}

/// The same with its context, which takes a device some tenths of a second to make.
pub(crate) fn opened(index: usize) -> Result<(Arc<CudaContext>, DeviceInfo), CudaError> {
    let count = count()?;
    if index >= count {
        return Err(CudaError::DeviceIndex { index, count });
    }
    let version = version()?;
    if version < VERSION {
        return Err(CudaError::DriverTooOld { found: version, needed: VERSION });
    }
    let context = context(index)?;
    let info = info(&context, index)?;
    if info.capability < CAPABILITY {
        let (found, needed) = (info.capability, CAPABILITY);
        return Err(CudaError::Capability { name: info.name, found, needed });
    }
    Ok((context, info))
}

/// How many GPUs there are: at least one.
pub(crate) fn count() -> Result<usize, CudaError> {
    find()?;
    let none = |error: DriverError| {
        let CudaError::Driver { code, message, .. } = failed("starting the driver", error) else {
            return CudaError::NoDriver { reason: error.to_string() };
        };
        CudaError::NoDevice { code, message }
    };
    result::init().map_err(none)?;
    match result::device::get_count().map_err(none)? {
        count @ 1.. => Ok(count as usize),
        _ => Err(CudaError::NoDevice {
            code: "CUDA_SUCCESS".to_owned(),
            message: "it has no devices".to_owned(),
        }),
    }
}

/// Looks whether the library that cudarc will load is a driver.
fn find() -> Result<(), CudaError> {
    let names = ["cuda", "nvcuda"].into_iter().flat_map(cudarc::get_lib_name_candidates);
    for name in names {
        // SAFETY: what initialisers the library has are those of the driver, which is about to be used.
        #[allow(unsafe_code)]
        let Ok(library) = (unsafe { libloading::Library::new(&name) }) else { continue };
        for function in FUNCTIONS {
            // SAFETY: the symbol is only looked for.
            #[allow(unsafe_code)]
            if unsafe { library.get::<*const ()>(function.as_bytes()) }.is_err() {
                return Err(CudaError::NoDriver { reason: format!("{name} has no {function}") });
            }
        }
        return Ok(());
    }
    Err(CudaError::NoDriver { reason: "no libcuda is installed".to_owned() })
}

/// The context of a device that exists.
fn context(index: usize) -> Result<Arc<CudaContext>, CudaError> {
    CudaContext::new(index).map_err(|error| failed("opening the device", error))
}

/// What a device is.
fn info(context: &CudaContext, index: usize) -> Result<DeviceInfo, CudaError> {
    let describe = || {
        let (free, total) = context.mem_get_info()?;
        let count = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(DeviceInfo {
            index,
            name: context.name()?,
            pci_bus_id: pci_bus_id(context)?,
            capability: context.compute_capability()?,
            total_bytes: total as u64,
            free_bytes: free as u64,
            multiprocessors: usize::try_from(context.attribute(count)?).unwrap_or(1).max(1),
        })
    };
    describe().map_err(|error| failed("asking for the device's properties", error))
}

fn pci_bus_id(context: &CudaContext) -> Result<String, DriverError> {
    // Four digits of the domain, or eight, and the end: 16 bytes do, the rest is for what comes.
    let mut text = [0_u8; 32];
    // SAFETY: the function writes no more bytes than it is told, which are the array's.
    #[allow(unsafe_code)]
    let code =
        unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, context.cu_device()) };
    code.result()?;
    let end = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    Ok(end.to_string_lossy().into_owned())
}

/// The CUDA version that the driver supports.
pub(crate) fn version() -> Result<i32, CudaError> {
    let mut version = 0;
    // SAFETY: the function writes to the integer that it is given.
    #[allow(unsafe_code)]
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    code.result().map_err(|error| failed("asking for the driver's version", error))?;
    Ok(version)
}

/// An error of the driver, in its words.
pub(crate) fn failed(what: &'static str, error: DriverError) -> CudaError {
    let text = |found: Result<&CStr, DriverError>| {
        found.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    CudaError::Driver { what, code: text(error.error_name()), message: text(error.error_string()) }
}
