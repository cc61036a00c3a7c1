//! Threads that compute one region after another together.
//!
//! A region is some tasks that may run side by side. It ends when its tasks are done, not when all threads have noticed
//! it: a thread that the system gave to somebody else costs nothing, as long as it holds no task. So an empty region
//! takes a fraction of a microsecond, where handing work to a pool from outside takes several.
//!
//! Where other programs want the cores too, a thread may lose its core with a task in its hands, for milliseconds. A team
//! that had to wait so long computes on its first thread alone for a while, which then waits for nobody.
//!
//! Whoever computes is inside [`Team::install`]; [`for_each`] and its kin below then use that team. Elsewhere, and inside
//! a task, they compute alone.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        },
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// How long a thread looks for the next region before it sleeps. Between two products of a pass there are some ten
/// microseconds, between two passes some hundred.
const SPIN: Duration = Duration::from_micros(200);

/// How long the first thread waits for the end of a region, after its own last task, before it takes the others for
/// busy elsewhere. A task takes some ten microseconds.
const LATE: Duration = Duration::from_millis(1);

/// For how long it then computes alone.
const ALONE: Duration = Duration::from_millis(100);

/// Turns that the first thread looks for the end of a region before it offers its core to others.
const TURNS: u32 = 2000;

/// For how long a thread sleeps before it looks again, should it have missed that it was woken.
const SLEEP: Duration = Duration::from_millis(100);

/// Half of a cursor: the number of a region is above, that of a task below.
const HALF: u32 = 32;
const LOW: u64 = (1 << HALF) - 1;

/// See the module.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// The machine's own clock.
#[expect(
    clippy::disallowed_methods,
    reason = "threads wait for each other in real time, also where nodes are simulated"
)]
fn now() -> Instant {
    Instant::now()
}

/// A value on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Alone<T>(T);

/// The tasks of a region: what is called with the number of each.
type Job = (*const (), unsafe fn(*const (), usize));

#[derive(Debug)]
struct Shared {
    /// The region, and its next task. Taking one is a compare-and-swap, so nobody takes from a region that is over.
    cursor: Alone<AtomicU64>,
    /// The region, and how many tasks it has.
    count: Alone<AtomicU64>,
    /// Tasks done.
    done: Alone<AtomicUsize>,
    /// Written between regions by who begins one, read by who has taken a task.
    job: UnsafeCell<Job>,
    /// Until when the first thread computes alone, in microseconds after the team began; 0 where it does not.
    alone_until: AtomicU64,
    began: Instant,
    /// The first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether a region is under way.
    busy: AtomicBool,
    /// How many threads sleep, and all that may.
    asleep: AtomicUsize,
    sleepers: OnceLock<Vec<Thread>>,
    stop: AtomicBool,
}

// SAFETY: `job` is the only part that is not `Sync`. It is written by the thread that has set `busy`, while no task of
// the region before is left (`Shared::run`), and read by threads that have taken a task of the region (`Shared::work`),
// which see the write because the cursor that they took it from was stored after it. It points to a closure that is
// `Sync`, and lives until the region is over.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

thread_local! {
    /// The team that this thread computes with.
    static TEAM: Cell<Option<*const Shared>> = const { Cell::new(None) };
}

impl Team {
    /// Of `threads` threads, of which the one that computes is the first.
    ///
    /// # Errors
    ///
    /// If the system gives no more threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        unsafe fn nothing(_: *const (), _: usize) {}
        let shared = Arc::new(Shared {
            cursor: Alone::default(),
            count: Alone::default(),
            done: Alone::default(),
            job: UnsafeCell::new((std::ptr::null(), nothing)),
            alone_until: AtomicU64::default(),
            began: now(),
            panic: Mutex::default(),
            busy: AtomicBool::default(),
            asleep: AtomicUsize::default(),
            sleepers: OnceLock::new(),
            stop: AtomicBool::default(),
        });
        let mut team = Self { shared, threads: Vec::new() };
        for at in 1..threads {
            let shared = Arc::clone(&team.shared);
            let builder = thread::Builder::new().name(format!("surf-compute-{at}"));
            team.threads.push(builder.spawn(move || shared.serve())?);
        }
        _ = team.shared.sleepers.set(team.threads.iter().map(|thread| thread.thread().clone()).collect());
        Ok(team)
    }

    /// Threads in it, the one that computes included.
    pub fn threads(&self) -> usize {
        1 + self.threads.len()
    }

    /// Calls `with`, in which [`for_each`] and its kin use this team.
    pub fn install<R>(&self, with: impl FnOnce() -> R) -> R {
        let _installed = Installed::new((!self.threads.is_empty()).then_some(Arc::as_ptr(&self.shared)));
        with()
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // It catches the panics of its tasks, and has no others.
            _ = thread.join();
        }
    }
}

/// What [`TEAM`] is until this is dropped.
struct Installed {
    before: Option<*const Shared>,
}

impl Installed {
    fn new(team: Option<*const Shared>) -> Self {
        Self { before: TEAM.replace(team) }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        TEAM.set(self.before);
    }
}

impl Shared {
    /// What a thread of the team does all its life.
    fn serve(&self) {
        let (mut seen, mut idle) = (0, now());
        while !self.stop.load(Relaxed) {
            let region = self.cursor.0.load(Acquire) >> HALF;
            if region != seen {
                seen = region;
                self.work(region);
                idle = now();
            } else if idle.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                self.asleep.fetch_add(1, SeqCst);
                // Who begins a region looks for sleepers after it has moved the cursor.
                if self.cursor.0.load(SeqCst) >> HALF == seen && !self.stop.load(SeqCst) {
                    thread::park_timeout(SLEEP);
                }
                self.asleep.fetch_sub(1, SeqCst);
                idle = now();
            }
        }
    }

    /// A task of `region` that nobody has taken.
    fn take(&self, region: u64) -> Option<usize> {
        loop {
            let (cursor, count) = (self.cursor.0.load(Acquire), self.count.0.load(Acquire));
            if cursor >> HALF != region || count >> HALF != region || count & LOW <= cursor & LOW {
                return None;
            }
            if self.cursor.0.compare_exchange_weak(cursor, cursor + 1, AcqRel, Relaxed).is_ok() {
                return Some((cursor & LOW) as usize);
            }
        }
    }

    /// Does tasks of `region` until none is left to take.
    fn work(&self, region: u64) {
        while let Some(at) = self.take(region) {
            // SAFETY: a task that was taken and is not done keeps the region from ending, so the job is that of this
            // region, and what it points to is alive.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe {
                let (data, call) = *self.job.get();
                call(data, at);
            }));
            if let Err(panic) = outcome {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            self.done.0.fetch_add(1, Release);
        }
    }

    /// Waits for the end of a region of `count` tasks. If that takes long, the others are busy elsewhere.
    fn wait_for(&self, count: usize) {
        let (mut turns, mut since) = (0, None);
        while self.done.0.load(Acquire) != count {
            turns += 1;
            if turns < TURNS {
                std::hint::spin_loop();
            } else {
                since.get_or_insert_with(now);
                thread::yield_now();
            }
        }
        if since.is_some_and(|since| LATE < since.elapsed()) {
            self.alone_until.store(self.micros() + ALONE.as_micros() as u64, Relaxed);
        }
    }

    /// Whether the first thread computes alone for now.
    fn is_alone(&self) -> bool {
        match self.alone_until.load(Relaxed) {
            0 => false,
            until if self.micros() < until => true,
            _ => {
                self.alone_until.store(0, Relaxed);
                false
            }
        }
    }

    /// Microseconds since the team began.
    fn micros(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Does `count` tasks, together with whoever comes; `false`, and none of them, while another thread has a region
    /// under way, or the others are busy elsewhere.
    fn run<F: Fn(usize) + Sync>(&self, count: usize, one: &F) -> bool {
        unsafe fn call<F: Fn(usize)>(data: *const (), at: usize) {
            // SAFETY: `data` is the `one` of the region that is under way.
            unsafe { (*data.cast::<F>())(at) }
        }
        let Ok(tasks @ 1..) = u32::try_from(count) else { return false };
        if self.is_alone() || self.busy.swap(true, Acquire) {
            return false;
        }
        let region = ((self.cursor.0.load(Relaxed) >> HALF) + 1) & LOW;
        self.done.0.store(0, Relaxed);
        // SAFETY: `busy` was not set, so no region is under way: nobody reads or writes the job.
        unsafe { *self.job.get() = (std::ptr::from_ref(one).cast(), call::<F>) };
        self.count.0.store(region << HALF | u64::from(tasks), Release);
        self.cursor.0.store(region << HALF, SeqCst);
        if self.asleep.load(SeqCst) != 0 {
            // More than there are other tasks need not come.
            self.sleepers.get().into_iter().flatten().take(count - 1).for_each(Thread::unpark);
        }
        {
            // A task computes alone.
            let _alone = Installed::new(None);
            self.work(region);
        }
        self.wait_for(count);
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Release);
        match panic {
            Some(panic) => resume_unwind(panic),
            None => true,
        }
    }
}

/// Calls `one` with each number below `count`, side by side where this thread is in a team. Whoever panics ends the
/// others' work too, once they have done what they hold.
pub fn for_each(count: usize, one: impl Fn(usize) + Sync) {
    let together = match TEAM.get() {
        // SAFETY: it is set while its team is borrowed (`Team::install`).
        Some(team) if 1 < count => unsafe { &*team }.run(count, &one),
        _ => false,
    };
    if !together {
        (0..count).for_each(one);
    }
}

/// Calls `one` with each of `items`.
pub fn for_each_of<T: Send>(items: Vec<T>, one: impl Fn(T) + Sync) {
    if items.len() < 2 || TEAM.get().is_none() {
        return items.into_iter().for_each(one);
    }
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    for_each(items.len(), |at| {
        let item = items[at].lock().unwrap_or_else(PoisonError::into_inner).take();
        one(item.expect("each number comes once"));
    });
}

/// Calls `one` with the number and the elements of each run of `size` elements of `all`; the last may have fewer.
///
/// # Panics
///
/// If `size` is 0.
pub fn for_each_chunk<T: Send>(all: &mut [T], size: usize, one: impl Fn(usize, &mut [T]) + Sync) {
    if all.len() <= size {
        return one(0, all);
    }
    for_each_of(all.chunks_mut(size).enumerate().collect(), |(at, chunk)| one(at, chunk));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "threads wait for each other in real time")]
    fn sleep(time: Duration) {
        thread::sleep(time);
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            team.install(|| {
                for count in (0..70).chain([1000]) {
                    let done: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
                    for_each(count, |at| _ = done[at].fetch_add(1, Relaxed));
                    assert!(done.iter().all(|done| done.load(Relaxed) == 1), "{threads} {count}");
                }
            });
        }
    }

    /// Regions follow each other faster than threads wake up, and slower than they fall asleep.
    #[test]
    fn regions_see_what_those_before_wrote() {
        let team = Team::new(4).unwrap();
        let mut sums = vec![0u64; 64];
        for round in 1..20_000u64 {
            team.install(|| {
                for_each_chunk(&mut sums, 5, |_, some| some.iter_mut().for_each(|sum| *sum += round))
            });
            if round % 2_000 == 0 {
                sleep(2 * SPIN);
            }
        }
        assert!(sums.iter().all(|sum| *sum == (1..20_000).sum()), "{sums:?}");
    }

    #[test]
    fn a_panic_comes_out_and_the_team_goes_on() {
        let team = Team::new(3).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.install(|| for_each(100, |at| assert!(at != 37, "task 37")));
        }));
        let panic = outcome.unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"task 37"));
        let done = AtomicU32::new(0);
        team.install(|| for_each(100, |_| _ = done.fetch_add(1, Relaxed)));
        assert_eq!(done.into_inner(), 100);
        assert!(TEAM.get().is_none());
    }

    /// Alone, in a task, and where another thread has a region under way.
    #[test]
    fn whoever_has_no_team_computes_alone() {
        let here = |count| {
            let me = thread::current().id();
            for_each(count, |_| assert_eq!(thread::current().id(), me));
        };
        here(10);
        let team = Team::new(2).unwrap();
        team.install(|| for_each(10, |_| here(10)));
        let done = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| team.install(|| for_each(1000, |_| _ = done.fetch_add(1, Relaxed))));
            }
        });
        assert_eq!(done.into_inner(), 4000);
    }

    /// Whoever is late is not waited for again at once.
    #[test]
    fn a_team_whose_threads_are_late_leaves_the_first_alone() {
        let team = Team::new(2).unwrap();
        let me = thread::current().id();
        let elsewhere = || {
            let elsewhere = AtomicU32::new(0);
            team.install(|| {
                for_each(8, |_| {
                    // As long as the first thread has nothing left to do, and longer.
                    let is_other = thread::current().id() != me;
                    sleep(if is_other { 10 * LATE } else { LATE / 10 });
                    elsewhere.fetch_add(u32::from(is_other), Relaxed);
                });
            });
            elsewhere.into_inner()
        };
        while elsewhere() == 0 {}
        assert!(team.shared.is_alone());
        assert_eq!(elsewhere(), 0);
        while team.shared.is_alone() {
            thread::yield_now();
        }
        while elsewhere() == 0 {}
    }

    #[test]
    fn items_are_moved_and_chunks_are_numbered() {
        let team = Team::new(2).unwrap();
        let words = Mutex::new(Vec::new());
        let items: Vec<String> = (0..50).map(|at| at.to_string()).collect();
        team.install(|| for_each_of(items.clone(), |item| words.lock().unwrap().push(item)));
        let mut words = words.into_inner().unwrap();
        words.sort_by_key(|word| word.parse::<u32>().unwrap());
        assert_eq!(words, items);
        let mut all = [0; 23];
        team.install(|| for_each_chunk(&mut all, 4, |at, some| some.fill(at)));
        assert!(all.iter().enumerate().all(|(at, chunk)| *chunk == at / 4), "{all:?}");
    }
}
