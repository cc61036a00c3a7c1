//! Who is in the next pass. Owns the model; everyone else holds a handle.
//!
//! Requests join between passes, up to a number and up to the memory that their keys and values may
//! need. A client that does not take its tokens is left out until it does, and never makes others
//! wait.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    CACHE_BYTES_MAX, EngineError,
    batch::{self, Output, Row, What},
    model::{Input, Model},
    sequence::{Job, Next, Sequence},
    text::Text,
};

/// Requests that are answered at once.
const ACTIVE_MAX: usize = 16;

/// Tokens in one pass. A pass costs the weights once, whatever it computes, so prompts run in large
/// batches; but everyone else waits for it.
pub(super) const PASS_TOKENS_MAX: usize = 512;

/// How long a client may take nothing before it is given up.
const FULL_MAX: Duration = Duration::from_secs(60);

/// How often to look whether a client has taken something, while nobody else has work.
const FULL_POLL: Duration = Duration::from_millis(10);

/// What an engine may be told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer a request.
    Generate(Box<Job>),
    /// Compute everything about some rows.
    Forward {
        /// Each of at least one token, checked.
        rows: Vec<Row>,
        /// What is wanted of them.
        what: What,
        /// Who waits for it.
        reply: oneshot::Sender<Result<Vec<Output>, EngineError>>,
    },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Actor {
    model: Model,
    text: Arc<Text>,
    commands: Receiver<Command>,
    /// Taken from the queue, but there is no memory for it yet.
    next: Option<Box<Job>>,
    active: Vec<Sequence>,
}

impl Actor {
    pub(crate) fn new(model: Model, text: Arc<Text>, commands: Receiver<Command>) -> Self {
        Self { model, text, commands, next: None, active: Vec::new() }
    }

    /// Works until there is nothing to do and nobody who could ask.
    pub(crate) fn run(mut self) {
        while self.admit() {
            self.dismiss();
            self.encode();
            if !self.active.is_empty() && !self.pass() {
                self.idle();
            }
        }
    }

    /// Takes in what there is room for; waits if there is nothing else to do. False at the end.
    fn admit(&mut self) -> bool {
        while self.active.len() < ACTIVE_MAX {
            if let Some(job) = self.next.take_if(|job| fits(&self.active, job, &self.model)) {
                self.start(*job);
            } else if self.next.is_some() {
                return true;
            }
            let command = match self.active.is_empty() {
                true => self.commands.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.commands.try_recv(),
            };
            match command {
                Ok(command) => self.on_command(command),
                Err(_) => return !self.active.is_empty(),
            }
        }
        true
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Generate(job) if job.events.is_closed() => (),
            Command::Generate(job) if fits(&self.active, &job, &self.model) => self.start(*job),
            Command::Generate(job) => self.next = Some(job),
            Command::Forward { rows, what, reply } if !reply.is_closed() => {
                // Nobody waiting any more is no failure.
                let _ = reply.send(batch::run(&mut self.model, &rows, what));
            }
            Command::Forward { .. } => (),
        }
    }

    fn start(&mut self, job: Job) {
        self.active.push(Sequence::new(job, self.model.shape(), &self.text));
    }

    /// Drops sequences that nobody listens to, or whose client has been away for too long.
    fn dismiss(&mut self) {
        self.active.retain_mut(|sequence| {
            let full = sequence.full_for().is_some_and(|full| FULL_MAX < full);
            if full {
                sequence.fail(EngineError::Stalled(FULL_MAX.as_secs()));
            }
            !full && !sequence.cancelled()
        });
    }

    /// Encodes the prompts of those who have not got that far, as many in a pass as it should have, or
    /// one that is longer.
    fn encode(&mut self) {
        loop {
            let (mut room, mut some) = (PASS_TOKENS_MAX, Vec::new());
            for (at, sequence) in self.active.iter().enumerate() {
                let Some(prompt) = sequence.unencoded() else { continue };
                if some.is_empty() || prompt.len() <= room {
                    room = room.saturating_sub(prompt.len());
                    some.push((at, self.model.positions(prompt, &vec![true; prompt.len()])));
                }
            }
            if some.is_empty() {
                return;
            }
            let prompt = |at: usize| self.active[at].unencoded().unwrap_or_default();
            let rows: Vec<_> = some.iter().map(|(at, positions)| (prompt(*at), &**positions)).collect();
            let encoded = self.model.encode(&rows);
            let encoded: Result<(), _> = encoded.and_then(|encoded| {
                let mut each = some.iter().zip(encoded);
                each.try_for_each(|((at, _), hidden)| self.active[*at].encoded(hidden))
            });
            if let Err(error) = encoded {
                // From the last on, so that the others keep their places.
                for (at, _) in some.iter().rev() {
                    self.active.remove(*at).fail(error.clone());
                }
            }
        }
    }

    /// One pass with everyone who has room for what it may say. False if that is nobody.
    fn pass(&mut self) -> bool {
        let vocab = self.model.shape().vocab;
        let mut ready: Vec<&mut Sequence> = Vec::new();
        let mut waiting = Vec::new();
        for mut sequence in self.active.drain(..) {
            match sequence.full_for() {
                None => waiting.push((true, sequence)),
                Some(_) => waiting.push((false, sequence)),
            }
        }
        // Those who generate first: they need one token each, and feel every wait.
        let mut room = PASS_TOKENS_MAX;
        waiting.sort_by_key(|(ready, sequence)| (!ready, 1 < sequence.pending()));
        let mut shares = Vec::new();
        for (is_ready, sequence) in &mut waiting {
            let share = if *is_ready { sequence.pending().min(room) } else { 0 };
            room -= share;
            if 0 < share {
                shares.push(share);
                ready.push(sequence);
            }
        }
        let inputs: Vec<Input<'_>> =
            ready.iter_mut().zip(&shares).map(|(sequence, &share)| sequence.input(share)).collect();
        let idle = inputs.is_empty();
        let logits = if idle { Ok(Vec::new()) } else { self.model.forward(inputs) };
        let took_part = ready.len();
        for (at, (_, mut sequence)) in waiting.into_iter().enumerate() {
            let next = match &logits {
                _ if took_part <= at => Ok(Next::Pass),
                Ok(logits) => sequence.advance(&logits[at], vocab, &self.text),
                Err(error) => Err(error.clone()),
            };
            match next {
                Ok(Next::Pass) => self.active.push(sequence),
                Ok(Next::Over) => (),
                Err(error) => sequence.fail(error),
            }
        }
        !idle
    }

    /// Waits a moment, or for a command.
    fn idle(&mut self) {
        if self.next.is_none() && self.active.len() < ACTIVE_MAX {
            if let Ok(command) = self.commands.recv_timeout(FULL_POLL) {
                self.on_command(command);
            }
        } else {
            std::thread::park_timeout(FULL_POLL);
        }
    }
}

/// Whether there is memory for what `job` may need, beside the others.
fn fits(active: &[Sequence], job: &Job, model: &Model) -> bool {
    let shape = model.shape().cache;
    let others: u64 = active.iter().map(|sequence| sequence.cache_bytes(shape)).sum();
    active.is_empty() || others.saturating_add(job.cache_bytes(shape)) <= CACHE_BYTES_MAX
}
