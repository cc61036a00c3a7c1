//! Telling peers where our data plane listens: the record, and the protocol that carries it.
//!
//! Each side asks the other once when they meet, and again when its own record changes; request and
//! answer are a signed record each.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use surf_protocol::{
    Contact, SignedContact,
    limits::{CONTACT_ADDRS_MAX, CONTACT_SIZE_MAX},
};

use crate::identity::Identity;

/// What carries the records.
pub(super) type Behaviour = request_response::Behaviour<Codec>;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/surf/contact/1");

/// How long an exchange may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Exchanges that a peer may have open with us.
const STREAMS_MAX: usize = 4;

pub(super) fn behaviour() -> Behaviour {
    let protocols = [(PROTOCOL, request_response::ProtocolSupport::Full)];
    let config = request_response::Config::default()
        .with_request_timeout(TIME_MAX)
        .with_max_concurrent_streams(STREAMS_MAX);
    request_response::Behaviour::new(protocols, config)
}

/// A record in each direction, as bytes: checking them is the task's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Codec;

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, record: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&record).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, record: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&record).await
    }
}

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One more than allowed, to notice that there is more. Decoding refuses it.
    io.take(CONTACT_SIZE_MAX as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Our own record.
#[derive(Debug)]
pub(super) struct Ours {
    identity: Identity,
    /// Where the data plane is bound.
    data: SocketAddr,
    /// The addresses of this host that the control plane listens on.
    ips: BTreeSet<IpAddr>,
    sequence: u64,
    /// The sequence numbers of the records that this process has made, or the last of them.
    issued: BTreeSet<u64>,
    encoded: Vec<u8>,
}

/// Sequence numbers that are remembered.
const ISSUED_MAX: usize = 64;

impl Ours {
    pub(super) fn new(identity: Identity, data: SocketAddr) -> Self {
        let (ips, issued) = (BTreeSet::new(), BTreeSet::new());
        let mut ours = Self { identity, data, ips, sequence: 0, issued, encoded: Vec::new() };
        ours.encode();
        ours
    }

    /// The signed record.
    pub(super) fn encoded(&self) -> Vec<u8> {
        self.encoded.clone()
    }

    /// The control plane listens on `ip`. True if the record has changed.
    pub(super) fn add(&mut self, ip: IpAddr) -> bool {
        self.ips.insert(ip) && self.data.ip().is_unspecified() && self.encode()
    }

    /// The control plane no longer listens on `ip`. True if the record has changed.
    pub(super) fn remove(&mut self, ip: IpAddr) -> bool {
        self.ips.remove(&ip) && self.data.ip().is_unspecified() && self.encode()
    }

    /// Makes the record anew, with a larger sequence number.
    pub(super) fn renew(&mut self) {
        self.encode();
    }

    /// Whether a record with our signature and this number was made by another process that runs, or ran, beside this
    /// one. What is older than our first may be from an earlier run.
    pub(super) fn is_from_another(&self, sequence: u64) -> bool {
        self.issued.first().is_some_and(|first| *first < sequence) && !self.issued.contains(&sequence)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "only the wall clock grows across restarts; nothing waits for it"
    )]
    fn encode(&mut self) -> bool {
        // By the clock, so that it grows across restarts; by one, so that it grows at all.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.sequence = now_ms.max(self.sequence.saturating_add(1));
        self.issued.insert(self.sequence);
        if ISSUED_MAX < self.issued.len() {
            self.issued.pop_first();
        }
        let addrs = advertised(self.data, &self.ips);
        let contact = Contact { node: self.identity.node_id(), sequence: self.sequence, addrs };
        let signed = SignedContact::new(contact, |bytes| self.identity.sign(bytes));
        self.encoded = signed.expect("we sign with our own key, within the limits").encode();
        true
    }
}

/// Where peers may reach a data plane bound to `data`, on a host with addresses `ips`; best first.
fn advertised(data: SocketAddr, ips: &BTreeSet<IpAddr>) -> Vec<SocketAddr> {
    if !data.ip().is_unspecified() {
        return vec![data];
    }
    let reachable = |ip: &&IpAddr| match ip {
        IpAddr::V4(_) => true,
        // Means nothing without the name of an interface.
        IpAddr::V6(ip) => data.is_ipv6() && !ip.is_unicast_link_local(),
    };
    let mut ips: Vec<_> = ips.iter().filter(reachable).copied().collect();
    ips.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
    ips.truncate(CONTACT_ADDRS_MAX);
    ips.into_iter().map(|ip| SocketAddr::new(ip, data.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_every_interface_loopback_last() {
        let ips = ["127.0.0.1", "192.168.1.2", "10.0.0.1", "fe80::1", "fd00::1", "::1"];
        let ips: BTreeSet<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let four = advertised("0.0.0.0:9".parse().unwrap(), &ips);
        let expected = ["10.0.0.1:9", "192.168.1.2:9", "127.0.0.1:9"];
        assert_eq!(four.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        let six = advertised("[::]:9".parse().unwrap(), &ips);
        let expected = ["10.0.0.1:9", "192.168.1.2:9", "[fd00::1]:9", "127.0.0.1:9", "[::1]:9"];
        assert_eq!(six.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        let one = "10.9.9.9:9".parse().unwrap();
        assert_eq!(advertised(one, &ips), [one]);
    }

    #[test]
    fn records_grow_and_fit() {
        let mut ours = Ours::new(Identity::generate(), "[::]:9".parse().unwrap());
        let mut before = SignedContact::decode(&ours.encoded()).unwrap();
        for n in 0..40 {
            assert!(ours.add(IpAddr::from([0xfd00, 0, 0, 0, 0xffff, 0xffff, 0xffff, n])));
            assert!(ours.encoded().len() <= CONTACT_SIZE_MAX);
            let now = SignedContact::decode(&ours.encoded()).unwrap();
            assert!(before.contact().sequence < now.contact().sequence);
            before = now;
        }
        assert_eq!(before.contact().addrs.len(), CONTACT_ADDRS_MAX);
    }

    #[test]
    fn records_of_a_copy_are_told_from_our_own_and_from_those_of_earlier_runs() {
        let identity = Identity::generate();
        let mut ours = Ours::new(identity, "[::]:9".parse().unwrap());
        let first = ours.sequence;
        for _ in 0..200 {
            ours.renew();
            assert!(!ours.is_from_another(first) && !ours.is_from_another(ours.sequence));
        }
        assert!(!ours.is_from_another(first - 1_000));
        assert!(ours.is_from_another(ours.sequence + 1));
    }
}
