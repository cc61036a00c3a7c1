//! Answering peers that cannot dial our data plane: the same answers within the same limits, on streams that
//! the control plane hands over.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use surf_protocol::{
    ModelId,
    limits::REQUEST_SIZE_MAX,
    wire::{self, Refusal, Reply, Request},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    super::{
        budget::TooMuch,
        limits::{REQUEST_TIME_MAX, STALL},
        peers::{Passage, Side},
        server::{Answer, Room, Server, found},
        turns::{PACE, Turn},
    },
    is_bulk,
};
use crate::{
    fetch::{Duplex, Incoming, Link, Route, rate::Limiter},
    source::Telling,
};

/// Bytes that are handed over at once. A peer that does not take so many within [`STALL`] is given up.
const PIECE: usize = 32 * 1024;

/// The round trip to a peer that has asked us and that we have not asked: rather too long than too short.
const UNMEASURED: Duration = Duration::from_millis(200);

impl Server {
    /// Serves until the control plane has ended. Chunks go through relays only if `bulk` says so.
    pub(in crate::transfer) async fn tunnels(
        self: Arc<Self>,
        mut incoming: mpsc::Receiver<Incoming>,
        bulk: bool,
    ) {
        while let Some(Incoming { peer, stream, route }) = incoming.recv().await {
            let link = Link { route, rtt: UNMEASURED };
            match self.peers().passage(peer, Side::Accepted, link) {
                Ok(passage) => {
                    let allowed = bulk || route != Route::Relayed;
                    drop(tokio::spawn(Arc::clone(&self).tunnelled(stream, passage, allowed)));
                }
                Err(error) => debug!(%peer, %error, "stream dropped"),
            }
        }
    }

    async fn tunnelled(self: Arc<Self>, mut stream: Box<dyn Duplex>, passage: Passage, bulk: bool) {
        let Some(bytes) = request(&mut stream).await else { return };
        passage.moved(0, bytes.len());
        let asked = wire::decode_request(&bytes);
        if let Ok(Request::Have(model)) = asked {
            return self.tell_tunnelled(model, stream, passage).await;
        }
        let answered = match asked {
            Ok(request) if !bulk && is_bulk(&request) => Err(Refusal::Relayed),
            // What was not understood is refused there.
            _other => self.answer(&bytes, passage.id, &passage.budget).await,
        };
        if let Err(refusal) = answered {
            passage.budget.may_be_told(refusal).await;
        }
        let (reply, body, turn, room) = match answered {
            Ok(Answer { body, turn, room }) => {
                (Reply::Found { size: body.len() as u64 }, body, turn, Some(room))
            }
            Err(refusal) => (Reply::Refused(refusal), Bytes::new(), None, None),
        };
        turn.iter().for_each(Turn::held);
        let mut sending = Sending { server: Arc::clone(&self), stream, passage, turn };
        // Gone or not, once all is sent: there is no more to say.
        if sending.all(&wire::encode_reply(&reply)).await
            && sending.limited(&body, self.up()).await
            && timeout(STALL, sending.stream.close()).await.is_ok()
        {
            sending.turn.into_iter().for_each(Turn::done);
            room.into_iter().for_each(Room::done);
        }
    }

    /// Tells a peer what is here of `model`, until it has heard enough.
    async fn tell_tunnelled(self: Arc<Self>, model: ModelId, stream: Box<dyn Duplex>, passage: Passage) {
        let told = passage.budget.tell();
        let mut telling = Telling::new(Arc::clone(self.library()), model);
        let first = match &told {
            Ok(_) => found(telling.next().await),
            Err(TooMuch) => Err(Refusal::Busy),
        };
        if let Err(refusal) = first {
            passage.budget.may_be_told(refusal).await;
        }
        let reply = match &first {
            Ok(_) => Reply::Found { size: wire::ENDLESS },
            Err(refusal) => Reply::Refused(*refusal),
        };
        let mut sending = Sending { server: self, stream, passage, turn: None };
        if !sending.all(&wire::encode_reply(&reply)).await {
            return;
        }
        let Ok(mut frame) = first else { return drop(timeout(STALL, sending.stream.close()).await) };
        // A peer that no longer listens is noticed when the next frame is sent, some seconds later at most.
        while sending.all(&frame).await {
            match telling.next().await {
                Ok(Some(next)) => frame = next,
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// All that a peer asks on a stream, if it comes in time and is not too much.
async fn request(stream: &mut Box<dyn Duplex>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = stream.take(REQUEST_SIZE_MAX as u64 + 1);
    timeout(REQUEST_TIME_MAX, limited.read_to_end(&mut bytes)).await.ok()?.ok()?;
    (bytes.len() <= REQUEST_SIZE_MAX).then_some(bytes)
}

/// A reply on its way.
struct Sending {
    server: Arc<Server>,
    stream: Box<dyn Duplex>,
    passage: Passage,
    turn: Option<Turn>,
}

impl Sending {
    /// Sends bytes as fast as `up` allows. False if the peer does not want them, or takes none for a while.
    async fn limited(&mut self, bytes: &[u8], up: &Arc<Limiter>) -> bool {
        for piece in bytes.chunks(PIECE) {
            if up.rate().is_some() {
                let mut place = up.queue(piece.len());
                while timeout(PACE, place.pass()).await.is_err() {
                    self.turn.iter().for_each(Turn::held);
                }
            }
            if !self.all(piece).await {
                return false;
            }
        }
        true
    }

    /// Sends bytes at once.
    async fn all(&mut self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(PIECE) {
            if !self.piece(piece).await {
                return false;
            }
            self.passage.moved(piece.len(), 0);
            self.turn.iter().for_each(|turn| turn.sent(piece.len() as u64));
        }
        true
    }

    async fn piece(&mut self, piece: &[u8]) -> bool {
        let begun = Instant::now();
        let Self { server, stream, turn, .. } = self;
        let writing = async {
            stream.write_all(piece).await?;
            stream.flush().await
        };
        tokio::pin!(writing);
        loop {
            match timeout(PACE, &mut writing).await {
                Ok(written) => return written.is_ok(),
                Err(_) if server.bodies().patience() <= begun.elapsed() => return false,
                Err(_) => turn.iter().for_each(|turn| turn.sent(0)),
            }
        }
    }
}
