//! Who holds the memory that models run in: one model, or work that needs it alone.
//!
//! Nobody waits here for a network but those who want what is being loaded: a model that is removed ends
//! its own loading, and one that is loaded is removed as soon as nobody uses it.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use surf_protocol::ModelId;
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::node::NodeError;

/// How long a request waits for whoever has the memory to be done with it.
const SWITCH_WAIT: Duration = Duration::from_secs(60);

/// How often it looks whether that is the case.
const SWITCH_LOOK: Duration = Duration::from_millis(50);

/// See the module. A model is an `M`.
#[derive(Debug)]
pub(super) struct Host<M> {
    /// Whose turn it is to load something. Held while that lasts, so that two do not load two.
    turn: Arc<tokio::sync::Mutex<()>>,
    state: Arc<Mutex<State<M>>>,
}

#[derive(Debug)]
struct State<M> {
    loaded: Option<(ModelId, Arc<M>)>,
    /// What is no longer given to anybody, and still used by somebody.
    leaving: Option<ModelId>,
    loading: Option<(ModelId, CancellationToken)>,
    /// What is being removed from the node.
    removing: Vec<ModelId>,
    /// Whether work has the memory alone.
    alone: bool,
}

impl<M> State<M> {
    /// What is loaded, if it is `which`. It is leaving from now on.
    fn leave(&mut self, which: impl Fn(ModelId) -> bool) -> Option<(ModelId, Arc<M>)> {
        let taken = self.loaded.take_if(|(loaded, _)| which(*loaded));
        if let Some((model, _)) = &taken {
            self.leaving = Some(*model);
        }
        taken
    }
}

/// A model is being removed, until this is dropped: it is not loaded.
#[derive(Debug)]
pub(in crate::node) struct Removing<M> {
    model: ModelId,
    state: Arc<Mutex<State<M>>>,
}

/// Nothing is loaded, until this is dropped.
#[derive(Debug)]
pub(super) struct Alone<M> {
    state: Arc<Mutex<State<M>>>,
    _turn: OwnedMutexGuard<()>,
}

/// A model is being loaded, until this is dropped.
struct Loading<'a, M>(&'a Host<M>);

impl<M> Default for Host<M> {
    fn default() -> Self {
        let state = State { loaded: None, leaving: None, loading: None, removing: Vec::new(), alone: false };
        Self { turn: Arc::default(), state: Arc::new(Mutex::new(state)) }
    }
}

impl<M> Host<M> {
    /// What is loaded.
    pub(super) fn current(&self) -> Option<Arc<M>> {
        self.state().loaded.as_ref().map(|(_, loaded)| Arc::clone(loaded))
    }

    /// `model`. If it is not loaded, `prepare` looks whether it can be, what is loaded leaves, and `load` makes it of
    /// what was prepared. Dropping this ends the loading.
    pub(super) async fn get<P, L: Future<Output = Result<M, NodeError>>>(
        &self,
        model: ModelId,
        prepare: impl Future<Output = Result<P, NodeError>>,
        load: impl FnOnce(P) -> L,
    ) -> Result<Arc<M>, NodeError> {
        if let Some(loaded) = self.here(model)? {
            return Ok(loaded);
        }
        let _turn = self.turn(Some(model)).await?;
        if let Some(loaded) = self.here(model)? {
            return Ok(loaded);
        }
        let cancelled = CancellationToken::new();
        self.state().loading = Some((model, cancelled.clone()));
        let _loading = Loading(self);
        let work = async {
            let prepared = prepare.await?;
            self.emptied().await?;
            load(prepared).await
        };
        let loaded = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Err(removed(model)),
            loaded = work => Arc::new(loaded?),
        };
        let mut state = self.state();
        if state.removing.contains(&model) {
            return Err(removed(model));
        }
        state.loaded = Some((model, Arc::clone(&loaded)));
        Ok(loaded)
    }

    /// `model`, if it is loaded; an error, if it is being removed.
    fn here(&self, model: ModelId) -> Result<Option<Arc<M>>, NodeError> {
        let state = self.state();
        if state.removing.contains(&model) {
            return Err(removed(model));
        }
        let loaded = state.loaded.as_ref().filter(|(here, _)| *here == model);
        Ok(loaded.map(|(_, loaded)| Arc::clone(loaded)))
    }

    /// Waits until nothing is loaded, nor leaving. Whoever calls this has the turn.
    async fn emptied(&self) -> Result<(), NodeError> {
        let deadline = Instant::now() + SWITCH_WAIT;
        loop {
            let (taken, leaving) = {
                let mut state = self.state();
                (state.leave(|_| true), state.leaving)
            };
            match (taken, leaving) {
                (_, None) => return Ok(()),
                (Some((model, loaded)), _) => self.empty(model, loaded).await?,
                (None, Some(model)) if deadline < Instant::now() => return Err(in_use(model)),
                (None, Some(_)) => sleep(SWITCH_LOOK).await,
            }
        }
    }

    /// Lets go of `model`, which is to be removed: ends its loading, waits until nobody uses it.
    pub(super) async fn remove(&self, model: ModelId) -> Result<Removing<M>, NodeError> {
        self.state().removing.push(model);
        let removing = Removing { model, state: Arc::clone(&self.state) };
        let deadline = Instant::now() + SWITCH_WAIT;
        loop {
            let taken = {
                let mut state = self.state();
                if let Some((_, cancel)) = state.loading.as_ref().filter(|(loading, _)| *loading == model) {
                    cancel.cancel();
                }
                let taken = state.leave(|loaded| loaded == model);
                if state.leaving != Some(model) {
                    return Ok(removing);
                }
                taken
            };
            match taken {
                Some((_, loaded)) => self.empty(model, loaded).await?,
                None if deadline < Instant::now() => return Err(in_use(model)),
                None => sleep(SWITCH_LOOK).await,
            }
        }
    }

    /// The memory for work that is no model's, as soon as nobody uses what is loaded.
    pub(super) async fn alone(&self) -> Result<Alone<M>, NodeError> {
        let turn = self.turn(None).await?;
        self.emptied().await?;
        self.state().alone = true;
        Ok(Alone { state: Arc::clone(&self.state), _turn: turn })
    }

    /// The turn to load something. Whoever wants what is being loaded waits as long as that takes.
    async fn turn(&self, model: Option<ModelId>) -> Result<OwnedMutexGuard<()>, NodeError> {
        let turn = Arc::clone(&self.turn).lock_owned();
        tokio::pin!(turn);
        loop {
            if let Ok(turn) = timeout(SWITCH_WAIT, &mut turn).await {
                return Ok(turn);
            }
            let state = self.state();
            match &state.loading {
                Some((loading, _)) if Some(*loading) == model => (),
                Some((loading, _)) => {
                    return Err(NodeError::Busy(format!("the node is loading {loading}; try again later")));
                }
                None if state.alone => {
                    let busy = "the node is measuring a model that it quantised; try again later";
                    return Err(NodeError::Busy(busy.to_owned()));
                }
                None => (),
            }
        }
    }

    /// Waits until nobody uses `loaded`, and drops it. It is `leaving` meanwhile, and comes back if that
    /// takes too long.
    async fn empty(&self, model: ModelId, loaded: Arc<M>) -> Result<(), NodeError> {
        let deadline = Instant::now() + SWITCH_WAIT;
        let mut leaving = Leaving { host: self, model, loaded: Some(loaded) };
        while let Some(loaded) = leaving.loaded.take() {
            match Arc::try_unwrap(loaded) {
                Ok(unused) => {
                    drop(unused);
                    return Ok(());
                }
                Err(used) => leaving.loaded = Some(used),
            }
            if deadline < Instant::now() {
                break;
            }
            sleep(SWITCH_LOOK).await;
        }
        Err(in_use(model))
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().expect("no panics while held")
    }
}

/// What is to leave, until this is dropped. What is still there then comes back: whoever waited for it may
/// have gone.
struct Leaving<'a, M> {
    host: &'a Host<M>,
    model: ModelId,
    loaded: Option<Arc<M>>,
}

impl<M> Drop for Leaving<'_, M> {
    fn drop(&mut self) {
        let mut state = self.host.state();
        state.leaving = None;
        if let Some(loaded) = self.loaded.take() {
            state.loaded = Some((self.model, loaded));
        }
    }
}

impl<M> Drop for Loading<'_, M> {
    fn drop(&mut self) {
        self.0.state().loading = None;
    }
}

impl<M> Drop for Removing<M> {
    fn drop(&mut self) {
        let mut state = self.state.lock().expect("no panics while held");
        if let Some(at) = state.removing.iter().position(|model| *model == self.model) {
            state.removing.swap_remove(at);
        }
    }
}

impl<M> Drop for Alone<M> {
    fn drop(&mut self) {
        self.state.lock().expect("no panics while held").alone = false;
    }
}

fn in_use(model: ModelId) -> NodeError {
    NodeError::Busy(format!("the node is running {model}; try again later"))
}

fn removed(model: ModelId) -> NodeError {
    NodeError::NotFound(format!("the model {model} is being removed from this node"))
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::LazyLock,
    };

    use super::*;

    static A: LazyLock<ModelId> = LazyLock::new(|| ModelId::from_bytes(&[1; 32]).unwrap());
    static B: LazyLock<ModelId> = LazyLock::new(|| ModelId::from_bytes(&[2; 32]).unwrap());

    type Hosted = Arc<Host<&'static str>>;

    async fn get(host: &Host<&'static str>, model: ModelId) -> Result<Arc<&'static str>, NodeError> {
        let name = if model == *A { "a" } else { "b" };
        host.get(model, ready(Ok(())), |()| ready(Ok(name))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_is_loaded_once_and_another_takes_its_place() {
        let host = Host::default();
        let first = get(&host, *A).await.unwrap();
        let again = host.get(*A, async { panic!("it is here") }, |()| pending()).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        drop(again);
        let busy = get(&host, *B).await.unwrap_err();
        assert!(matches!(&busy, NodeError::Busy(why) if why.contains("is running")), "{busy}");
        assert!(Arc::ptr_eq(&first, &host.current().unwrap()), "it comes back");
        drop(first);
        assert_eq!(*get(&host, *B).await.unwrap(), "b");
        let no = || NodeError::Invalid("no".to_owned());
        let unfit = host.get(*A, ready(Err(no())), |()| pending()).await;
        assert_eq!(unfit.unwrap_err(), no());
        assert_eq!(*host.current().unwrap(), "b", "what cannot be loaded costs nobody what is");
        let failed = host.get(*A, ready(Ok(())), |()| ready(Err(no()))).await;
        assert_eq!(failed.unwrap_err(), no());
        assert!(host.current().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn removing_ends_a_loading_that_never_would() {
        let host = Hosted::default();
        let waiting =
            |host: Hosted| tokio::spawn(async move { host.get(*A, ready(Ok(())), |()| pending()).await });
        let loadings = [waiting(host.clone()), waiting(host.clone())];
        while host.state().loading.is_none() {
            tokio::task::yield_now().await;
        }
        let started = Instant::now();
        let removing = host.remove(*A).await.unwrap();
        for loading in loadings {
            assert!(matches!(loading.await.unwrap(), Err(NodeError::NotFound(_))));
        }
        assert!(matches!(get(&host, *A).await, Err(NodeError::NotFound(_))));
        assert!(started.elapsed() < SWITCH_LOOK, "nobody had to wait");
        drop(removing);
        assert_eq!(*get(&host, *A).await.unwrap(), "a");
    }

    #[tokio::test(start_paused = true)]
    async fn removing_does_not_wait_for_another_that_loads() {
        let host = Hosted::default();
        let other = host.clone();
        let loading = tokio::spawn(async move { other.get(*B, ready(Ok(())), |()| pending()).await });
        while host.state().loading.is_none() {
            tokio::task::yield_now().await;
        }
        drop(host.remove(*A).await.unwrap());
        assert!(!loading.is_finished());
        loading.abort();
        assert!(loading.await.is_err());
        assert_eq!(*get(&host, *A).await.unwrap(), "a");
        let used = get(&host, *A).await.unwrap();
        let busy = host.remove(*A).await.unwrap_err();
        assert!(matches!(busy, NodeError::Busy(_)), "{busy}");
        drop(used);
        drop(host.remove(*A).await.unwrap());
        assert!(host.current().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn work_has_the_memory_alone() {
        let host = Host::default();
        let used = get(&host, *A).await.unwrap();
        assert!(matches!(host.alone().await, Err(NodeError::Busy(_))));
        drop(used);
        let alone = host.alone().await.unwrap();
        assert!(host.current().is_none());
        let busy = get(&host, *B).await.unwrap_err();
        assert!(matches!(&busy, NodeError::Busy(why) if why.contains("measuring")), "{busy}");
        drop(alone);
        assert_eq!(*get(&host, *B).await.unwrap(), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn work_waits_for_what_is_being_removed() {
        let host = Hosted::default();
        let used = get(&host, *A).await.unwrap();
        let other = host.clone();
        let removing = tokio::spawn(async move { other.remove(*A).await });
        while host.state().leaving.is_none() {
            tokio::task::yield_now().await;
        }
        let other = host.clone();
        let alone = tokio::spawn(async move { other.alone().await });
        sleep(10 * SWITCH_LOOK).await;
        assert!(!alone.is_finished(), "the model is still in memory");
        drop(used);
        drop(alone.await.unwrap().unwrap());
        drop(removing.await.unwrap().unwrap());
    }
}
