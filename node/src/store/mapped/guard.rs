//! What happens when a mapped file shrinks. The system raises SIGBUS in whoever reads beyond the new end,
//! or where the disk cannot be read, and that ends the process unless somebody catches it.
//!
//! Our handler looks whether the address is in one of our mappings. If so, it puts zeros in place of the
//! whole mapping, marks it, and returns: the read goes on, and whoever read is told later. Anything else
//! goes to the handler that was there before, or ends the process as it would have.
//!
//! A handler may not lock, allocate or wait. It reads a fixed table of atomics, one word for each mapping,
//! and makes one system call. A word holds both start and length, so it cannot be torn.
//!
//! Not covered: a program that installs a handler of its own later and does not call ours; systems
//! other than Linux, Android and macOS, where chunk files are read and not mapped.

use std::{
    ptr,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use libc::{c_int, c_void, siginfo_t};
use memmap2::Mmap;
use surf_protocol::limits::CHUNK_SIZE_MAX;

/// Mappings at a time. A process may have 65,530 under Linux unless told otherwise, and others need some.
const MAPPINGS_MAX: usize = 32_768;

/// The unit of lengths in the table. Every page of every system is a multiple.
const UNIT: usize = 4096;

/// Starts are multiples of a page, so the low bits of a word are free for the length.
const LENGTH: usize = UNIT - 1;

/// The largest page of the systems that this is built for.
const PAGE_MAX: usize = 64 << 10;

const _: () = assert!((CHUNK_SIZE_MAX + PAGE_MAX) / UNIT <= LENGTH);

/// Where each mapping is: its start, and its length in units. 0 if there is none.
static SPANS: [AtomicUsize; MAPPINGS_MAX] = [const { AtomicUsize::new(0) }; MAPPINGS_MAX];

/// Which of them the handler has put zeros in place of.
static DAMAGED: [AtomicBool; MAPPINGS_MAX] = [const { AtomicBool::new(false) }; MAPPINGS_MAX];

/// Entries of the table that were ever used: the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Entries among them that are free.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// What SIGBUS did before us.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping that may be read whatever becomes of its file.
#[derive(Debug)]
pub(super) struct Guarded {
    entry: usize,
    map: Mmap,
}

impl Guarded {
    /// Guards `map`. `None` if it cannot be guarded: the table is full, or there is no handler.
    pub(super) fn new(map: Mmap) -> Option<Self> {
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        let units = map.len().next_multiple_of(page()) / UNIT;
        let start = map.as_ptr() as usize;
        if !*INSTALLED.get_or_init(install) || units == 0 || LENGTH < units || start & LENGTH != 0 {
            return None;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = free.pop().or_else(|| {
            let next = USED.load(Ordering::Relaxed);
            let fits = next < MAPPINGS_MAX;
            fits.then(|| {
                USED.store(next + 1, Ordering::SeqCst);
                next
            })
        })?;
        DAMAGED[entry].store(false, Ordering::SeqCst);
        SPANS[entry].store(start | units, Ordering::SeqCst);
        Some(Self { entry, map })
    }

    /// Whether there were bytes that could not be read.
    pub(super) fn is_damaged(&self) -> bool {
        DAMAGED[self.entry].load(Ordering::SeqCst)
    }
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Before it is unmapped: nobody reads it any more.
        SPANS[self.entry].store(0, Ordering::SeqCst);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.entry);
    }
}

/// Bytes in a page; the largest there is, if the system does not tell.
#[expect(unsafe_code, reason = "libc has no safe function for it")]
fn page() -> usize {
    // SAFETY: asks for a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGE_MAX)
}

#[expect(unsafe_code, reason = "no safe interface can install a handler that returns from a fault")]
fn install() -> bool {
    type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
    let handler: Handler = on_sigbus;
    // SAFETY: zeros are a valid `sigaction`, all of whose fields that count are set; both point to
    // structures that live across the call. The handler does only what a handler may.
    unsafe {
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as usize;
        // On the stack for signals, if there is one: Rust catches overflows of others there.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut ours.sa_mask);
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, &ours, &mut before) != 0 {
            tracing::warn!("no handler for SIGBUS: chunk files are read, not mapped");
            return false;
        }
        let _only_once = BEFORE.set(before);
    }
    true
}

/// The entry of the mapping that `address` is in.
fn find(address: usize) -> Option<(usize, usize, usize)> {
    let used = USED.load(Ordering::SeqCst).min(MAPPINGS_MAX);
    SPANS[..used].iter().enumerate().find_map(|(entry, span)| {
        let span = span.load(Ordering::SeqCst);
        let (start, size) = (span & !LENGTH, (span & LENGTH) * UNIT);
        (start <= address && address - start < size).then_some((entry, start, size))
    })
}

#[expect(unsafe_code, reason = "a signal handler is given raw pointers, and replaces pages")]
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the system passes a valid `info`; of a fault it holds the address.
    let (address, is_fault) = unsafe { ((*info).si_addr() as usize, 0 < (*info).si_code) };
    if is_fault && let Some((entry, start, size)) = find(address) {
        DAMAGED[entry].store(true, Ordering::SeqCst);
        // SAFETY: the range is a mapping of ours that is being read, so it stays mapped for as long as this
        // takes, and nothing else lies in it. Readers see zeros instead of what was there. A call that
        // succeeds leaves `errno` alone.
        let zeros = unsafe {
            libc::mmap(
                ptr::without_provenance_mut(start),
                size,
                libc::PROT_READ,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if zeros != libc::MAP_FAILED {
            return;
        }
    }
    pass_on(signal, info, context, is_fault);
}

/// Does what would have been done without us.
#[expect(unsafe_code, reason = "calls a handler that is known by its address only")]
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, is_fault: bool) {
    let before = BEFORE.get().filter(|before| ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction));
    // SAFETY: the address is that of a handler, of the kind that its flags say; it was in place before.
    // Without one, the default comes back: the fault happens again and ends the process, and what was
    // sent is sent again, to the same end. `sigaction` and `raise` may be called here.
    unsafe {
        match before {
            Some(before) if before.sa_flags & libc::SA_SIGINFO != 0 => {
                type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
                let handler: Handler = std::mem::transmute(before.sa_sigaction);
                handler(signal, info, context);
            }
            Some(before) => {
                let handler: extern "C" fn(c_int) = std::mem::transmute(before.sa_sigaction);
                handler(signal);
            }
            None => {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, ptr::null_mut());
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
    }
}
