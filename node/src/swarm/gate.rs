//! A transport in whose hall nobody waits for ever: of the connections whose handshake is not over yet.
//!
//! libp2p bounds them, and refuses whoever comes beyond that; so a stranger that opens connections and says nothing
//! keeps everybody out. Here a newcomer always gets in, and one of the fullest address goes instead.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Either, select},
};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, Transport, TransportError, TransportEvent},
    },
};
use tokio::sync::oneshot;

use super::fair::Place;

/// Handshakes that others may have begun with us. Each costs some 20 KB, and takes four round trips.
pub(super) const PENDING_MAX: usize = 128;

type Output = (PeerId, StreamMuxerBox);

/// A transport whose incoming handshakes are bounded.
pub(super) struct Gate {
    inner: Boxed<Output>,
    /// The oldest first.
    pending: VecDeque<Pending>,
}

/// A handshake. Dropping `go_on` ends it; it is closed when the handshake is over.
struct Pending {
    place: Place,
    go_on: oneshot::Sender<()>,
}

impl Gate {
    pub(super) fn new(inner: Boxed<Output>) -> Self {
        Self { inner, pending: VecDeque::new() }
    }

    /// Lets in a handshake from `addr`, which is at an end when the returned receiver is.
    fn admit(&mut self, addr: &Multiaddr) -> oneshot::Receiver<()> {
        self.pending.retain(|pending| !pending.go_on.is_closed());
        if PENDING_MAX <= self.pending.len() {
            let places: Vec<_> = self.pending.iter().map(|pending| pending.place).collect();
            if let Some(at) = oldest_of_fullest(&places) {
                self.pending.remove(at);
            }
        }
        let (go_on, ended) = oneshot::channel();
        self.pending.push_back(Pending { place: Place::of(addr), go_on });
        ended
    }
}

/// The first of `places` in the fullest address of the fullest subnet.
fn oldest_of_fullest(places: &[Place]) -> Option<usize> {
    let of_subnet = |place: &Place| places.iter().filter(|other| other.subnet() == place.subnet()).count();
    let of_address = |place: &Place| places.iter().filter(|other| *other == place).count();
    let sizes = places.iter().map(|place| (of_subnet(place), of_address(place)));
    // Of the same size the first.
    let at = sizes.enumerate().max_by_key(|&(at, size)| (size, std::cmp::Reverse(at)));
    at.map(|(at, _)| at)
}

impl Transport for Gate {
    type Output = Output;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<Output>>;
    type Dial = <Boxed<Output> as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.inner.dial(addr, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let event = match Pin::new(&mut self.inner).poll(cx) {
            Poll::Ready(event) => event,
            Poll::Pending => return Poll::Pending,
        };
        let TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr } = event else {
            return Poll::Ready(event.map_upgrade(|upgrade| upgrade.boxed()));
        };
        let ended = self.admit(&send_back_addr);
        let upgrade = async move {
            match select(upgrade, ended).await {
                Either::Left((done, _)) => done,
                Either::Right(_) => Err(io::Error::other("it gave way to a newcomer")),
            }
        };
        let upgrade = upgrade.boxed();
        Poll::Ready(TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ip: &str) -> Place {
        Place::of(&format!("/ip4/{ip}").parse().unwrap())
    }

    #[test]
    fn the_oldest_of_the_fullest_address_goes() {
        let places = ["10.0.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "10.0.1.1"].map(place);
        assert_eq!(oldest_of_fullest(&places), Some(2));
        assert_eq!(oldest_of_fullest(&places[..2]), Some(0));
        assert_eq!(oldest_of_fullest(&[]), None);
    }
}
