//! The body of a reply, as it comes off the wire. No byte is copied, and none is read ahead: what is
//! not asked for stays in QUIC's window, and when that is full, at the peer.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};

use super::client::Link;
use crate::fetch::DialError;

/// The bytes of a body of `size`. Dropping the stream tells the peer to stop.
pub(super) fn pieces(
    recv: quinn::RecvStream,
    size: u64,
    link: Arc<Link>,
) -> BoxStream<'static, Result<Bytes, DialError>> {
    let reading = Reading { recv, left: size, size, link };
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
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, DialError> {
        if self.left == 0 {
            return Ok(None);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
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
