//! Memory of the device.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError};

use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES;

use crate::CudaError;
use crate::driver::failed;

/// A number that lies in the device's memory as it does in the host's.
pub trait Number: DeviceRepr + Copy + Default + Send + 'static {}
impl Number for f32 {}
impl Number for u32 {}
impl Number for u8 {}

/// Elements in the device's memory.
pub struct Array<T: Number> {
    bytes: CudaSlice<u8>,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Number> Array<T> {
    /// Elements that hold nothing yet.
    pub(crate) fn new(stream: &Arc<CudaStream>, what: &'static str, len: usize) -> Result<Self, CudaError> {
        let free = || stream.context().mem_get_info().map_or(0, |(free, _)| free as u64);
        let too_much = |wanted: u64| CudaError::OutOfMemory { what, wanted, free: free() };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| too_much(u64::MAX))?;
        // An array of nothing has an address as well.
        let allocated = bytes.max(1);
        // SAFETY: nothing is read before it is written: uploads and kernels write whole arrays or what they then read.
        #[allow(unsafe_code)]
        let slice = unsafe { stream.alloc::<u8>(allocated) }.map_err(|error| match error.0 {
            cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => too_much(allocated as u64),
            _ => failed("allocating memory", error),
        })?;
        let address = slice.device_ptr(stream).0;
        Ok(Self { bytes: slice, address, len, elements: PhantomData })
    }

    /// Where it is, in the device's address space.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Where element `at` is.
    pub(crate) fn at(&self, at: usize) -> u64 {
        self.address + (at * size_of::<T>()) as u64
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes elements from number `at` on.
    pub(crate) fn write(&mut self, stream: &Arc<CudaStream>, at: usize, from: &[T]) -> Result<(), CudaError> {
        self.within(at, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        let start = at * size_of::<T>();
        // SAFETY: numbers are bytes, all of them initialised.
        #[allow(unsafe_code)]
        let bytes = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<u8>(), size_of_val(from)) };
        let mut to = self.bytes.slice_mut(start..start + bytes.len());
        stream.memcpy_htod(bytes, &mut to).map_err(|error| failed("copying to the device", error))?;
        // A driver that reads pageable memory by the host's own page tables may do so after it has returned; others have
        // copied it by then.
        let by_host_tables = CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES;
        if stream.context().attribute(by_host_tables).is_ok_and(|yes| yes == 1) {
            stream.synchronize().map_err(|error| failed("copying to the device", error))?;
        }
        Ok(())
    }

    /// Reads elements from number `at` on; waits for all that was asked for before.
    pub(crate) fn read(&self, stream: &Arc<CudaStream>, at: usize, to: &mut [T]) -> Result<(), CudaError> {
        self.within(at, to.len())?;
        let copied = |error: DriverError| failed("copying from the device", error);
        if !to.is_empty() {
            let start = at * size_of::<T>();
            // SAFETY: numbers are bytes, and any bytes are numbers.
            #[allow(unsafe_code)]
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), size_of_val(to)) };
            let from = self.bytes.slice(start..start + bytes.len());
            stream.memcpy_dtoh(&from, bytes).map_err(copied)?;
        }
        stream.synchronize().map_err(copied)
    }

    /// Copies `len` elements within the array; the two stretches don't overlap.
    pub(crate) fn copy_within(
        &mut self,
        stream: &Arc<CudaStream>,
        from: usize,
        to: usize,
        len: usize,
    ) -> Result<(), CudaError> {
        self.within(from, len)?;
        self.within(to, len)?;
        if len == 0 {
            return Ok(());
        }
        let copied = |error: DriverError| failed("copying on the device", error);
        let (from, to) = (self.at(from), self.at(to));
        // This may be the first thing that this thread asks of the device.
        stream.context().bind_to_thread().map_err(copied)?;
        // SAFETY: both stretches are within the allocation.
        #[allow(unsafe_code)]
        let done = unsafe {
            cudarc::driver::result::memcpy_dtod_async(to, from, len * size_of::<T>(), stream.cu_stream())
        };
        done.map_err(copied)
    }

    /// Zeros in the first `len` elements.
    pub(crate) fn clear(&mut self, stream: &Arc<CudaStream>, len: usize) -> Result<(), CudaError> {
        self.within(0, len)?;
        if len == 0 {
            return Ok(());
        }
        let mut cleared = self.bytes.slice_mut(..len * size_of::<T>());
        stream.memset_zeros(&mut cleared).map_err(|error| failed("clearing memory", error))
    }

    fn within(&self, at: usize, len: usize) -> Result<(), CudaError> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(CudaError::Shape {
                what: "elements of device memory",
                expected: self.len,
                actual: at.saturating_add(len),
            }),
        }
    }
}
