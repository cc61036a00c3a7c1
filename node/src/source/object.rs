//! Chunks as objects named by their hash, in a folder or on a web server: an origin that needs to know
//! nothing about swarms.
//!
//! What the other side sends is not trusted: an object of another size than the chunk's is refused
//! before it is read, never more than the chunk's size is kept, and the bytes are hashed.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, future::BoxFuture};
use object_store::{
    ClientOptions, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, RetryConfig, http::HttpBuilder,
    local::LocalFileSystem, path::Path,
};
use surf_protocol::{Chunk, manifest::ChunkEntry};
use tokio::task::spawn_blocking;
use url::Url;

use super::{ChunkSource, SourceError};

/// How long an origin may take to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an origin may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one chunk may take: 8 MiB at 30 kB/s.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Tries after the first. Whoever asks has other sources, and asks again.
const RETRIES_MAX: usize = 2;
/// How long to go on trying.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// A folder or a web server that holds chunks as files named by their hash in hexadecimal.
#[derive(Clone)]
pub struct Object {
    url: Url,
    objects: Arc<dyn ObjectStore>,
}

/// Why a URL is no origin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither `file`, `http` nor `https`.
    #[error("cannot fetch from {0}: use a file://, http:// or https:// URL")]
    Scheme(String),
    /// A `file` URL with a host, or that is no absolute path.
    #[error("{0} does not name a folder on this machine")]
    NotLocal(String),
    /// The folder or the client cannot be used.
    #[error("cannot fetch from {url}: {cause}")]
    Unusable {
        /// What was to be opened.
        url: String,
        /// Why not.
        #[source]
        cause: Box<object_store::Error>,
    },
}

/// Why an object is not the chunk that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("sent {found} bytes for chunk {}, which has {}", chunk.id, chunk.size)]
struct WrongSize {
    chunk: ChunkEntry,
    found: u64,
}

impl Object {
    /// The origin at `url`: a folder (`file`), which must exist, or a folder on a web server (`http`,
    /// `https`), which is not contacted yet.
    pub fn open(url: &Url) -> Result<Self, OpenError> {
        let unusable = |cause| OpenError::Unusable { url: url.to_string(), cause: Box::new(cause) };
        let objects: Arc<dyn ObjectStore> = match url.scheme() {
            "file" => {
                let folder: PathBuf =
                    url.to_file_path().map_err(|()| OpenError::NotLocal(url.to_string()))?;
                Arc::new(LocalFileSystem::new_with_prefix(folder).map_err(unusable)?)
            }
            "http" | "https" => {
                let client = ClientOptions::new()
                    .with_allow_http(true)
                    .with_connect_timeout(CONNECT_TIMEOUT)
                    .with_read_timeout(READ_TIMEOUT)
                    .with_timeout(TIMEOUT);
                let retry = RetryConfig {
                    max_retries: RETRIES_MAX,
                    retry_timeout: RETRY_TIMEOUT,
                    ..RetryConfig::default()
                };
                let builder = HttpBuilder::new().with_url(url.as_str()).with_retry(retry);
                Arc::new(builder.with_client_options(client).build().map_err(unusable)?)
            }
            _ => return Err(OpenError::Scheme(url.to_string())),
        };
        Ok(Self { url: url.clone(), objects })
    }

    async fn fetch(&self, chunk: ChunkEntry) -> Result<Option<Chunk>, SourceError> {
        let name = Path::from(chunk.id.to_hex());
        let found = match self.objects.get(&name).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(SourceError::failed(&self.url, error)),
        };
        let bytes = read(found, chunk).await.map_err(|error| SourceError::failed(&self.url, error))?;
        let checked = spawn_blocking(move || Chunk::verify(chunk.id, bytes)).await;
        let checked = checked.map_err(|error| SourceError::failed(&self.url, error))?;
        checked.map(Some).map_err(|error| SourceError::failed(&self.url, error))
    }
}

impl ChunkSource for Object {
    fn get(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        Box::pin(self.fetch(chunk))
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

type ReadError = Box<dyn std::error::Error + Send + Sync>;

async fn read(found: GetResult, chunk: ChunkEntry) -> Result<Bytes, ReadError> {
    let size = u64::from(chunk.size);
    if found.meta.size != size || found.range != (0..size) {
        return Err(WrongSize { chunk, found: found.meta.size }.into());
    }
    match found.payload {
        // Reads the range that was just checked, and no further.
        GetResultPayload::File(..) => Ok(found.bytes().await?),
        GetResultPayload::Stream(mut pieces) => {
            let mut bytes = BytesMut::with_capacity(chunk.size as usize);
            while let Some(piece) = pieces.next().await {
                let piece = piece?;
                let total = bytes.len() as u64 + piece.len() as u64;
                if size < total {
                    return Err(WrongSize { chunk, found: total }.into());
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        }
    }
}

#[cfg(test)]
mod tests;
