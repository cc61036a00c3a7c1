//! The process that holds a tokenizer or a chat template.
//!
//! It limits itself before it reads anything: no more files, no processes, no core dump, and for
//! each question so much memory and processor time. What exceeds them ends the process. That is
//! meant: nothing here needs to be saved, and the parent starts another.

use std::{
    io::{self, Read, Write},
    panic::{self, AssertUnwindSafe},
    sync::Mutex,
};

use bytes::Bytes;

use super::wire::{self, Answer, Ask, LENGTHS_SIZE, Question, What};
use crate::engine::{EngineError, files::Files, template::Template, tokenizer::Encoder};

/// Bytes of a question: the files of a model, or a prompt.
const BODY_SIZE_MAX: u64 = 1 << 30;

/// What the last panic said. Written by the hook, which runs before the unwinding is caught.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// What this process holds.
enum Held {
    Nothing,
    Tokenizer(Box<Encoder>),
    Template(Box<Template>),
}

/// Answers questions until there are no more.
pub(super) fn run() {
    let limits = Limits::set();
    tokenizers::utils::parallelism::set_parallelism(false);
    panic::set_hook(Box::new(|panic| {
        if let Ok(mut last) = PANIC.lock() {
            *last = panic.to_string();
        }
    }));
    let (mut questions, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let mut held = Held::Nothing;
    // An error is the end of a pipe: the parent has gone, or has had enough.
    while let Ok((question, body)) = read(&mut questions) {
        limits.allow(&question.ask, question.memory, question.cpu_s);
        let (answer, body) = answered(&mut held, question.ask, body);
        let sent = wire::head(&answer, body.len()).and_then(|head| {
            answers.write_all(&head)?;
            answers.write_all(&body)?;
            answers.flush()
        });
        if sent.is_err() {
            return;
        }
    }
}

fn read(pipe: &mut impl Read) -> io::Result<(Question, Vec<u8>)> {
    let mut lengths = [0; LENGTHS_SIZE];
    pipe.read_exact(&mut lengths)?;
    let (head, body) = wire::lengths(lengths, BODY_SIZE_MAX)?;
    let mut bytes = vec![0; head];
    pipe.read_exact(&mut bytes)?;
    let mut rest = vec![0; body];
    pipe.read_exact(&mut rest)?;
    Ok((wire::read_head(&bytes)?, rest))
}

fn answered(held: &mut Held, ask: Ask, body: Vec<u8>) -> (Answer, Vec<u8>) {
    let answer = panic::catch_unwind(AssertUnwindSafe(|| answer(held, ask, body)));
    match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => (Answer::of(&error), Vec::new()),
        Err(_) => {
            let said = PANIC.lock().map(|mut last| std::mem::take(&mut *last)).unwrap_or_default();
            (Answer::Panicked(wire::shortened(&said)), Vec::new())
        }
    }
}

fn answer(held: &mut Held, ask: Ask, body: Vec<u8>) -> Result<(Answer, Vec<u8>), EngineError> {
    let text =
        |body| String::from_utf8(body).map_err(|_| EngineError::Request("the text is not UTF-8".to_owned()));
    let body = match (ask, &*held) {
        (Ask::Load { what, files }, _) => {
            let files = unpacked(files, body.into())?;
            *held = match what {
                What::Tokenizer => Encoder::read(&files)?.map(Box::new).map(Held::Tokenizer),
                What::Template => Template::read(&files)?.map(Box::new).map(Held::Template),
            }
            .unwrap_or(Held::Nothing);
            match held {
                Held::Nothing => return Ok((Answer::Nothing, Vec::new())),
                Held::Tokenizer(encoder) => encoder.vocabulary()?.pack(),
                Held::Template(_) => Vec::new(),
            }
        }
        (Ask::Encode { special, fit }, Held::Tokenizer(encoder)) => {
            let ids = encoder.encode(&text(body)?, special, fit)?;
            bytemuck::cast_slice(&ids).to_vec()
        }
        (Ask::Render { clock }, Held::Template(template)) => template.render(&body, clock)?.into_bytes(),
        (Ask::Encode { .. } | Ask::Render { .. }, _) => return Ok((Answer::Nothing, Vec::new())),
    };
    Ok((Answer::Done, body))
}

fn unpacked(files: Vec<(String, u64)>, mut bytes: Bytes) -> Result<Files, EngineError> {
    let mut unpacked = Files::default();
    for (name, size) in files {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if bytes.len() < size {
            return Err(EngineError::file(name, "is incomplete"));
        }
        unpacked.0.insert(name, bytes.split_to(size));
    }
    Ok(unpacked)
}

#[cfg(target_os = "linux")]
use linux::Limits;
#[cfg(target_os = "linux")]
mod linux {
    use std::{cell::Cell, fs::File, os::unix::fs::FileExt as _};

    use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};

    use super::Ask;
    use crate::engine::sandbox::bounds;

    /// Standard input, output and error, and those of [`Limits`].
    const FILES_MAX: u64 = 5;

    /// Memory that the allocator may have kept from earlier questions, in pieces of no use for the next.
    const DRIFT: u64 = 16 << 20;

    pub(super) struct Limits {
        /// How large this process is, and how long it has computed. Opened while files could be.
        status: Option<File>,
        stat: Option<File>,
        /// Its size when it was first asked something after it had loaded.
        loaded: Cell<Option<u64>>,
    }

    impl Limits {
        /// Gives up what is never needed. A limit that cannot be set is no reason not to go on: the
        /// parent watches as well.
        pub(super) fn set() -> Self {
            let (status, stat) = (File::open("/proc/self/status").ok(), File::open("/proc/self/stat").ok());
            for (resource, most) in [
                (Resource::Core, 0),
                (Resource::Fsize, 0),
                (Resource::Nproc, 0),
                (Resource::Nofile, FILES_MAX),
            ] {
                let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
            }
            // Should the parent die without closing its pipes.
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            let _ = rustix::thread::set_no_new_privs(true);
            let _ = rustix::thread::set_name(c"surf-sandbox");
            Self { status, stat, loaded: Cell::new(None) }
        }

        /// Allows so much memory beyond what is held, and so much processor time.
        pub(super) fn allow(&self, ask: &Ask, memory: u64, cpu_s: u64) {
            if let Some(size) = self.size() {
                let held = match (ask, self.loaded.get()) {
                    (Ask::Load { .. }, _) => size,
                    (_, Some(loaded)) => size.min(loaded + DRIFT),
                    (_, None) => {
                        self.loaded.set(Some(size));
                        size
                    }
                };
                limit(Resource::As, held.saturating_add(memory));
            }
            let stat = self.stat.as_ref().and_then(text);
            if let Some(used) = stat.and_then(|stat| bounds::computed(&stat)) {
                limit(Resource::Cpu, used.as_secs().saturating_add(cpu_s));
            }
        }

        /// Bytes of address space.
        fn size(&self) -> Option<u64> {
            let status = text(self.status.as_ref()?)?;
            let kib = status.split_once("VmSize:")?.1.split_whitespace().next()?.parse::<u64>().ok()?;
            Some(kib << 10)
        }
    }

    /// What a file of the system says at this moment.
    fn text(file: &File) -> Option<String> {
        let mut text = [0; 4096];
        let length = file.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..length]).ok().map(str::to_owned)
    }

    /// The hard limit stays, so that the next question can raise it again.
    fn limit(resource: Resource, most: u64) {
        let maximum = getrlimit(resource).maximum;
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum });
    }
}

#[cfg(not(target_os = "linux"))]
struct Limits;

/// Elsewhere the parent's clock is the only limit.
#[cfg(not(target_os = "linux"))]
impl Limits {
    fn set() -> Self {
        Self
    }

    fn allow(&self, _ask: &Ask, _memory: u64, _cpu_s: u64) {}
}
