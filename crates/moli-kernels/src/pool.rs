//! The thread pool under every kernel.
//!
//! A decode step is a few hundred short parallel loops with almost nothing between them, on a machine that always
//! runs something else as well. So the pool does two things a general one need not:
//!
//! - Tasks are taken one at a time from a counter. A thread that loses its core to another process holds up the one
//!   task it is in, and a worker that has not woken yet holds up nothing: the caller closes the run without it.
//! - Waiting spins for some microseconds, then sleeps. Inside a decode step a worker is there at once; an idle pool costs
//!   no processor time. Where others want the core, a thread that sleeps keeps its share of it for when there is work: one
//!   that yields has used it up by then, and the caller, which nobody can stand in for, goes on alone.
//!
//! # How a run works
//!
//! All of the protocol is in one atomic word, `state`: a run number (*epoch*), an `OPEN` bit, a `WAITING` bit and the
//! count of workers inside the run.
//!
//! 1. The caller, which holds `turn`, writes the job and the task counter, then stores `state` with a new epoch, `OPEN`
//!    and a count of 0.
//! 2. A worker that sees a new epoch with `OPEN` enters by a compare-and-swap that adds 1 to the count. It can't enter a
//!    closed run, and it can't mistake one run for another, because the epoch is part of the word that it compares.
//! 3. Everyone inside takes tasks until the counter is past the end. A worker leaves by subtracting 1.
//! 4. The caller takes tasks too, then clears `OPEN` and waits for the count to reach 0.
//!
//! The job is a plain cell. It is written only in step 1, when the run before is closed with a count of 0, and read only
//! between entering and leaving. The store of step 1 is a release that the compare-and-swap of step 2 acquires, and the
//! subtraction of step 3 is a release that the last load of step 4 acquires; so no access to the job races with another,
//! and what the tasks wrote is visible to the caller when `run` returns.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a run calls: `(task, thread)`.
type Task<'f> = dyn Fn(usize, usize) + Sync + 'f;
/// What a panic carries.
type Payload = Box<dyn Any + Send>;

/// Most threads that a pool starts.
const MAX_THREADS: usize = 1024;
/// Bits of `state`: the workers inside the run.
const COUNT: u64 = 0xffff;
/// Bit of `state`: workers may enter.
const OPEN: u64 = 1 << 16;
/// Bit of `state`: the caller sleeps until the count is 0.
const WAITING: u64 = 1 << 17;
/// The epoch is the upper half of `state`.
const EPOCH_SHIFT: u32 = 32;

/// How long a waiting thread spins before it gives up its core: as long as most of what one thread does alone between two runs,
/// such as norms and rotations. With 25 µs eight answers are no faster on a quiet machine, and beside one busy program a sixth is lost.
const SPIN: Duration = Duration::from_micros(10);
/// Pauses of the processor between two looks at the clock; a pause takes 10 to 50 ns.
const PAUSES: u32 = 32;
/// Yields before the caller goes to sleep over the last tasks of a run: about 100 µs when nobody else wants the core.
const YIELDS: u32 = 250;

/// One run's work. The lifetime of `task` is erased; see the SAFETY notes where it is made and used.
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

/// A cache line of its own for each word that threads write often.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    state: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    job: UnsafeCell<Job>,
    stop: AtomicBool,
    /// Workers that sleep on `wake`, or are about to.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    done: Condvar,
    /// The first panic of the run.
    panic: Mutex<Option<Payload>>,
}

// SAFETY: `job` is the only field that is not Sync and Send by itself (a cell with a raw pointer). Its accesses never
// race, by the protocol in the module's documentation, and the closure behind the pointer is Sync, so that any thread
// may call it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

thread_local! {
    /// The pool (its address) and the index that this thread has inside a run, if it is inside one.
    static INSIDE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// A fixed set of threads that run short parallel loops with little overhead.
///
/// The caller of [`run`](Pool::run) is thread 0 and works too, so `Pool::new(n)` starts `n - 1` workers. Dropping the
/// pool stops and joins them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the whole of a run: runs from several threads take turns.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`run`](Pool::run) included. 0 counts as 1, and 1 starts no worker.
    ///
    /// When the system refuses to start a thread, the pool works with those it got; [`threads`](Pool::threads) says
    /// how many that is.
    #[must_use]
    pub fn new(threads: usize) -> Pool {
        let nothing: &'static Task<'static> = &|_, _| {};
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { task: nothing, tasks: 0 }),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut workers = Vec::new();
        for index in 1..threads.min(MAX_THREADS) {
            let shared = Arc::clone(&shared);
            let worker = thread::Builder::new().name(format!("moli-{index}"));
            match worker.spawn(move || shared.work(index)) {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        Pool { shared, workers, turn: Mutex::new(()) }
    }

    /// The number of threads that work in a run, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(task, thread)` once for each task in `0..tasks`, on any thread and in any order, and returns when all
    /// calls have ended. `thread` is below [`threads`](Pool::threads), and no two threads have the same one at a time.
    ///
    /// A panic in a task does not stop the others: when all have ended, the first panic goes on in the caller. The pool
    /// can be used again afterwards.
    ///
    /// Runs from several threads at once take turns. A run from inside a task of the same pool does its work there,
    /// with the index of the thread it is on. (Two pools whose tasks run on each other can wait for each other for ever.)
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        if tasks == 0 {
            return;
        }
        let me = Arc::as_ptr(&self.shared).addr();
        let (pool, thread) = INSIDE.get();
        let panic = if pool == me {
            let next = AtomicUsize::new(0);
            let mut panic = None;
            drain(f, tasks, thread, &next, &mut |payload| keep_first(&mut panic, payload));
            panic
        } else {
            let turn = lock(&self.turn);
            let outer = INSIDE.replace((me, 0));
            // Nothing between here and the restore below can unwind: `drain` catches what the tasks throw.
            let panic = if tasks == 1 || self.workers.is_empty() {
                let next = AtomicUsize::new(0);
                let mut panic = None;
                drain(f, tasks, 0, &next, &mut |payload| keep_first(&mut panic, payload));
                panic
            } else {
                self.run_shared(tasks, f);
                lock(&self.shared.panic).take()
            };
            INSIDE.set(outer);
            drop(turn);
            panic
        };
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Calls `f` once on each thread, the caller's included: for what a thread keeps to itself.
    ///
    /// Not from inside a task of the same pool: it would wait for ever for the threads that it keeps from coming.
    pub fn on_each_thread(&self, f: &(dyn Fn() + Sync)) {
        // A task for each thread, and none begins before all are taken: so no thread takes two.
        let all = Barrier::new(self.threads());
        self.run(self.threads(), &|_, _| {
            all.wait();
            f();
        });
    }

    /// The caller's side of the protocol. `turn` is held.
    fn run_shared(&self, tasks: usize, f: &Task<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by workers between entering this run and leaving it,
        // and this function returns only when the run is closed and all of them have left, so `f` outlives each use.
        let task =
            unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(std::ptr::from_ref(f)) };
        // SAFETY: `turn` makes this the only caller, and the run before was closed and left by all before its caller
        // gave up `turn`; so no worker is inside a run, and none can enter before the store to `state` below.
        unsafe { *shared.job.get() = Job { task, tasks } };
        shared.next.0.store(0, Ordering::Relaxed);
        let epoch = (shared.state.0.load(Ordering::Relaxed) >> EPOCH_SHIFT).wrapping_add(1);
        // A store and a load in sequential order, here and in `sleep`: either this load sees the sleeper, or the
        // sleeper sees this epoch and does not sleep.
        shared.state.0.store(epoch << EPOCH_SHIFT | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&shared.sleep));
            shared.wake.notify_all();
        }

        drain(f, tasks, 0, &shared.next.0, &mut |payload| shared.keep_panic(payload));

        let mut state = shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut patience = Patience::new(YIELDS);
        while state & COUNT != 0 {
            if !patience.wait() {
                let mut guard = lock(&shared.sleep);
                shared.state.0.fetch_or(WAITING, Ordering::AcqRel);
                while shared.state.0.load(Ordering::Acquire) & COUNT != 0 {
                    guard = shared.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
            }
            state = shared.state.0.load(Ordering::Acquire);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what its tasks throw, so there is nothing to learn from the result. The comparison is for
            // a pool whose last owner is one of its own workers: it can't join itself.
            if worker.thread().id() != thread::current().id() {
                let _ = worker.join();
            }
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, index: usize) {
        INSIDE.set((std::ptr::from_ref(self).addr(), index));
        let mut seen = 0;
        while self.enter(&mut seen) {
            {
                // SAFETY: this thread is inside an open run: `enter` has acquired the caller's store to `state`, which
                // came after its write to the job, and the caller neither writes the job again nor lets go of the
                // closure before this thread has left, some lines below.
                let job = unsafe { &*self.job.get() };
                // SAFETY: as above; the pointer came from a reference that is alive until this thread has left.
                let task = unsafe { &*job.task };
                drain(task, job.tasks, index, &self.next.0, &mut |payload| self.keep_panic(payload));
            }
            let before = self.state.0.fetch_sub(1, Ordering::AcqRel);
            if before & WAITING != 0 && before & COUNT == 1 {
                // The caller sets WAITING under the lock and looks at the count before it sleeps; taking the lock
                // makes sure that it sleeps before it is woken.
                drop(lock(&self.sleep));
                self.done.notify_all();
            }
        }
    }

    /// Waits for a run other than number `seen` and enters it; false when the pool stops.
    fn enter(&self, seen: &mut u64) -> bool {
        let mut patience = Patience::new(0);
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            let epoch = state >> EPOCH_SHIFT;
            if epoch != *seen {
                if state & OPEN == 0 {
                    // That run ended without this thread.
                    *seen = epoch;
                    patience = Patience::new(0);
                } else if self
                    .state
                    .0
                    .compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    *seen = epoch;
                    return true;
                }
                continue;
            }
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            if !patience.wait() {
                self.sleep(*seen);
                patience = Patience::new(0);
            }
        }
    }

    /// Sleeps until the epoch is no longer `seen` or the pool stops.
    fn sleep(&self, seen: u64) {
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.state.0.load(Ordering::SeqCst) >> EPOCH_SHIFT == seen && !self.stop.load(Ordering::SeqCst)
        {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn keep_panic(&self, payload: Payload) {
        keep_first(&mut lock(&self.panic), payload);
    }
}

/// Takes tasks from `next` until there is none left. What a task throws goes to `keep`, and the next task follows.
fn drain(f: &Task<'_>, tasks: usize, thread: usize, next: &AtomicUsize, keep: &mut dyn FnMut(Payload)) {
    loop {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                f(task, thread);
            }
        }));
        match result {
            Ok(()) => break,
            Err(payload) => keep(payload),
        }
    }
}

/// Keeps the first of several panics. The others are leaked: a payload's own drop could panic in turn.
fn keep_first(slot: &mut Option<Payload>, payload: Payload) {
    if slot.is_none() {
        *slot = Some(payload);
    } else {
        std::mem::forget(payload);
    }
}

/// A lock that a panic elsewhere does not spoil: the data under these locks is valid at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a thread waits: it spins, then may yield, then is told to sleep.
struct Patience {
    pauses: u32,
    /// When the clock was first looked at.
    since: Option<Instant>,
    spins: bool,
    yields: u32,
}

impl Patience {
    fn new(yields: u32) -> Self {
        Self { pauses: 0, since: None, spins: true, yields }
    }

    /// Waits a moment; false when it is time to sleep.
    fn wait(&mut self) -> bool {
        if self.spins {
            std::hint::spin_loop();
            self.pauses += 1;
            if self.pauses.is_multiple_of(PAUSES) {
                // Most waits end before the clock is looked at once.
                self.spins = self.since.get_or_insert_with(Instant::now).elapsed() < SPIN;
            }
        } else if self.yields > 0 {
            self.yields -= 1;
            thread::yield_now();
        } else {
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of_run(pool: &Pool, tasks: usize) -> usize {
        let sum = AtomicUsize::new(0);
        pool.run(tasks, &|task, _| {
            sum.fetch_add(task + 1, Ordering::Relaxed);
        });
        sum.into_inner()
    }

    #[test]
    fn each_task_runs_once() {
        for threads in [0, 1, 2, 3, 5] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for tasks in [0, 1, 2, 3, 7, 100] {
                let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task, thread| {
                    assert!(thread < pool.threads());
                    hits[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    hits.iter().all(|h| h.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn a_thread_index_is_never_held_twice() {
        let pool = Pool::new(3);
        let busy: Vec<AtomicBool> = (0..3).map(|_| AtomicBool::new(false)).collect();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        pool.run(8, &|_, thread| {
                            assert!(!busy[thread].swap(true, Ordering::AcqRel));
                            std::hint::spin_loop();
                            busy[thread].store(false, Ordering::Release);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn each_thread_is_called_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for _ in 0..100 {
                let called = Mutex::new(Vec::new());
                pool.on_each_thread(&|| called.lock().unwrap().push(thread::current().id()));
                let mut called = called.into_inner().unwrap();
                called.sort_by_key(|id| format!("{id:?}"));
                called.dedup();
                assert_eq!(called.len(), threads);
            }
        }
    }

    #[test]
    fn a_hundred_thousand_runs_lose_nothing() {
        for threads in [2, 3] {
            let pool = Pool::new(threads);
            let cell: Vec<AtomicU64> = (0..5).map(|_| AtomicU64::new(0)).collect();
            for run in 0..100_000u64 {
                pool.run(5, &|task, _| {
                    // Not one atomic step: what an earlier run wrote must be visible to whichever thread comes next.
                    let sum = cell[task].load(Ordering::Relaxed);
                    cell[task].store(sum + run, Ordering::Relaxed);
                });
                // Sleep now and then, so that parked workers are woken too.
                if run % 20_000 == 0 {
                    thread::sleep(std::time::Duration::from_millis(2));
                }
            }
            assert!(cell.iter().all(|c| c.load(Ordering::Relaxed) == 99_999 * 100_000 / 2));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_after_all_tasks() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            for round in 0..200 {
                let ended = AtomicUsize::new(0);
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(9, &|task, _| {
                        ended.fetch_add(1, Ordering::Relaxed);
                        if task % 4 == round % 4 {
                            std::panic::resume_unwind(Box::new(task));
                        }
                    });
                }));
                let task = result
                    .expect_err("the panic goes on")
                    .downcast::<usize>()
                    .expect("the task's own payload");
                assert_eq!(*task % 4, round % 4);
                assert_eq!(ended.into_inner(), 9);
                assert_eq!(sum_of_run(&pool, 10), 55);
            }
        }
    }

    #[test]
    fn a_single_task_may_panic_too() {
        let pool = Pool::new(2);
        let result =
            catch_unwind(AssertUnwindSafe(|| pool.run(1, &|_, _| std::panic::resume_unwind(Box::new(())))));
        assert!(result.is_err());
        assert_eq!(sum_of_run(&pool, 3), 6);
    }

    #[test]
    fn a_run_inside_a_task_works_there() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        pool.run(6, &|_, outer| {
            pool.run(4, &|task, inner| {
                assert_eq!(outer, inner);
                sum.fetch_add(task, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 36);
        // And inside another pool's task.
        let other = Pool::new(2);
        let sum = AtomicUsize::new(0);
        other.run(4, &|_, _| {
            sum.fetch_add(sum_of_run(&pool, 4), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 40);
    }

    #[test]
    fn runs_from_several_threads_take_turns() {
        let pool = Pool::new(2);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..3000).for_each(|_| assert_eq!(sum_of_run(&pool, 6), 21)));
            }
        });
    }

    #[test]
    fn pools_come_and_go() {
        for round in 0..300 {
            let pool = Pool::new(1 + round % 4);
            if round % 3 > 0 {
                assert_eq!(sum_of_run(&pool, 5), 15);
            }
            if round % 50 == 0 {
                thread::sleep(std::time::Duration::from_millis(3));
            }
        }
    }

    #[test]
    fn an_idle_pool_sleeps_and_wakes() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            // On a busy machine it takes a while until the worker has had its turns.
            let asleep = (0..10_000).any(|_| {
                thread::sleep(std::time::Duration::from_millis(1));
                pool.shared.sleepers.load(Ordering::SeqCst) == 1
            });
            assert!(asleep);
            assert_eq!(sum_of_run(&pool, 50), 1275);
        }
    }
}
