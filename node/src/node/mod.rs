//! Where the parts are put together, and nowhere else.
//!
//! - [`Node::start`] makes the parts and connects them.
//! - `models`: publish, pull, export and the rest, as the RPC offers them.
//! - `inference`: one model at a time, ready to run.
//! - `mending`: fetches again what the disk has lost.
//! - `names`: signed names, and what a model that is written somewhere means.
//! - `view`: what the node says of itself.
//! - `health`: whether it can serve, and which models can run.

mod error;
mod health;
mod inference;
mod mending;
mod models;
mod names;
mod view;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use surf_protocol::NodeId;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    api::TransferStatus,
    config::Config,
    engine::{self, EngineError},
    fetch::{
        Fetcher, Parts,
        rate::{Limiter, Paced},
    },
    identity::{Identity, IdentityError},
    journal::Journal,
    origin::{self, OpenError},
    publish::{self, announcer},
    source::Origin,
    store::{Store, StoreError},
    swarm, transfer,
};

pub use error::NodeError;
pub use inference::Generation;

/// A running node. Clones are the same node; it stops when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Node {
    parts: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    config: Config,
    id: NodeId,
    listen: Vec<String>,
    transfer_addr: SocketAddr,
    started: Instant,
    store: Store,
    swarm: swarm::Handle,
    names: Arc<names::Names>,
    client: Arc<transfer::Client>,
    endpoint: transfer::Endpoint,
    fetcher: Fetcher,
    journal: Arc<Journal>,
    loaded: inference::Slot,
    /// What is being pulled, by a number of its own.
    pulls: Mutex<BTreeMap<u64, TransferStatus>>,
    /// Which models can run.
    verdicts: health::Verdicts,
    /// What is being fetched.
    wanted: Arc<announcer::Wanted>,
    asking: models::Asking,
    announcing: JoinHandle<()>,
    naming: JoinHandle<()>,
    tending: JoinHandle<()>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder could not be made.
    #[error("cannot use the data folder {path}: {cause}")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        cause: std::io::Error,
    },
    /// The key could not be read or made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control plane could not listen.
    #[error(transparent)]
    Listen(#[from] swarm::ListenError),
    /// The data plane could not listen.
    #[error(transparent)]
    Bind(#[from] transfer::BindError),
    /// Models cannot be run as the settings say.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An origin cannot be used.
    #[error(transparent)]
    Origin(#[from] OpenError),
    /// The system has no randomness or is stopping.
    #[error("the node could not start: {0}")]
    System(String),
}

/// How often the store is told what others hold, of models that are being fetched.
const COPIES_EVERY: Duration = Duration::from_secs(5);

/// Tells the store how many others hold each chunk, so that what many hold is evicted first. Ends with the
/// fetching task.
async fn count_copies(store: Store, fetcher: Fetcher) {
    while let Ok(models) = fetcher.wanted().await {
        for model in models {
            let Ok(copies) = fetcher.copies(model).await else { return };
            store.note_copies(model, &copies);
        }
        sleep(COPIES_EVERY).await;
    }
}

/// Looks after the store: how many others hold what it holds, what it has lost, and what nobody reads.
async fn tend(
    (store, fetcher, wanted, journal): (Store, Fetcher, Arc<announcer::Wanted>, Arc<Journal>),
    scrub: Option<Duration>,
) {
    let scrubbing = async {
        if let Some(period) = scrub {
            store.scrub(period).await;
        }
    };
    let counting = count_copies(store.clone(), fetcher.clone());
    let mending = mending::Mending { store: store.clone(), fetcher, wanted, journal };
    tokio::join!(counting, mending.run(), scrubbing);
}

/// Removes what an earlier quantising left, if that can be done.
fn sweep(data_dir: &Path) {
    if let Err(error) = publish::sweep(data_dir) {
        tracing::warn!(%error, "what an earlier quantising left cannot be removed");
    }
}

/// The name of the key file in the data folder.
pub const KEY_FILE: &str = "identity.key";

/// The name of the file of signed names in the data folder.
const NAMES_FILE: &str = "names.json";

impl Node {
    /// Opens the store, joins the swarm, serves chunks.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        engine::usable(&config.engine)?;
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|cause| StartError::DataDir { path: config.data_dir.clone(), cause })?;
        let identity = Identity::load_or_create(&config.data_dir.join(KEY_FILE))?;
        let book = names::Book::open(&config.data_dir.join(NAMES_FILE));
        let opening = tokio::task::spawn_blocking({
            let config = config.store.clone();
            move || Store::open(&config)
        });
        let store = opening.await.map_err(|error| StartError::System(error.to_string()))??;
        sweep(&config.data_dir);
        let endpoint = transfer::Endpoint::bind(&identity, &config.transfer, &config.members)?;
        endpoint.serve(Arc::new(store.clone()))?;
        let transfer_addr = endpoint.local_addr();
        let (swarm, listening) =
            swarm::start(&identity, &config.swarm, &config.members, transfer_addr).await?;
        if let Some(incoming) = swarm.incoming() {
            endpoint.tunnel(Arc::new(swarm.clone()), incoming, config.swarm.relay.bulk);
        }
        let journal = Arc::new(Journal::default());
        let client = endpoint.dialer();
        let parts = Parts {
            keeper: Arc::new(store.clone()),
            directory: Arc::new(swarm.clone()),
            dialer: Arc::clone(&client) as _,
            origins: origins(&config, &endpoint.limits().origin)?,
            journal: Arc::clone(&journal),
            me: identity.node_id(),
            seed: rand::random(),
        };
        let fetcher = Fetcher::start(parts, &config.fetch);
        let wanted = Arc::default();
        let shelf = store.clone();
        let announcing = announcer::run(
            Arc::new(store.clone()),
            Arc::new(swarm.clone()),
            move || shelf.manifests(),
            Arc::clone(&wanted),
        );
        let announcing = tokio::spawn(announcing);
        let tended = (store.clone(), fetcher.clone(), Arc::clone(&wanted), Arc::clone(&journal));
        let tending = tokio::spawn(tend(tended, config.store.scrub));
        let names = Arc::new(names::Names::new(identity.clone(), swarm.clone(), book, store.renamed()));
        let naming = tokio::spawn(names::run(Arc::clone(&names)));
        Ok(Self {
            parts: Arc::new(Running {
                config,
                id: identity.node_id(),
                listen: listening.addrs,
                transfer_addr,
                started: Instant::now(),
                store,
                swarm,
                names,
                client,
                endpoint,
                fetcher,
                journal,
                loaded: inference::Slot::default(),
                pulls: Mutex::default(),
                verdicts: health::Verdicts::default(),
                wanted,
                asking: models::Asking::default(),
                announcing,
                naming,
                tending,
            }),
        })
    }

    /// Who this node is, as a libp2p peer id.
    pub fn peer_id(&self) -> String {
        self.parts.id.to_string()
    }

    /// Multiaddresses of the control plane, each ending in `/p2p/…`: what others join through.
    pub fn listen(&self) -> &[String] {
        &self.parts.listen
    }

    /// What has happened.
    pub fn journal(&self) -> &Journal {
        &self.parts.journal
    }

    /// What is kept.
    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    /// Says good-bye to peers, so that they need not find out.
    pub async fn stop(&self) {
        self.parts.announcing.abort();
        self.parts.naming.abort();
        self.parts.tending.abort();
        tokio::join!(self.parts.endpoint.close(), self.parts.swarm.leave());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.announcing.abort();
        self.naming.abort();
        self.tending.abort();
    }
}

fn origins(config: &Config, limiter: &Arc<Limiter>) -> Result<Vec<Arc<dyn Origin>>, OpenError> {
    let open = |url: &url::Url| {
        let paced = Paced::new(Arc::new(origin::Object::open(url)?), Arc::clone(limiter));
        Ok(Arc::new(paced) as Arc<dyn Origin>)
    };
    config.fetch.origins.iter().map(open).collect()
}
