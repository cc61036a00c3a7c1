//! Tells the directory what is here and what is wanted, whenever that changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use surf_protocol::{Bitmap, Manifest, ModelId};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::Announced;
use crate::{fetch::Directory, source::Library};

/// Changes that come within this time are announced together: a download brings many a second.
const PAUSE: Duration = Duration::from_millis(500);

/// The models that are being fetched: they are announced before anything of them is here, so that nodes
/// which fetch the same model find each other at once.
#[derive(Debug, Default)]
pub struct Wanted {
    /// How often each is wanted.
    models: watch::Sender<BTreeMap<ModelId, usize>>,
}

/// A model is wanted as long as this lives.
#[derive(Debug)]
pub struct Wanting {
    wanted: Arc<Wanted>,
    model: ModelId,
}

impl Wanted {
    /// `model`, whose manifest is here, is being fetched.
    pub fn want(self: &Arc<Self>, model: ModelId) -> Wanting {
        self.models.send_modify(|models| *models.entry(model).or_default() += 1);
        Wanting { wanted: Arc::clone(self), model }
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        self.wanted.models.send_modify(|models| {
            let left = models.get(&self.model).map_or(0, |count| count.saturating_sub(1));
            match left {
                0 => drop(models.remove(&self.model)),
                left => drop(models.insert(self.model, left)),
            }
        });
    }
}

/// Runs until the library or the directory is gone. `manifests` are those of all models that the library
/// knows.
pub async fn run(
    library: Arc<dyn Library>,
    directory: Arc<dyn Directory>,
    manifests: impl Fn() -> Vec<Arc<Manifest>>,
    wanted: Arc<Wanted>,
) {
    let (mut changes, mut wishes) = (library.changes(), wanted.models.subscribe());
    let mut announced: BTreeMap<ModelId, Announced> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let wished = wishes.borrow_and_update().clone();
        let rested = Instant::now() + PAUSE;
        let manifests = manifests();
        let here: BTreeMap<ModelId, &Arc<Manifest>> = manifests.iter().map(|m| (m.id(), m)).collect();
        let gone: Vec<ModelId> = announced.keys().filter(|id| !here.contains_key(id)).copied().collect();
        for model in gone {
            announced.remove(&model);
            if directory.announce(model, Vec::new()).await.is_err() {
                return;
            }
        }
        for (model, manifest) in here {
            let have = match library.have(model).await {
                Ok(Some(have)) => have,
                _ => Bitmap::none(manifest.chunks().len()),
            };
            let of_model = announced.entry(model).or_insert_with(|| Announced::new(Arc::clone(manifest)));
            let Some(keys) = of_model.update(&have, wished.contains_key(&model)) else { continue };
            if directory.announce(model, keys).await.is_err() {
                return;
            }
        }
        // What is wanted is said at once, what came in between together.
        tokio::select! {
            biased;
            () = sleep_until(rested) => tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() { return },
                _ = wishes.changed() => {}
            },
            _ = wishes.changed() => {}
        }
    }
}
