//! Where the data planes of the peers we have met listen.
//!
//! Bounded: who was of use longest ago is forgotten first.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use libp2p::PeerId;
use surf_protocol::Contact;

use crate::fetch::Peer;

/// Peers that are remembered.
const PEERS_MAX: usize = 4096;

/// Contact records of peers.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: HashMap<PeerId, Entry>,
    /// By last use.
    order: BTreeMap<u64, PeerId>,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    /// As it was signed.
    record: Vec<u8>,
    peer: Peer,
    used: u64,
}

impl Book {
    /// Keeps `contact`, which was signed as `record`, unless a later one of the same peer is known. `seen_at` is where
    /// the peer's control connection comes from: the one of its addresses that surely leads to it. Returns
    /// another record that the peer has signed, if one is known.
    pub(super) fn met(
        &mut self,
        id: PeerId,
        (contact, record): (&Contact, &[u8]),
        seen_at: Option<IpAddr>,
    ) -> Option<Vec<u8>> {
        let known = self.entries.get(&id).map(|entry| (entry.sequence, entry.record.clone()));
        if let Some((sequence, record)) = &known
            && contact.sequence < *sequence
        {
            return Some(record.clone());
        }
        let peer = Peer { id: contact.node, addrs: addrs(contact, seen_at) };
        self.forget(&id);
        if self.entries.len() == PEERS_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.uses += 1;
        let (sequence, record) = (contact.sequence, record.to_vec());
        self.entries.insert(id, Entry { sequence, record, peer, used: self.uses });
        self.order.insert(self.uses, id);
        known.filter(|(known, _)| *known != sequence).map(|(_, record)| record)
    }

    /// Where `id` can be asked for chunks, if we have met it.
    pub(super) fn peer(&mut self, id: &PeerId) -> Option<Peer> {
        let entry = self.entries.get_mut(id)?;
        self.order.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.order.insert(self.uses, *id);
        Some(entry.peer.clone())
    }

    /// The same, without counting as a use.
    pub(super) fn look(&self, id: &PeerId) -> Option<&Peer> {
        self.entries.get(id).map(|entry| &entry.peer)
    }

    fn forget(&mut self, id: &PeerId) {
        if let Some(entry) = self.entries.remove(id) {
            self.order.remove(&entry.used);
        }
    }
}

/// The addresses of `contact` in the order in which to try them.
fn addrs(contact: &Contact, seen_at: Option<IpAddr>) -> Vec<SocketAddr> {
    let mut addrs = contact.addrs.clone();
    if let Some(ip) = seen_at {
        let ip = ip.to_canonical();
        // Another host's loopback is ours, where it is not.
        addrs.retain(|addr| ip.is_loopback() || !addr.ip().is_loopback());
        if let Some(port) = contact.addrs.first().map(SocketAddr::port) {
            let best = SocketAddr::new(ip, port);
            addrs.retain(|addr| *addr != best);
            addrs.insert(0, best);
        }
    }
    addrs
}

#[cfg(test)]
mod tests {
    use surf_protocol::NodeId;

    use super::*;

    fn contact(sequence: u64, addrs: &[&str]) -> Contact {
        let addrs = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
        Contact { node: NodeId([1; 32]), sequence, addrs }
    }

    #[test]
    fn the_later_record_counts() {
        let (mut book, id) = (Book::default(), PeerId::random());
        let met = |book: &mut Book, contact: Contact| {
            book.met(id, (&contact, &contact.sequence.to_le_bytes()[..1]), None)
        };
        assert_eq!(met(&mut book, contact(2, &["10.0.0.1:5"])), None);
        assert_eq!(met(&mut book, contact(1, &["10.0.0.1:4"])), Some(vec![2]), "two that differ");
        assert_eq!(book.peer(&id).unwrap().addrs[0].port(), 5);
        assert_eq!(met(&mut book, contact(2, &["10.0.0.1:5"])), None);
        assert_eq!(met(&mut book, contact(3, &["10.0.0.1:6"])), Some(vec![2]));
        assert_eq!(book.peer(&id).unwrap().addrs[0].port(), 6);
    }

    #[test]
    fn where_it_was_seen_comes_first_and_others_loopback_is_left_out() {
        let record = contact(1, &["10.0.0.1:5", "192.168.1.2:5", "127.0.0.1:5"]);
        let far = addrs(&record, Some("192.168.1.2".parse().unwrap()));
        assert_eq!(far, contact(1, &["192.168.1.2:5", "10.0.0.1:5"]).addrs);
        let here = addrs(&record, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(here, contact(1, &["127.0.0.1:5", "10.0.0.1:5", "192.168.1.2:5"]).addrs);
    }

    #[test]
    fn the_least_recently_used_is_forgotten() {
        let mut book = Book::default();
        let ids: Vec<_> = (0..=PEERS_MAX).map(|_| PeerId::random()).collect();
        for id in &ids[..PEERS_MAX] {
            book.met(*id, (&contact(1, &[]), &[]), None);
        }
        book.peer(&ids[0]).unwrap();
        book.met(ids[PEERS_MAX], (&contact(1, &[]), &[]), None);
        assert!(book.look(&ids[0]).is_some() && book.look(&ids[1]).is_none());
        assert_eq!((book.entries.len(), book.order.len()), (PEERS_MAX, PEERS_MAX));
    }
}
