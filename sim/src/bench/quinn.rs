//! Bare quinn: one stream of bytes from memory to nowhere, with quinn's own settings. What any program
//! over QUIC can at best approach.

use std::{net::SocketAddr, path::Path, sync::Arc};

use surf_node::identity::Identity;
use surf_protocol::NodeId;

use tokio::time::Instant;

use super::Failed;

/// Serves the bytes of `file` to whoever connects. Prints its address and key, and ends when its
/// standard input does.
pub async fn serve(file: &Path) -> Result<(), Failed> {
    let bytes = bytes::Bytes::from(std::fs::read(file)?);
    let identity = Identity::generate();
    let tls = identity.server_tls().map_err(|error| Failed::to("serve", error))?;
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("{} {}", endpoint.local_addr()?, identity.node_id());
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((mut send, _)) = connection.accept_bi().await {
                    if send.write_chunk(bytes.clone()).await.is_ok() {
                        drop(send.finish());
                    }
                }
            });
        }
    });
    let mut end = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut end))
        .await
        .map_err(|error| Failed::to("wait", error))??;
    Ok(())
}

/// Gets everything from the server at `addr`. Returns bytes and seconds.
pub async fn get(addr: SocketAddr, peer: NodeId) -> Result<(u64, f64), Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::to("get", error);
    let identity = Identity::generate();
    let tls = identity.client_tls(peer).map_err(|error| failed(&error))?;
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = endpoint.connect_with(config, addr, "l").map_err(|error| failed(&error))?;
    let connection = connecting.await.map_err(|error| failed(&error))?;
    let started = Instant::now();
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| failed(&error))?;
    send.write_all(b"x").await.map_err(|error| failed(&error))?;
    let mut got = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.map_err(|error| failed(&error))? {
        got += chunk.bytes.len() as u64;
    }
    Ok((got, started.elapsed().as_secs_f64()))
}
