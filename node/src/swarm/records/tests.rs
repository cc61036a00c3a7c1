//! Who keeps a place in the store, whatever strangers pour into it.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
};

use super::*;

fn key(kind: u8, n: u32) -> RecordKey {
    RecordKey::from([&[kind; 29], &n.to_le_bytes()[..]].concat())
}

fn record(n: u32, provider: PeerId) -> ProviderRecord {
    let addresses = vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()];
    ProviderRecord { key: key(GROUP, n), provider, expires: None, addresses }
}

fn at(ip: [u8; 4], met: bool) -> Source {
    let addr = Multiaddr::from(IpAddr::from(Ipv4Addr::from(ip)));
    Source { node: None, place: Place::of(&addr), met }
}

fn here() -> Source {
    at([127, 0, 0, 1], false)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Everybody who is told to somebody who asks often.
fn told(records: &Records, key: &RecordKey) -> HashSet<PeerId> {
    (0..3_000).flat_map(|_| records.providers(key)).map(|record| record.provider).collect()
}

fn is_empty(records: &Records) -> bool {
    (records.count, records.bytes) == (0, 0) && records.providers.is_empty() && records.keys.is_empty()
}

#[test]
fn a_greedy_peer_is_bounded_and_we_are_not() {
    let (me, greedy, other) = (PeerId::random(), PeerId::random(), PeerId::random());
    let mut records = Records::new(me);
    for n in 0..RECORDS_PER_PROVIDER as u32 {
        records.offer(record(n, greedy), here(), now()).unwrap();
    }
    let more = RECORDS_PER_PROVIDER as u32;
    assert!(records.offer(record(more, greedy), here(), now()).is_err());
    records.offer(record(0, greedy), here(), now()).expect("renewing is no more");
    records.offer(record(more, other), here(), now()).unwrap();
    records.add_provider(record(more, me)).unwrap();
    assert_eq!(records.providers(&key(GROUP, more)).len(), 2);
    assert_eq!(records.addrs(&greedy).len(), 1);
    assert!(records.add_provider(record(more, PeerId::random())).is_err(), "what others say is offered");
}

/// 1,000 identities at one address, before and after honest nodes with and without an address of their own.
#[test]
fn a_thousand_identities_on_one_key_push_out_nobody_honest() {
    let mut records = Records::new(PeerId::random());
    let [first, met, far, near] = [(); 4].map(|()| PeerId::random());
    records.offer(record(1, first), here(), now()).unwrap();
    for n in 0..1_000 {
        if n == 500 {
            records.offer(record(1, met), at([127, 0, 0, 1], true), now()).unwrap();
            records.offer(record(1, far), at([192, 0, 2, 1], false), now()).unwrap();
            records.offer(record(1, near), at([127, 0, 0, 2], false), now()).unwrap();
        }
        records.offer(record(1, PeerId::random()), here(), now()).unwrap();
        assert!(records.count <= RECORDS_PER_KEY);
    }
    let told = told(&records, &key(GROUP, 1));
    for (peer, who) in
        [(first, "the first"), (met, "one we met"), (far, "one far away"), (near, "a neighbour")]
    {
        assert!(told.contains(&peer), "{who}");
    }
    let once: HashSet<_> =
        records.providers(&key(GROUP, 1)).into_iter().map(|record| record.provider).collect();
    assert!([met, far, near].iter().all(|peer| once.contains(peer)), "and in each answer");
    assert!(once.len() < TOLD_MAX + 1);
}

#[test]
fn a_newcomer_gets_in_and_all_are_told_in_time() {
    let mut records = Records::new(PeerId::random());
    let peers: Vec<_> = (0..=RECORDS_PER_KEY).map(|_| PeerId::random()).collect();
    for peer in &peers {
        records.offer(record(1, *peer), here(), now()).unwrap();
    }
    assert_eq!(records.count, staying(RECORDS_PER_KEY));
    let told = told(&records, &key(GROUP, 1));
    assert_eq!(told.len(), records.count);
    let oldest = &peers[..staying(RECORDS_PER_KEY) / 2];
    assert!(oldest.iter().all(|peer| told.contains(peer)), "who has been there longest stays");
}

/// 64 identities with 2,048 keys each; then honest nodes at the same address and at another.
#[test]
fn a_full_store_has_room_for_those_who_ask_for_little() {
    let mut records = Records::new(PeerId::random());
    let before = PeerId::random();
    records.offer(record(0, before), here(), now()).unwrap();
    for _ in 0..70 {
        let greedy = PeerId::random();
        for _ in 0..RECORDS_PER_PROVIDER {
            records.offer(record(rand::random(), greedy), here(), now()).unwrap();
        }
    }
    assert!(records.count <= RECORDS_MAX && records.bytes <= BYTES_MAX);
    let honest = [PeerId::random(), PeerId::random()];
    for n in 0..300 {
        records.offer(record(n, honest[0]), here(), now()).unwrap();
        records.offer(record(n, honest[1]), at([192, 0, 2, 1], false), now()).unwrap();
    }
    let last = PeerId::random();
    for _ in 0..RECORDS_PER_PROVIDER {
        for peer in [last, PeerId::random()] {
            records.offer(record(rand::random(), peer), here(), now()).unwrap();
        }
    }
    assert_eq!(records.providers[&before].records, 1);
    assert_eq!(honest.map(|peer| records.providers[&peer].records), [300, 300]);
}

#[test]
fn addresses_are_bounded_in_bytes() {
    let mut records = Records::new(PeerId::random());
    let long: Multiaddr = format!("/dns4/{}/tcp/9", "x".repeat(200)).parse().unwrap();
    for n in 0..(BYTES_MAX / (ADDRS_SIZE_MAX + RECORD_BYTES)) as u32 + 1_000 {
        let addresses = vec![long.clone(); 16];
        let record = ProviderRecord { addresses, ..record(n, PeerId::random()) };
        records.offer(record, here(), now()).unwrap();
        assert!(records.bytes <= BYTES_MAX);
    }
    let provider = records.providers.values().next().unwrap();
    assert!(provider.addrs.iter().map(Multiaddr::len).sum::<usize>() <= ADDRS_SIZE_MAX);
    let counted: usize = records.providers.values().map(Provider::bytes).sum();
    assert_eq!(records.bytes, counted + records.count * RECORD_BYTES);
}

#[test]
fn each_kind_lives_as_long_as_it_should_and_nothing_is_left() {
    let now = now();
    let mut records = Records::new(PeerId::random());
    let peer = PeerId::random();
    let of_model = ProviderRecord { key: key(MODEL, 1), ..record(1, peer) };
    records.offer(of_model.clone(), here(), now).unwrap();
    records.offer(record(1, peer), here(), now).unwrap();
    records.sweep(now + MODEL_LIFE);
    assert!(records.providers(&of_model.key).is_empty() && !records.providers(&key(GROUP, 1)).is_empty());
    records.offer(record(1, peer), here(), now + OTHER_LIFE / 2).expect("it is renewed");
    records.sweep(now + OTHER_LIFE);
    assert_eq!(records.count, 1);
    records.sweep(now + 2 * OTHER_LIFE);
    assert!(is_empty(&records));
    records.offer(record(1, peer), here(), now).unwrap();
    records.remove_provider(&key(GROUP, 1), &peer);
    assert!(is_empty(&records));
}

#[test]
fn keys_of_other_shapes_are_refused() {
    let mut records = Records::new(PeerId::random());
    for key in [&b""[..], b"m", &[7; 33], &[MODEL; 34], &[b'n'; 33]] {
        let record = ProviderRecord { key: RecordKey::new(&key), ..record(1, PeerId::random()) };
        assert!(records.offer(record, here(), now()).is_err());
    }
}

#[test]
fn libp2p_can_put_nothing_that_was_not_offered() {
    let mut records = Records::new(PeerId::random());
    assert!(records.put(Record::new(RecordKey::new(b"x"), b"anything".to_vec())).is_err());
    assert!(records.get(&RecordKey::new(b"x")).is_none());
}
