//! Splitting a buffer into pieces that threads write.

use crate::Pool;

/// Below this many additions a loop runs in the caller: waking a thread costs more.
const INLINE: usize = 16 * 1024;
/// The fewest additions of a task.
const GRAIN: usize = 4 * 1024;
/// What an exponential costs, in additions.
pub(super) const EXPONENTIAL: usize = 4;
/// Tasks per thread, so that one that is held up does not hold up the loop.
const TASKS_PER_THREAD: usize = 4;

/// Calls `f(start, piece)` for pieces of `data` that together are all of it; each starts at a multiple of `unit`
/// elements and is a whole number of units, but for a last one where `data` ends.
pub(super) fn pieces(pool: &Pool, data: &mut [f32], unit: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    costly_pieces(pool, data, unit, 1, f);
}

/// [`pieces`] of a loop each of whose elements costs so many additions.
pub(super) fn costly_pieces(
    pool: &Pool,
    data: &mut [f32],
    unit: usize,
    cost: usize,
    f: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let len = data.len();
    if len < INLINE / cost || pool.threads() == 1 || unit == 0 {
        f(0, data);
        return;
    }
    let units =
        len.div_ceil(unit).div_ceil(pool.threads() * TASKS_PER_THREAD).max((GRAIN / cost).div_ceil(unit));
    let piece = units * unit;
    let base = Pieces(data.as_mut_ptr());
    pool.run(len.div_ceil(piece), &|task, _| {
        let start = task * piece;
        let length = piece.min(len - start);
        // SAFETY: `task` is below the number of pieces, so start is below `len` and the piece ends within `data`, which
        // is borrowed for the whole run; the pool gives each task out once, so no two pieces overlap.
        let slice = unsafe { base.slice(start, length) };
        f(start, slice);
    });
}

/// The start of a buffer whose pieces different threads write.
#[derive(Clone, Copy)]
pub(crate) struct Pieces<T>(pub(crate) *mut T);

// SAFETY: the pointer is only a number until `slice`, whose caller promises that pieces don't overlap.
unsafe impl<T: Send> Send for Pieces<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Pieces<T> {}

impl<T> Pieces<T> {
    /// The piece of `length` elements at `start`.
    ///
    /// # Safety
    /// It lies in the buffer, the buffer is borrowed mutably for `'a`, and nothing else uses these elements meanwhile.
    pub(crate) unsafe fn slice<'a>(self, start: usize, length: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }
}
