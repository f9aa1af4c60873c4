//! Zeros from the system, which become resident only where they are used.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};

use half::f16;

/// A number whose zero is all zero bits.
///
/// # Safety
/// Memory of zeros is a valid value, and the type is not of size zero.
pub unsafe trait Zero: Copy {}

// SAFETY: zero bits are the number 0, or +0.0.
unsafe impl Zero for i8 {}
// SAFETY: as above.
unsafe impl Zero for u8 {}
// SAFETY: as above.
unsafe impl Zero for i16 {}
// SAFETY: as above.
unsafe impl Zero for i32 {}
// SAFETY: as above.
unsafe impl Zero for f32 {}
// SAFETY: as above.
unsafe impl Zero for f16 {}

/// `count` zeros; `None` where the memory can't be had, which `vec!` would end the process for.
///
/// Asking with `try_reserve` first and giving the memory back is no way around: the allocator takes what was given back
/// for the `vec!`, and has to write the zeros. For a prompt's buffers that is tens of milliseconds, and every page of
/// them resident.
#[must_use]
pub fn zeroed<T: Zero>(count: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(count).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout has a size.
    let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if start.is_null() {
        return None;
    }
    // SAFETY: the global allocator has just given memory with the layout of `count` elements, and its zeros are values.
    Some(unsafe { Vec::from_raw_parts(start, count, count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_any_length() {
        for count in [0, 1, 31, 1 << 20] {
            assert_eq!(zeroed::<f32>(count), Some(vec![0.0; count]));
            assert_eq!(zeroed::<i8>(count), Some(vec![0; count]));
        }
        let mut grown = zeroed::<i32>(3).unwrap();
        grown.push(7);
        assert_eq!(grown, [0, 0, 0, 7]);
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        assert_eq!(zeroed::<f32>(usize::MAX), None);
        assert_eq!(zeroed::<f32>(isize::MAX as usize / 4), None);
    }
}
