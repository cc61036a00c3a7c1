//! What a peer says it has of a model, frame by frame.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::StreamExt;
use surf_protocol::{
    Bitmap,
    limits::HOLDINGS_SIZE_MAX,
    wire::{self, ENDLESS},
};
use tokio::time::timeout;

use super::{Body, request::RequestError};
use crate::source::HEARTBEAT;

/// A peer that says nothing for this long is gone: it says something every [`HEARTBEAT`].
const SILENCE_MAX: Duration = Duration::from_secs(3 * HEARTBEAT.as_secs());

/// A peer that tells what it has.
#[derive(Debug)]
pub(super) struct Listening {
    body: Body,
    buffer: BytesMut,
    has: Bitmap,
}

impl Listening {
    /// To the body of a reply, about a model of `chunks` chunks.
    pub(super) fn new(body: Body, chunks: usize) -> Result<Self, RequestError> {
        match body.size {
            ENDLESS => Ok(Self { body, buffer: BytesMut::new(), has: Bitmap::none(chunks) }),
            got => {
                Err(RequestError::Malformed(format!("it says what it has in {got} bytes, not without end")))
            }
        }
    }

    /// What the peer has, when it has said so again.
    pub(super) async fn next(&mut self) -> Result<&Bitmap, RequestError> {
        let malformed = |error: wire::Malformed| RequestError::Malformed(error.to_string());
        while self.buffer.len() < 4 {
            self.more().await?;
        }
        let size = wire::decode_holdings_size([0, 1, 2, 3].map(|at| self.buffer[at])).map_err(malformed)?;
        while self.buffer.len() < 4 + size {
            self.more().await?;
        }
        self.buffer.advance(4);
        let holdings = wire::decode_holdings(&self.buffer.split_to(size)).map_err(malformed)?;
        let Some(has) = holdings.after(&self.has) else {
            return Err(RequestError::Malformed("it has chunks that there are not".to_owned()));
        };
        self.has = has;
        Ok(&self.has)
    }

    async fn more(&mut self) -> Result<(), RequestError> {
        match timeout(SILENCE_MAX, self.body.pieces.next()).await {
            Err(_elapsed) => Err(RequestError::Stalled(SILENCE_MAX)),
            Ok(Some(Ok(piece))) if self.buffer.len() + piece.len() <= 2 * (4 + HOLDINGS_SIZE_MAX) => {
                self.buffer.extend_from_slice(&piece);
                Ok(())
            }
            Ok(Some(Ok(_))) => Err(RequestError::Malformed("it says more than there is to say".to_owned())),
            Ok(Some(Err(error))) => Err(error.into()),
            Ok(None) => Err(RequestError::Malformed("it stopped saying what it has".to_owned())),
        }
    }
}
