//! Our side of a child: a thread that owns it, asks it one question after the other, and replaces it
//! when it dies.
//!
//! The thread has a runtime of its own, so a question can be asked from anywhere, and the workers that
//! serve the network neither wait for a pipe nor copy a prompt into one.

use std::{process::Stdio, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{mpsc, mpsc::error::TrySendError, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    ARGUMENT,
    bounds::{self, BODY_SIZE_MAX, Bounds},
    entered,
    wire::{self, Answer, Ask, LENGTHS_SIZE, Question, What},
};
use crate::engine::{EngineError, files::Files};

/// Questions that may wait. Beyond it the answer is [`EngineError::Busy`].
const QUEUE_MAX: usize = 64;

/// How often to look what a question has cost so far.
const LOOK: Duration = Duration::from_millis(20);

/// How long a child may go on for someone who has left. Most questions are answered by then, and
/// starting a child anew costs more.
const GRACE: Duration = Duration::from_millis(100);

/// How long a child that closed its pipes may take to end, and what it may have said until then.
const END: Duration = Duration::from_secs(2);
const LAST_WORDS_MAX: u64 = 4 << 10;

/// A handle to a child. When the last is dropped, the child ends.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    jobs: mpsc::Sender<Job>,
}

/// A question, and who asks.
#[derive(Debug)]
struct Job {
    /// `None`: nothing, but start the child if it is not running.
    ask: Option<Ask>,
    body: Bytes,
    reply: oneshot::Sender<Reply>,
}

/// What was asked for; `None` if the model has no such thing.
type Reply = Result<Option<Bytes>, EngineError>;

impl Sandbox {
    /// For what there is of `what` in `files`. The child starts with the first question.
    pub(crate) fn start(what: What, files: &Files) -> Result<Self, EngineError> {
        if !entered() {
            let reason = "this program runs no models: its main does not call engine::enter_sandbox";
            return Err(EngineError::Device(reason.to_owned()));
        }
        let failed = |error| EngineError::Device(format!("no thread for the tokenizer: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let owner = Owner::new(what, files);
        std::thread::Builder::new()
            .name("surf-sandbox".to_owned())
            .spawn(move || runtime.block_on(owner.run(queue)))
            .map_err(failed)?;
        Ok(Self { jobs })
    }

    /// Waits until the child has loaded its files, and returns what it said of them. `None` if there is
    /// nothing in them for it.
    pub(crate) fn ready(&self) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.send(Job { ask: None, body: Bytes::new(), reply })?;
        futures::executor::block_on(answer).unwrap_or(Err(EngineError::Stopped))
    }

    /// Asks, and waits for the answer: `None` if the model has no such thing. Dropping the future takes
    /// the question back.
    pub(crate) async fn ask(&self, ask: Ask, body: Bytes) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.send(Job { ask: Some(ask), body, reply })?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    fn send(&self, job: Job) -> Result<(), EngineError> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::Busy(QUEUE_MAX),
            TrySendError::Closed(_) => EngineError::Stopped,
        })
    }
}

/// What the thread of a [`Sandbox`] owns.
struct Owner {
    what: What,
    load: Ask,
    files: Vec<Bytes>,
    size: usize,
    process: Option<Process>,
    /// What the first child said when it had loaded, until somebody takes it.
    said: Bytes,
    is_first: bool,
    /// Why nothing can be asked, for a reason that stays: what is in the files, or that nothing is.
    unloadable: Option<Result<(), EngineError>>,
    /// The last question and its answer. The choices of one request ask the same.
    last: Option<(Ask, Bytes, Bytes)>,
}

impl Owner {
    fn new(what: What, files: &Files) -> Self {
        let mut files: Vec<(String, Bytes)> =
            files.0.iter().map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
        files.sort_by(|(one, _), (other, _)| one.cmp(other));
        let sizes = files.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect();
        Self {
            what,
            load: Ask::Load { what, files: sizes },
            size: files.iter().map(|(_, bytes)| bytes.len()).sum(),
            files: files.into_iter().map(|(_, bytes)| bytes).collect(),
            process: None,
            said: Bytes::new(),
            is_first: true,
            unloadable: None,
            last: None,
        }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(Job { ask, body, mut reply }) = queue.recv().await {
            if reply.is_closed() {
                continue;
            }
            let answer = self.answer(ask, body, &mut reply).await;
            // Who asked may have left: that is no failure.
            let _ = reply.send(answer);
            if self.process.is_none() && self.what == What::Tokenizer {
                // The next question should not have to wait for it.
                if let Err(error) = self.loaded().await {
                    tracing::warn!(%error, "the tokenizer could not be loaded again");
                }
            }
        }
        if let Some(process) = self.process {
            process.end().await;
        }
    }

    async fn answer(&mut self, ask: Option<Ask>, body: Bytes, reply: &mut oneshot::Sender<Reply>) -> Reply {
        let Some(ask) = ask else {
            // It is asked for once; the next child says the same.
            let loaded = self.loaded().await?;
            return Ok(loaded.then(|| std::mem::take(&mut self.said)));
        };
        if let Some((asked, about, answer)) = &self.last
            && (asked, about) == (&ask, &body)
        {
            return Ok(Some(answer.clone()));
        }
        if !self.loaded().await? {
            return Ok(None);
        }
        let Some(process) = &mut self.process else { return Err(EngineError::Stopped) };
        let bounds = Bounds::of(&ask, body.len());
        let left = async {
            reply.closed().await;
            sleep(GRACE).await;
        };
        let parts = [body.clone()];
        let told = tokio::select! {
            told = process.tell(&ask, bounds, &parts) => told,
            () = left => Err(Death::Left),
        };
        let told = match told {
            Ok(told) => told,
            Err(death) => return Err(self.died(death, &ask, bounds).await),
        };
        match told {
            (Answer::Done, answer) => {
                self.last = Some((ask, body, answer.clone()));
                Ok(Some(answer))
            }
            (Answer::Nothing, _) => Ok(None),
            (refused, _) => Err(self.refusal(refused)),
        }
    }

    /// Starts the child if it is not running. False if the model has nothing for it.
    async fn loaded(&mut self) -> Result<bool, EngineError> {
        if let Some(reason) = &self.unloadable {
            return reason.clone().map(|()| false);
        }
        if self.process.is_some() {
            return Ok(true);
        }
        let (load, bounds) = (self.load.clone(), Bounds::of(&self.load, self.size));
        let process = Process::start()
            .map_err(|error| EngineError::Device(format!("no process for the {}: {error}", self.called())))?;
        let process = self.process.insert(process);
        let reason = match process.tell(&load, bounds, &self.files).await {
            Ok((Answer::Done, said)) => {
                if self.is_first {
                    self.said = said;
                }
                self.is_first = false;
                return Ok(true);
            }
            Ok((Answer::Nothing, _)) => Ok(()),
            Ok((refused, _)) => Err(self.refusal(refused)),
            // The next one who asks may have more luck.
            Err(death) => return Err(self.died(death, &load, bounds).await),
        };
        if let Some(process) = self.process.take() {
            process.end().await;
        }
        self.unloadable.insert(reason).clone().map(|()| false)
    }

    fn refusal(&self, answer: Answer) -> EngineError {
        match answer {
            Answer::File { file, reason } => EngineError::File { file, reason },
            Answer::Refused(reason) => EngineError::Request(reason),
            Answer::Panicked(said) => {
                tracing::warn!(what = self.called(), %said, "a library failed on a file of a model");
                EngineError::Request(format!("the {} cannot be used: the log says why", self.called()))
            }
            Answer::Done | Answer::Nothing => EngineError::Stopped,
        }
    }

    /// What the end of the child means for the one who asked `ask`.
    async fn died(&mut self, death: Death, ask: &Ask, bounds: Bounds) -> EngineError {
        let (called, cpu_ms) = (self.called(), bounds.cpu.as_millis());
        let Some(process) = self.process.take() else { return EngineError::Stopped };
        let end = process.end().await;
        let reason = match death {
            Death::Left => return EngineError::Stopped,
            Death::Late => format!("the {called} takes more than {cpu_ms} ms of computing"),
            Death::Ended => match &end {
                End { words, .. } if words.contains("memory allocation") => {
                    format!("the {called} takes more than {} MiB of memory", bounds.memory >> 20)
                }
                End { status, words } => {
                    tracing::warn!(what = called, %status, %words, "a child process ended");
                    format!("the {called} nests too deeply, or fails in another way: the log says how")
                }
            },
        };
        tracing::info!(what = called, %reason, "a child process is started anew");
        match ask {
            // The largest is the one.
            Ask::Load { files, .. } => {
                let file = files.iter().max_by_key(|(_, size)| *size);
                EngineError::file(file.map_or(called, |(name, _)| name.as_str()), reason)
            }
            Ask::Encode { .. } | Ask::Render { .. } => EngineError::Request(reason),
        }
    }

    fn called(&self) -> &'static str {
        match self.what {
            What::Tokenizer => "tokenizer",
            What::Template => "chat template",
        }
    }
}

/// Why a child is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// It took too long.
    Late,
    /// It ended by itself.
    Ended,
    /// Nobody waits for it any more.
    Left,
}

/// How it ended.
struct End {
    status: String,
    words: String,
}

/// A child that runs.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

impl Process {
    fn start() -> std::io::Result<Self> {
        let mut command = Command::new(program()?);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What is typed into our terminal is not meant for it.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.kill_on_drop(true).spawn()?;
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(stdin), Some(stdout), Some(stderr)) => Ok(Self { child, stdin, stdout, stderr }),
            _ => Err(std::io::Error::other("it has no pipes")),
        }
    }

    /// Asks, and waits for the answer as long as `bounds` allow.
    async fn tell(&mut self, ask: &Ask, bounds: Bounds, body: &[Bytes]) -> Result<(Answer, Bytes), Death> {
        let watch = watch(self.child.id(), bounds);
        let exchange = exchange(&mut self.stdin, &mut self.stdout, ask, bounds, body);
        tokio::select! {
            told = exchange => told.map_err(|_| Death::Ended),
            () = watch => Err(Death::Late),
        }
    }

    /// Ends it, and says how it had ended.
    async fn end(self) -> End {
        let Self { mut child, stdin, stdout, stderr } = self;
        drop((stdin, stdout));
        // One that ended by itself has said why; one that goes on has nothing to say.
        if timeout(LOOK, child.wait()).await.is_err() {
            let _ = child.start_kill();
        }
        let mut words = Vec::new();
        let _ = timeout(END, stderr.take(LAST_WORDS_MAX).read_to_end(&mut words)).await;
        let status = match timeout(END, child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            _ => "it could not be waited for".to_owned(),
        };
        End { status, words: String::from_utf8_lossy(&words).trim().to_owned() }
    }
}

async fn exchange(
    stdin: &mut ChildStdin,
    stdout: &mut ChildStdout,
    ask: &Ask,
    bounds: Bounds,
    body: &[Bytes],
) -> std::io::Result<(Answer, Bytes)> {
    let size = body.iter().map(Bytes::len).sum();
    let cpu_s = bounds.cpu.as_secs() + 2;
    let question = Question { ask: ask.clone(), memory: bounds.memory, cpu_s };
    stdin.write_all(&wire::head(&question, size)?).await?;
    for part in body {
        stdin.write_all(part).await?;
    }
    stdin.flush().await?;
    let mut lengths = [0; LENGTHS_SIZE];
    stdout.read_exact(&mut lengths).await?;
    let (head, body) = wire::lengths(lengths, BODY_SIZE_MAX)?;
    let mut bytes = vec![0; head];
    stdout.read_exact(&mut bytes).await?;
    let mut rest = vec![0; body];
    stdout.read_exact(&mut rest).await?;
    Ok((wire::read_head(&bytes)?, rest.into()))
}

/// Returns when the process has exceeded its time.
async fn watch(id: Option<u32>, bounds: Bounds) {
    let (started, before) = (Instant::now(), cpu(id));
    loop {
        sleep(LOOK).await;
        let took = started.elapsed();
        // Where processor time is not told, the clock must do, with some patience.
        let used = match (cpu(id), before) {
            (Some(now), Some(before)) => now.saturating_sub(before),
            _ => took / 2,
        };
        if bounds.cpu < used || bounds.clock < took {
            return;
        }
    }
}

/// Processor time of a process so far.
#[cfg(target_os = "linux")]
fn cpu(id: Option<u32>) -> Option<Duration> {
    bounds::computed(&std::fs::read_to_string(format!("/proc/{}/stat", id?)).ok()?)
}

#[cfg(not(target_os = "linux"))]
fn cpu(_: Option<u32>) -> Option<Duration> {
    None
}

/// This program. On Linux by the link to what runs, which stays right when the file is replaced by a
/// newer version.
fn program() -> std::io::Result<std::path::PathBuf> {
    let running = std::path::PathBuf::from("/proc/self/exe");
    if cfg!(target_os = "linux") && running.exists() { Ok(running) } else { std::env::current_exe() }
}
