//! A peer that speaks the protocol and means no good: it announces a model, claims every chunk of it,
//! and serves none. A process of its own in the lab, and a task in the tests.

use std::{net::SocketAddr, path::Path, str::FromStr, sync::Arc, time::Duration};

use surf_chunker::Sink;
use surf_node::{
    config,
    fetch::{Directory, Key},
    identity::Identity,
    members::Members,
    swarm,
};
use surf_protocol::{
    Bitmap, Chunk, Manifest,
    wire::{self, Holdings, Reply, Request},
};

use crate::bench::Failed;

/// Bytes in a body that even a rogue sends as it should, such as a manifest.
const SMALL: usize = 10_000;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It sends wrong bytes.
    Lies,
    /// It sends half of a chunk and then nothing.
    Stalls,
    /// It sends half of a chunk and closes the connection.
    HangsUp,
    /// It claims a manifest and chunks of 2^60 bytes.
    Boasts,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lies, Self::Stalls, Self::HangsUp, Self::Boasts];

    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lies => "lies",
            Self::Stalls => "stalls",
            Self::HangsUp => "hangs-up",
            Self::Boasts => "boasts",
        }
    }
}

impl FromStr for Manner {
    type Err = Failed;

    fn from_str(text: &str) -> Result<Self, Failed> {
        let known = || Failed(format!("{text:?} is no manner: lies, stalls, hangs-up or boasts"));
        Self::ALL.into_iter().find(|manner| manner.name() == text).ok_or_else(known)
    }
}

/// A rogue at work. It ends when dropped.
#[derive(Debug)]
pub struct Rogue {
    /// Who it says that it is.
    pub peer: String,
    _swarm: swarm::Handle,
    endpoint: quinn::Endpoint,
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"");
    }
}

/// Where a rogue listens, and through whom it joins.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its control plane.
    pub listen: SocketAddr,
    /// Its data plane.
    pub transfer: SocketAddr,
    /// Multiaddresses of nodes to join through.
    pub bootstrap: Vec<String>,
}

/// Starts one that claims the model of `manifest`.
pub async fn start(manner: Manner, place: &Place, manifest: Arc<Manifest>) -> Result<Rogue, Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::to("start a rogue", error);
    let identity = Identity::generate();
    let tls = identity.server_tls().map_err(|error| failed(&error))?;
    let tls = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = quinn::Endpoint::server(tls, place.transfer)?;
    tokio::spawn(serve(endpoint.clone(), manner, Arc::clone(&manifest)));
    let config = config::Swarm {
        listen: vec![place.listen],
        bootstrap: place.bootstrap.clone(),
        mdns: false,
        relay: config::Relay::default(),
    };
    let started = swarm::start(&identity, &config, &Members::default(), endpoint.local_addr()?).await;
    let (swarm, _) = started.map_err(|error| failed(&error))?;
    let announced = swarm.announce(manifest.id(), vec![Key::Model(manifest.id())]).await;
    announced.map_err(|error| failed(&error))?;
    Ok(Rogue { peer: identity.node_id().to_string(), _swarm: swarm, endpoint })
}

/// A rogue as a process, until it is killed: claims the model that publishing `folder` makes.
pub async fn run(manner: Manner, place: &Place, folder: &Path) -> Result<(), Failed> {
    let cut = surf_chunker::cut(folder, &surf_chunker::Options::default(), &Nowhere);
    let manifest = cut.map_err(|error| Failed::to("cut the model", error))?;
    let rogue = start(manner, place, Arc::new(manifest)).await?;
    println!("ready {}", rogue.peer);
    std::future::pending().await
}

/// Chunks are not kept: nobody gets one.
struct Nowhere;

impl Sink for Nowhere {
    fn chunk(&self, _: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

async fn serve(endpoint: quinn::Endpoint, manner: Manner, manifest: Arc<Manifest>) {
    while let Some(incoming) = endpoint.accept().await {
        let manifest = Arc::clone(&manifest);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(answer(connection.clone(), send, recv, manner, Arc::clone(&manifest)));
            }
        });
    }
}

async fn answer(
    connection: quinn::Connection,
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    manner: Manner,
    manifest: Arc<Manifest>,
) {
    let Ok(bytes) = recv.read_to_end(256).await else { return };
    let Ok(request) = wire::decode_request(&bytes) else { return };
    let told = matches!(request, Request::Have(_));
    let Some(body) = body(&request, &manifest) else { return };
    let size = match manner {
        _ if told => wire::ENDLESS,
        Manner::Boasts => 1 << 60,
        _ => body.len() as u64,
    };
    let is_small = body.len() < SMALL;
    let half = &body[..body.len() / 2];
    // Whatever fails here is the other side's business.
    let _ = send.write_all(&wire::encode_reply(&Reply::Found { size })).await;
    match manner {
        _ if told => {
            let _ = send.write_all(&body).await;
            let _ = send.stopped().await;
        }
        Manner::Stalls if !is_small => {
            let _ = send.write_all(half).await;
            std::future::pending::<()>().await;
        }
        Manner::HangsUp if !is_small => {
            let _ = send.write_all(half).await;
            // What is on its way when a connection is closed is lost.
            tokio::time::sleep(Duration::from_millis(300)).await;
            connection.close(9u32.into(), b"");
        }
        Manner::Boasts => while send.write_all(&[7; 65536]).await.is_ok() {},
        _ => {
            let _ = send.write_all(&body).await;
            let _ = send.finish();
        }
    }
}

/// What is sent for `request`: what is true where it is small, noise for chunks.
fn body(request: &Request, manifest: &Manifest) -> Option<Vec<u8>> {
    Some(match request {
        Request::Manifest(_) => manifest.encode(),
        Request::Have(_) => {
            let all = Bitmap::from_fn(manifest.chunks().len(), |_| true);
            wire::encode_holdings(&Holdings::All(all))
        }
        Request::Chunk(id) => vec![7; manifest.chunks()[manifest.position(*id)?].size as usize],
        Request::Range { range, .. } => vec![7; range.len()],
    })
}
