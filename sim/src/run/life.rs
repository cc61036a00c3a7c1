//! What one node does: it joins, fetches, gives what it has meanwhile, and may come and go.

use std::{ops::Range, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use surf_node::{
    config,
    fetch::{Fetcher, Model as Source, Parts},
    journal::Journal,
    publish::announcer,
    source::{ModelSource, Urgency},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    model::Model,
    net::{Net, View},
    scenario::Wants,
};

/// Wishes that a download has open at once, as a node's `pull` has.
const WISHES: usize = 256;

/// How long a node waits before it asks again for what nobody had.
const AGAIN: Duration = Duration::from_secs(1);

/// What a node is to do.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) node: usize,
    pub(super) wants: Wants,
    /// Bytes of wishes ahead of the compute, and how long a layer computes.
    pub(super) ahead: u64,
    pub(super) compute: Duration,
    pub(super) joins: Instant,
    pub(super) outings: Vec<Outing>,
    pub(super) seed: u64,
}

/// A time that a node is away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outing {
    pub(super) leaves: Instant,
    /// Never, if there is nothing.
    pub(super) returns: Option<Instant>,
    pub(super) forgets: bool,
    pub(super) silently: bool,
}

impl Life {
    /// Lives until nobody is interested any more.
    pub(super) async fn live(self, net: Arc<Net>, model: Arc<Model>) {
        sleep_until(self.joins).await;
        for outing in self.outings.iter().map(Some).chain([None]) {
            let here = net.arrive(self.node);
            let days = self.be_there(&net, &model, here);
            let Some(outing) = outing else { return days.await };
            tokio::select! {
                biased;
                () = sleep_until(outing.leaves) => (),
                () = days => (),
            }
            net.depart(self.node, outing.silently);
            let Some(returns) = outing.returns else { return };
            sleep_until(returns).await;
            if outing.forgets {
                net.clear(self.node);
            }
        }
    }

    /// Fetches, and gives. Never ends.
    async fn be_there(&self, net: &Arc<Net>, model: &Arc<Model>, view: Arc<View>) {
        let mut tasks = JoinSet::new();
        let manifest = Arc::clone(model.manifest());
        let wanted = Arc::<announcer::Wanted>::default();
        tasks.spawn(announcer::run(
            Arc::clone(view.shelf()) as _,
            Arc::clone(&view) as _,
            move || vec![Arc::clone(&manifest)],
            Arc::clone(&wanted),
        ));
        let fetching = match self.wants {
            Wants::Nothing => return std::future::pending().await,
            Wants::All | Wants::InOrder => fetcher(view, self.seed),
        };
        let source = fetching.model(Arc::clone(model.manifest()));
        let wanting = wanted.want(model.manifest().id());
        let wish = Wish { net, model, source, node: self.node };
        match self.wants {
            Wants::Nothing | Wants::All => wish.all().await,
            Wants::InOrder => wish.in_order(self.ahead, self.compute).await,
        }
        drop(wanting);
        net.finished(self.node);
        // The fetcher lives on, as it does in a node that has what it wanted.
        std::future::pending().await
    }
}

fn fetcher(view: Arc<View>, seed: u64) -> Fetcher {
    let parts = Parts {
        me: view.id(),
        keeper: Arc::clone(&view) as _,
        directory: Arc::clone(&view) as _,
        dialer: view,
        origins: Vec::new(),
        journal: Arc::new(Journal::default()),
        seed,
    };
    Fetcher::start(parts, &config::Fetch::default())
}

struct Wish<'a> {
    net: &'a Net,
    model: &'a Model,
    source: Source,
    node: usize,
}

impl Wish<'_> {
    /// Every chunk, in no order, as `pull` asks.
    async fn all(&self) {
        let all = stream::iter(0..self.model.chunks()).map(|at| self.chunk(at, Urgency::Background));
        all.buffer_unordered(WISHES).for_each(|()| std::future::ready(())).await;
    }

    /// Layer after layer, so many bytes ahead, as inference asks.
    async fn in_order(&self, ahead: u64, compute: Duration) {
        let layers = self.model.layers().iter().cloned().enumerate();
        let width = |layer: &Range<usize>| layer.len() as u64 * self.model.chunk_size();
        let widest = self.model.layers().iter().map(width).max().unwrap_or(1);
        let coming = stream::iter(layers).map(|(number, layer)| {
            let chunks = layer.map(move |at| self.chunk(at, Urgency::Deadline(number as u64)));
            futures::future::join_all(chunks)
        });
        let mut coming = coming.buffered((ahead / widest).max(1) as usize);
        while coming.next().await.is_some() {
            if !compute.is_zero() {
                sleep(compute).await;
            }
        }
    }

    async fn chunk(&self, at: usize, urgency: Urgency) {
        while self.source.chunk(self.model.entry(at), urgency).await.is_err() {
            self.net.gave_up(self.node, at);
            sleep(AGAIN).await;
        }
        self.net.got(self.node, at);
    }
}
