//! Tells the directory what is here, whenever that changes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use surf_protocol::ModelId;
use tokio::time::sleep;

use crate::{
    fetch::{Directory, Key},
    publish::announced,
    source::Library,
    store::Store,
};

/// Changes that come within this time are announced together: a download brings many a second.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs until the store or the directory is gone.
pub(super) async fn run(store: Store, directory: Arc<dyn Directory>) {
    let mut changes = store.changes();
    let mut announced_before: HashMap<ModelId, Vec<Key>> = HashMap::new();
    loop {
        changes.borrow_and_update();
        let models: HashSet<ModelId> = store.models().iter().map(|model| model.id).collect();
        let gone = announced_before.keys().filter(|id| !models.contains(id)).copied().collect::<Vec<_>>();
        for model in models.into_iter().chain(gone) {
            let keys = keys(&store, model).await;
            if announced_before.get(&model) == Some(&keys) {
                continue;
            }
            if directory.announce(model, keys.clone()).await.is_err() {
                return;
            }
            if keys.is_empty() {
                announced_before.remove(&model);
            } else {
                announced_before.insert(model, keys);
            }
        }
        sleep(PAUSE).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn keys(store: &Store, model: ModelId) -> Vec<Key> {
    match (store.manifest_of(model), store.have(model).await) {
        (Some(manifest), Ok(Some(have))) => announced(&manifest, &have),
        _ => Vec::new(),
    }
}
