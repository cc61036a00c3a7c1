//! Work that takes longer than a worker of the runtime may be kept from its connections.

use tokio::task::spawn_blocking;

use super::error::ApiError;

/// Bytes that are parsed or written within a millisecond, also by a build for tests.
pub(super) const INLINE_MAX: usize = 16 << 10;

/// Does `work` on a thread for such work.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(ApiError::failed(error.to_string())))
}
