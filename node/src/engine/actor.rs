//! Who is in the next pass. Owns the model; everyone else holds a handle.
//!
//! Requests join between passes, up to a number, and as long as there is memory for their prompts. What a
//! sequence adds is reserved as it grows, not beforehand. Where that fails, newcomers wait, and the
//! youngest sequences are preempted: they give their keys and values back, and are computed again when
//! there is memory. A client that does not take its tokens is left out until it does, and never makes
//! others wait.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    EngineError,
    batch::{self, Output, Row, What},
    caught::caught,
    model::{Input, Model},
    sequence::{Job, Next, Sequence},
    text::Text,
};

/// Requests that are answered at once.
const ACTIVE_MAX: usize = 16;

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
        /// Whether they are computed in f32 throughout, whatever is configured.
        exact: bool,
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
    /// The oldest first.
    active: Vec<Sequence>,
    /// Those that gave back their memory, the oldest first. All are younger than any active one.
    preempted: VecDeque<Sequence>,
}

impl Actor {
    pub(crate) fn new(model: Model, text: Arc<Text>, commands: Receiver<Command>) -> Self {
        Self { model, text, commands, next: None, active: Vec::new(), preempted: VecDeque::new() }
    }

    /// Works until there is nothing to do and nobody who could ask.
    pub(crate) fn run(mut self) {
        while self.admit() {
            self.dismiss();
            self.reserve();
            self.encode();
            if !self.active.is_empty() && !self.pass() {
                self.idle();
            }
        }
    }

    /// Takes in what there is room for; waits if there is nothing else to do. False at the end.
    fn admit(&mut self) -> bool {
        self.resume();
        while self.active.len() + self.preempted.len() < ACTIVE_MAX {
            if let Some(job) = self.next.take() {
                self.start(job);
            }
            if self.next.is_some() {
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
            // It may have preempted all.
            self.resume();
        }
        true
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Generate(job) if job.events.is_closed() => (),
            Command::Generate(job) => self.start(job),
            Command::Forward { rows, what, exact, reply } if !reply.is_closed() => {
                let needed = batch::bytes(&self.model, &rows);
                while self.model.working().budget().left() < needed && self.preempt_youngest(0) {}
                self.model.set_exact(exact);
                let computed = caught("computing", || batch::run(&mut self.model, &rows, what));
                // Nobody waiting any more is no failure.
                let _ = reply.send(computed);
            }
            Command::Forward { .. } => (),
        }
    }

    /// Begins with `job`, or puts it off until there is memory for its prompt.
    fn start(&mut self, job: Box<Job>) {
        let shape = self.model.shape();
        if !self.preempted.is_empty()
            || !self.has_room(Sequence::bytes_of(&job.request, job.prompt.len(), shape, &self.text))
        {
            self.next = Some(job);
            return;
        }
        let sequence = Sequence::new(*job, shape, &self.text);
        self.active.extend(self.reserved(sequence));
    }

    /// `sequence` with memory for all its tokens, or nothing if it was told that there is none.
    fn reserved(&self, mut sequence: Sequence) -> Option<Sequence> {
        let budget = self.model.working().budget();
        if sequence.reserve(budget, sequence.pending()) {
            return Some(sequence);
        }
        sequence.fail(out_of_memory(&sequence, &self.model));
        None
    }

    /// Takes back those that were preempted, as far as there is memory.
    fn resume(&mut self) {
        while let Some(sequence) = self.preempted.pop_front() {
            if !self.has_room(sequence.bytes(sequence.len())) {
                return self.preempted.push_front(sequence);
            }
            self.active.extend(self.reserved(sequence));
        }
    }

    /// Whether there is memory for one more sequence of so many bytes, beside the next step of all others: it
    /// would be preempted soon otherwise. If there are no others, waiting does not help.
    fn has_room(&self, bytes: u64) -> bool {
        let steps = self.active.iter().map(Sequence::step_bytes).fold(0, u64::saturating_add);
        self.active.is_empty() || bytes.saturating_add(steps) <= self.model.working().budget().left()
    }

    /// Takes the memory of the youngest sequence, unless it is one of the first `but`.
    fn preempt_youngest(&mut self, but: usize) -> bool {
        if self.active.len() <= but {
            return false;
        }
        let Some(mut youngest) = self.active.pop() else { return false };
        youngest.preempt();
        self.preempted.push_front(youngest);
        true
    }

    /// Reserves what the next pass adds, the oldest first, at the cost of the youngest.
    fn reserve(&mut self) {
        let rows = self.model.working().rows();
        let mut at = 0;
        while at < self.active.len() {
            let budget = self.model.working().budget();
            let more = self.active[at].pending().min(rows);
            if self.active[at].reserve(budget, more) {
                at += 1;
            } else if !self.preempt_youngest(at.max(1)) {
                let alone = self.active.remove(at);
                alone.fail(out_of_memory(&alone, &self.model));
            }
        }
    }

    /// Drops sequences that nobody listens to, or whose client has been away for too long.
    fn dismiss(&mut self) {
        let stays = |sequence: &mut Sequence| {
            let full = sequence.full_for().is_some_and(|full| FULL_MAX < full);
            if full {
                sequence.fail(EngineError::Stalled(FULL_MAX.as_secs()));
            }
            !full && !sequence.cancelled()
        };
        self.active.retain_mut(stays);
        self.preempted.retain_mut(stays);
    }

    /// Encodes the prompts of those who have not got that far, as many in a pass as it should have, or
    /// one that is longer.
    fn encode(&mut self) {
        loop {
            let (mut room, mut some) = (self.model.working().rows(), Vec::new());
            let waiting = |sequence: &Sequence| sequence.unencoded().is_some();
            let exact = self.active.iter().any(|sequence| waiting(sequence) && sequence.is_exact());
            for (at, sequence) in self.active.iter().enumerate() {
                let Some(prompt) = sequence.unencoded().filter(|_| sequence.is_exact() == exact) else {
                    continue;
                };
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
            self.model.set_exact(exact);
            let encoded = caught("computing", || self.model.encode(&rows));
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
        let mut room = self.model.working().rows();
        // Those who generate first: they need one token each, and feel every wait.
        let mut ready: Vec<(usize, &mut Sequence)> = self.active.iter_mut().enumerate().collect();
        ready.retain_mut(|(_, sequence)| sequence.full_for().is_none());
        // A pass rounds for all or for none. Those that are computed exactly are few, and go first.
        let exact = ready.iter().any(|(_, sequence)| sequence.is_exact());
        ready.retain(|(_, sequence)| sequence.is_exact() == exact);
        ready.sort_by_key(|(_, sequence)| 1 < sequence.pending());
        let (mut took_part, mut inputs, mut sinks) = (Vec::new(), Vec::<Input<'_>>::new(), Vec::new());
        for (at, sequence) in ready {
            let share = sequence.pending().min(room);
            room -= share;
            if 0 < share {
                let (input, sink) = sequence.input(share);
                took_part.push(at);
                inputs.push(input);
                sinks.push(sink);
            }
        }
        if inputs.is_empty() {
            return false;
        }
        self.model.set_exact(exact);
        let mut told = |at: usize, logits: &[f32]| sinks[at].see(logits);
        let computed = caught("computing", || self.model.forward(inputs, &mut told));
        drop(sinks);
        // From the last on, so that the others keep their places.
        took_part.sort_unstable_by(|a, b| b.cmp(a));
        for at in took_part {
            let sequence = &mut self.active[at];
            match computed.clone().and_then(|()| sequence.advance(&self.text)) {
                Ok(Next::Pass) => (),
                Ok(Next::Over) => drop(self.active.remove(at)),
                Err(error) => self.active.remove(at).fail(error),
            }
        }
        true
    }

    /// Waits a moment, or for a command.
    fn idle(&mut self) {
        if self.next.is_none() && self.preempted.is_empty() && self.active.len() < ACTIVE_MAX {
            if let Ok(command) = self.commands.recv_timeout(FULL_POLL) {
                self.on_command(command);
            }
        } else {
            std::thread::park_timeout(FULL_POLL);
        }
    }
}

/// Why `sequence`, which is alone, cannot go on.
fn out_of_memory(sequence: &Sequence, model: &Model) -> EngineError {
    let tokens = sequence.len();
    let what = format!("keys and values of {tokens} tokens");
    EngineError::no_memory(what, sequence.bytes(tokens), model.working().budget().left())
}
