//! The body of a reply, as it comes off the wire. No byte is read ahead: what is not asked for stays in the
//! transport's window, and when that is full, at the peer.
//!
//! What comes waits until the user's limit lets it pass; meanwhile the peer is held back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use surf_protocol::wire::ENDLESS;
use tokio::time::timeout;

use super::client::Link;
use crate::fetch::{
    DialError,
    rate::{Limiter, PIECE_MAX, Place},
};

/// How often a body that waits for the limit says so. A fraction of what is taken for a stall.
const HELD: Duration = Duration::from_millis(500);

/// What the bytes of a body come from. Dropping it tells the peer to stop.
pub(super) trait Wire: Send + 'static {
    /// Up to `most` bytes; none if there will be no more.
    fn read(&mut self, most: usize) -> impl Future<Output = Result<Bytes, String>> + Send;

    /// Where the peer is.
    fn addr(&self) -> String;
}

/// The bytes of a body of `size`, as `down` lets them pass. Dropping the stream drops `wire`.
pub(super) fn pieces(
    wire: impl Wire,
    size: u64,
    down: Arc<Limiter>,
) -> BoxStream<'static, Result<Bytes, DialError>> {
    let reading = Reading { wire, left: size, size, down, held: None };
    stream::unfold(Some(reading), async |reading| {
        let mut reading = reading?;
        match reading.next().await {
            Ok(bytes) => bytes.map(|bytes| (Ok(bytes), Some(reading))),
            Err(cause) => Some((Err(DialError::new(reading.wire.addr(), cause)), None)),
        }
    })
    .boxed()
}

struct Reading<I> {
    wire: I,
    left: u64,
    size: u64,
    down: Arc<Limiter>,
    /// What has come and may not pass yet.
    held: Option<(Bytes, Place)>,
}

impl<I: Wire> Reading<I> {
    /// The next bytes, or none of them if they wait for the limit for long.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        if self.held.is_none() {
            let Some(bytes) = self.read().await? else { return Ok(None) };
            // What is told without end is told to nobody's cost.
            if self.down.rate().is_none() || self.size == ENDLESS {
                return Ok(Some(bytes));
            }
            let place = self.down.queue(bytes.len());
            self.held = Some((bytes, place));
        }
        let passed = match &mut self.held {
            Some((_, place)) => timeout(HELD, place.pass()).await.is_ok(),
            None => false,
        };
        let held = if passed { self.held.take() } else { None };
        Ok(Some(held.map_or_else(Bytes::new, |(bytes, _)| bytes)))
    }

    async fn read(&mut self) -> Result<Option<Bytes>, String> {
        if self.left == 0 {
            return Ok(None);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = if self.down.rate().is_some() { most.min(PIECE_MAX) } else { most };
        let bytes = self.wire.read(most).await?;
        if bytes.is_empty() {
            return Err(format!("ended after {} of {} bytes", self.size - self.left, self.size));
        }
        self.left -= bytes.len() as u64;
        Ok(Some(bytes))
    }
}

/// A stream of the data plane. No byte is copied.
pub(super) struct Quic {
    pub(super) recv: quinn::RecvStream,
    pub(super) link: Arc<Link>,
}

impl Wire for Quic {
    async fn read(&mut self, most: usize) -> Result<Bytes, String> {
        let chunk = self.recv.read_chunk(most, true).await.map_err(|error| error.to_string())?;
        Ok(chunk.map_or_else(Bytes::new, |chunk| chunk.bytes))
    }

    fn addr(&self) -> String {
        self.link.connection().remote_address().to_string()
    }
}
