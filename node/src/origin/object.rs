//! Reads an origin: a folder, or a folder on a web server.
//!
//! What the other side sends is not trusted: never more than the limit is read, and chunks are hashed. One whose
//! hash is right and whose size is not says that the manifest is wrong. Manifests are checked by the caller.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, future::BoxFuture};
use object_store::{
    ClientOptions, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, RetryConfig, http::HttpBuilder,
    local::LocalFileSystem, path::Path,
};
use surf_protocol::{
    Chunk, ModelId,
    limits::{CHUNK_SIZE_MAX, MANIFEST_SIZE_MAX},
    manifest::ChunkEntry,
};
use tokio::task::spawn_blocking;
use url::Url;

use super::{chunk_path, failure::Failure, manifest_path};
use crate::source::{ChunkSource, Origin, SourceError};

/// How long an origin may take to be reached: two tries at a blackhole within 5 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an origin may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one chunk may take: 8 MiB at 30 kB/s.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Tries after the first. Whoever asks has other sources, and asks again.
const RETRIES_MAX: usize = 1;
/// No new try after this long.
const RETRY_TIMEOUT: Duration = Duration::from_secs(3);

/// A folder or a web server, laid out as [`origin`](super) says.
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

/// Why an object is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("sent {found} bytes for {what}, which has {expected}")]
struct WrongSize {
    what: String,
    found: u64,
    /// How many it has, in words.
    expected: String,
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

    async fn chunk(&self, chunk: ChunkEntry) -> Result<Option<Chunk>, SourceError> {
        let (path, size) = (chunk_path(chunk.id), u64::from(chunk.size));
        let Some(bytes) = self.read(&path, CHUNK_SIZE_MAX as u64).await? else { return Ok(None) };
        let found = bytes.len() as u64;
        let checked = spawn_blocking(move || Chunk::verify(chunk.id, bytes)).await;
        match checked.map_err(|error| self.failed(error))? {
            // Of another size than the manifest says, it is still what was asked for: the manifest is wrong.
            Ok(chunk) => Ok(Some(chunk)),
            Err(_) if found != size => {
                Err(self.failed(WrongSize { what: path, found, expected: size.to_string() }))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn read(&self, path: &str, most: u64) -> Result<Option<Bytes>, SourceError> {
        match self.objects.get(&Path::from(path)).await {
            Ok(found) => read(found, path, most).await.map(Some).map_err(|error| self.failed(error)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(Failure::from(error))),
        }
    }

    fn failed(&self, error: impl Into<ReadError>) -> SourceError {
        SourceError::failed(shown(&self.url), error)
    }
}

/// An origin's URL for people and logs: without the password.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() && url.set_password(Some("…")).is_err() {
        return "an origin".to_owned();
    }
    url.to_string()
}

impl ChunkSource for Object {
    fn get(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        Box::pin(self.chunk(chunk))
    }
}

impl Origin for Object {
    fn name(&self) -> String {
        shown(&self.url)
    }

    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move { self.read(&manifest_path(model), MANIFEST_SIZE_MAX as u64).await })
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}

type ReadError = Box<dyn std::error::Error + Send + Sync>;

async fn read(found: GetResult, path: &str, most: u64) -> Result<Bytes, ReadError> {
    let wrong = |found| WrongSize { what: path.to_owned(), found, expected: format!("at most {most}") };
    if most < found.meta.size || found.range != (0..found.meta.size) {
        return Err(wrong(found.meta.size).into());
    }
    match found.payload {
        // Reads the range that was just checked, and no further.
        GetResultPayload::File(..) => Ok(found.bytes().await.map_err(Failure::from)?),
        GetResultPayload::Stream(mut pieces) => {
            let mut bytes = BytesMut::with_capacity(found.meta.size as usize);
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(Failure::from)?;
                let total = bytes.len() as u64 + piece.len() as u64;
                if most < total {
                    return Err(wrong(total).into());
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        }
    }
}

#[cfg(test)]
mod tests;
