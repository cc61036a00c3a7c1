//! The body of a reply, as it comes off the wire. No byte is copied, and none is read ahead: what is
//! not asked for stays in QUIC's window, and when that is full, at the peer.
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
pub(super) const HELD: Duration = Duration::from_millis(500);

/// The bytes of a body of `size`, as `down` lets them pass. Dropping the stream tells the peer to stop.
pub(super) fn pieces(
    recv: quinn::RecvStream,
    size: u64,
    link: Arc<Link>,
    down: Arc<Limiter>,
) -> BoxStream<'static, Result<Bytes, DialError>> {
    let reading = Reading { recv, left: size, size, link, down, held: None };
    stream::unfold(Some(reading), async |reading| {
        let mut reading = reading?;
        match reading.next().await {
            Ok(bytes) => bytes.map(|bytes| (Ok(bytes), Some(reading))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct Reading {
    recv: quinn::RecvStream,
    left: u64,
    size: u64,
    link: Arc<Link>,
    down: Arc<Limiter>,
    /// What has come and may not pass yet.
    held: Option<(Bytes, Place)>,
}

impl Reading {
    /// The next bytes, or none of them if they wait for the limit for long.
    async fn next(&mut self) -> Result<Option<Bytes>, DialError> {
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

    async fn read(&mut self) -> Result<Option<Bytes>, DialError> {
        if self.left == 0 {
            return Ok(None);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = if self.down.rate().is_some() { most.min(PIECE_MAX) } else { most };
        match self.recv.read_chunk(most, true).await {
            Ok(Some(chunk)) => {
                self.left -= chunk.bytes.len() as u64;
                Ok(Some(chunk.bytes))
            }
            Ok(None) => {
                Err(self.failed(format!("ended after {} of {} bytes", self.size - self.left, self.size)))
            }
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    fn failed(&self, cause: String) -> DialError {
        DialError { addr: self.link.connection().remote_address().to_string(), cause }
    }
}
