//! Every decoder that bytes from outside reach, as a function of bytes: it must neither panic nor hang, nor claim
//! more memory than the bytes justify, and what it takes must read back as itself.
//!
//! `cargo fuzz` calls each with what it thinks up (`fuzz_targets/`); the ordinary tests call each with a
//! bounded number of mutations of the seeds below (`tests/fuzz_bounded.rs`).

use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};
use surf_chunker::gguf::Metadata;
use surf_protocol::{
    Bitmap, ChunkId, Contact, FileEntry, Manifest, ModelId, Name, NodeId, SignedContact, SignedName,
    TensorEntry, VerifiedRange,
    limits::{CONTACT_SIZE_MAX, NAME_SIZE_MAX, REQUEST_SIZE_MAX},
    manifest::{ChunkEntry, FORMAT, Parts},
    range,
    wire::{self, Holdings, Refusal, Reply, Request},
};

/// A decoder under test.
pub(crate) struct Target {
    /// What `cargo fuzz` calls it.
    pub(crate) name: &'static str,
    /// Feeds it.
    pub(crate) feed: fn(&[u8]),
    /// Bytes that it takes, for mutations to begin with.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "request", feed: request, seeds: request_seeds },
    Target { name: "reply", feed: reply, seeds: reply_seeds },
    Target { name: "holdings", feed: holdings, seeds: holdings_seeds },
    Target { name: "contact", feed: contact, seeds: contact_seeds },
    Target { name: "name", feed: name, seeds: name_seeds },
    Target { name: "full_name", feed: full_name, seeds: full_name_seeds },
    Target { name: "manifest", feed: manifest, seeds: manifest_seeds },
    Target { name: "range", feed: verified_range, seeds: range_seeds },
    Target { name: "header", feed: header, seeds: header_seeds },
    Target { name: "gguf", feed: gguf, seeds: gguf_seeds },
    Target { name: "pickle", feed: pickle, seeds: pickle_seeds },
];

/// How long one input may take: far more than any needs, so that a slow machine is no failure.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(5);

/// Requests, as the data plane reads them.
pub(crate) fn request(bytes: &[u8]) {
    let Ok(request) = wire::decode_request(bytes) else { return };
    let again = wire::encode_request(&request);
    assert!(again.len() <= REQUEST_SIZE_MAX);
    assert_eq!(wire::decode_request(&again).ok(), Some(request));
}

/// Heads of replies.
pub(crate) fn reply(bytes: &[u8]) {
    let Ok(reply) = wire::decode_reply(bytes) else { return };
    let again = wire::encode_reply(&reply);
    assert_eq!(wire::decode_reply(&again[1..]).ok(), Some(reply));
}

/// Frames of holdings, with the size that stands before them, applied to what was known.
pub(crate) fn holdings(bytes: &[u8]) {
    let Some((size, body)) = bytes.split_first_chunk::<4>() else { return };
    let _ = wire::decode_holdings_size(*size);
    let Ok(holdings) = wire::decode_holdings(body) else { return };
    for len in [0, 1, 10, 300] {
        let before = Bitmap::from_fn(len, |at| at % 3 == 0);
        if let Some(after) = holdings.after(&before) {
            assert!(after.len() == len && after.count() <= len);
            assert_eq!(Holdings::between(&before, &after).after(&before), Some(after));
        }
    }
}

/// Contact records, as strangers send them.
pub(crate) fn contact(bytes: &[u8]) {
    let Ok(record) = SignedContact::decode(bytes) else { return };
    assert!(record.encode().len() <= CONTACT_SIZE_MAX);
    assert_eq!(SignedContact::decode(&record.encode()).ok(), Some(record));
}

/// Records of names, as they are put into the DHT: decoded, verified, dated, and told under which key they belong.
pub(crate) fn name(bytes: &[u8]) {
    let Ok(record) = SignedName::decode(bytes) else { return };
    assert!(record.encode().len() <= NAME_SIZE_MAX);
    let _ = record.timely(0).and_then(|()| record.timely(u64::MAX));
    assert_eq!(record.full().to_string().parse(), Ok(record.full()));
    assert_eq!(SignedName::decode(&record.encode()).ok(), Some(record));
}

/// `PEER/NAME` and model ids, as clients of the RPC write them.
pub(crate) fn full_name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(full) = text.parse::<surf_protocol::FullName>() {
        assert_eq!(full.to_string().parse(), Ok(full));
    }
    if let Ok(model) = text.parse::<ModelId>() {
        assert_eq!(model.to_string().parse(), Ok(model));
    }
}

/// Manifests, and what is asked of those that are taken.
pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(Manifest::decode(&manifest.encode()).map(|again| again.id()).ok(), Some(manifest.id()));
    assert_eq!(manifest.encode(), bytes, "there is one way to write it");
    for chunks in manifest.stems() {
        assert!(chunks.iter().all(|chunk| (*chunk as usize) < manifest.chunks().len()));
    }
    for tensor in manifest.tensors() {
        let size: u64 =
            manifest.tensor_pieces(tensor).map(|piece| u64::from(piece.range.end - piece.range.start)).sum();
        assert_eq!(size, tensor.size);
    }
}

/// Slices that prove a range of a chunk. The first bytes say which chunk and which range was asked for.
pub(crate) fn verified_range(bytes: &[u8]) {
    let Some((head, slice)) = bytes.split_first_chunk::<13>() else { return };
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (size, range) = (number(1), number(5)..number(9));
    let chunk = chunk();
    let asked = if head[0] == 0 { ChunkId::of(&chunk) } else { ChunkId::of(head) };
    let Ok(range) = VerifiedRange::verify(asked, size, range.clone(), slice) else { return };
    // Nobody can prove anything else than what stands there.
    let (start, end) = (range.range().start as usize, range.range().end as usize);
    assert_eq!(Some(&range.bytes()[..]), chunk.get(start..end));
}

/// Headers of safetensors files. The first bytes say how large the file is.
pub(crate) fn header(bytes: &[u8]) {
    let Some((size, head)) = bytes.split_first_chunk::<8>() else { return };
    let size = u64::from_le_bytes(*size);
    let Some(tensors) = surf_chunker::tensors_of(head, size) else { return };
    let mut filled = None;
    for (_, place) in tensors {
        assert!(place.start <= place.end && place.end <= size);
        assert!(filled.is_none_or(|filled| filled == place.start), "tensors touch each other");
        filled = Some(place.end);
    }
    assert!(filled.is_none_or(|filled| filled == size), "and fill the file");
}

/// Headers of GGUF files with their metadata. The first bytes say how large the file is.
pub(crate) fn gguf(bytes: &[u8]) {
    let Some((size, head)) = bytes.split_first_chunk::<8>() else { return };
    if let Ok(metadata) = Metadata::read(head) {
        for key in GGUF_KEYS {
            let value = metadata.find(key);
            if let Some(list) = value.and_then(|value| value.as_list()) {
                assert_eq!(list.iter().count(), list.len());
                assert!(list.len() <= head.len(), "a value has a byte at least");
            }
        }
    }
    let size = u64::from_le_bytes(*size);
    let Some(tensors) = surf_chunker::tensors_of_gguf(head, size) else { return };
    let mut end = 0;
    for (_, place) in tensors {
        assert!(place.start <= place.end && place.end <= size);
        assert!(place.is_empty() || end <= place.start, "tensors lie apart");
        end = end.max(place.end);
    }
}

/// What stands in the metadata of [`gguf_seeds`].
const GGUF_KEYS: [&str; 3] = ["general.architecture", "tokenizer.ggml.tokens", "tokenizer.ggml.scores"];

/// Files that PyTorch wrote.
pub(crate) fn pickle(bytes: &[u8]) {
    let Some(tensors) = surf_chunker::tensors_of_pickle(bytes) else { return };
    let mut end = 0;
    for (_, place) in tensors.into_iter().filter(|(_, place)| !place.is_empty()) {
        assert!(end <= place.start && place.start <= place.end, "tensors lie apart, in order");
        end = place.end;
    }
    assert!(end <= bytes.len() as u64, "in the file");
}

/// The chunk whose ranges are proven: 40,000 bytes.
fn chunk() -> Vec<u8> {
    (0..40_000u32).map(|at| (at * at % 251) as u8).collect()
}

fn request_seeds() -> Vec<Vec<u8>> {
    let (model, id) = (ModelId::of(b""), ChunkId::of(b""));
    let requests = [
        Request::Manifest(model),
        Request::Have(model),
        Request::Chunk(id),
        Request::Range { id, range: 1..70_000 },
    ];
    requests.iter().map(wire::encode_request).collect()
}

fn reply_seeds() -> Vec<Vec<u8>> {
    let replies =
        [Reply::Found { size: 8 << 20 }, Reply::Refused(Refusal::Busy), Reply::Refused(Refusal::Elsewhere)];
    replies.iter().map(|reply| wire::encode_reply(reply)[1..].to_vec()).collect()
}

fn holdings_seeds() -> Vec<Vec<u8>> {
    let all = Holdings::All(Bitmap::from_fn(10, |at| at > 7));
    let large = Holdings::All(Bitmap::from_fn(300, |at| at % 7 != 0));
    let change = Holdings::Change { added: vec![1, 9], removed: vec![2, 250] };
    [all, large, change].iter().map(wire::encode_holdings).collect()
}

/// A key whose secret everybody knows.
fn key() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

fn contact_seeds() -> Vec<Vec<u8>> {
    let addrs = vec![([10, 0, 0, 1], 8472).into(), ([0xfd00, 0, 0, 0, 0, 0, 0, 1], 8472).into()];
    let contact = Contact { node: NodeId(key().verifying_key().to_bytes()), sequence: 300, addrs };
    let signed = SignedContact::new(contact, |bytes| key().sign(bytes).to_bytes());
    vec![signed.expect("a good record").encode()]
}

fn name_seeds() -> Vec<Vec<u8>> {
    let publisher = NodeId(key().verifying_key().to_bytes());
    let signed = |name: &str| {
        let model = ModelId::of(b"");
        let name = Name { publisher, name: name.to_owned(), model, sequence: 7, expires: 2_000_000_000 };
        SignedName::new(name, |bytes| key().sign(bytes).to_bytes()).expect("a good name").encode()
    };
    vec![signed("tiny"), signed(&"ö".repeat(60))]
}

fn full_name_seeds() -> Vec<Vec<u8>> {
    let peer = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq";
    vec![
        format!("{peer}/tiny").into_bytes(),
        ModelId::of(b"").to_string().into_bytes(),
        format!("{peer}/ö:x").into_bytes(),
    ]
}

/// Two files, one of them with two tensors of two stems.
fn manifest_seeds() -> Vec<Vec<u8>> {
    let chunk = |at: u8, size| ChunkEntry { id: ChunkId::of(&[at]), size };
    let file = |path: &str, chunks: Vec<ChunkEntry>| FileEntry {
        path: path.to_owned(),
        size: chunks.iter().map(|chunk| u64::from(chunk.size)).sum(),
        blake3: [1; 32],
        sha256: [2; 32],
        chunks,
    };
    let tensor = |name: &str, offset, size| TensorEntry {
        file: 1,
        name: name.into(),
        dtype: "BF16".parse().expect("a tag"),
        shape: [size / 2].into(),
        offset,
        size,
    };
    let files = vec![
        file("config.json", vec![chunk(0, 300)]),
        file("model.safetensors", vec![chunk(1, 100), chunk(2, 40), chunk(3, 20)]),
    ];
    let tensors = vec![tensor("a.0", 100, 40), tensor("a.1", 140, 20)];
    let parts = Parts { format: FORMAT, files, tensors };
    vec![Manifest::new(parts).expect("a good manifest").encode()]
}

fn range_seeds() -> Vec<Vec<u8>> {
    let chunk = chunk();
    let seed = |range: std::ops::Range<u32>| {
        let numbers = [chunk.len() as u32, range.start, range.end].map(u32::to_le_bytes).concat();
        let slice = range::encode(&chunk, range).unwrap_or_default();
        [&[0], &numbers[..], &slice].concat()
    };
    vec![seed(0..40_000), seed(100..200), seed(16_000..17_000)]
}

fn header_seeds() -> Vec<Vec<u8>> {
    let json = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[8,16]}}"#;
    let packed = r#"{"__metadata__":{"ggml_type.b":"Q4_0"},"a":{"dtype":"F16","shape":[],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2,18],"data_offsets":[2,38]}}"#;
    let file = |json: &str, data: u64| {
        let size = 8 + json.len() as u64 + data;
        let header = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
        [&size.to_le_bytes()[..], &header, &vec![0; data as usize]].concat()
    };
    vec![file(json, 16), file(packed, 38)]
}

/// A text, a list of texts and one of numbers, and two tensors.
fn gguf_seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let number = |number: u32| number.to_le_bytes().to_vec();
    let [name, tokens, scores] = GGUF_KEYS.map(text);
    let two = 2u64.to_le_bytes().to_vec();
    let tensor = |name: &str, shape: &[u64], kind, offset: u64| {
        let sizes = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
        [text(name), number(shape.len() as u32), sizes, number(kind), offset.to_le_bytes().to_vec()].concat()
    };
    let mut head = [
        b"GGUF".to_vec(),
        number(3),
        two.clone(),
        3u64.to_le_bytes().to_vec(),
        [name, number(8), text("llama")].concat(),
        [tokens, number(9), number(8), two.clone(), text("a"), text("ab")].concat(),
        [scores, number(9), number(6), two, number(0), number(0)].concat(),
        tensor("blk.0.attn_q.weight", &[64, 2], 2, 0),
        tensor("output_norm.weight", &[3], 0, 96),
    ]
    .concat();
    head.resize(head.len().next_multiple_of(32) + 108, 0);
    vec![[&(head.len() as u64).to_le_bytes()[..], &head].concat()]
}

fn pickle_seeds() -> Vec<Vec<u8>> {
    let fixtures: [&[u8]; 3] = [
        include_bytes!("../fixtures/pickles/tied.pt"),
        include_bytes!("../fixtures/pickles/every.pt"),
        include_bytes!("../fixtures/pickles/protocol4.pt"),
    ];
    fixtures.map(<[u8]>::to_vec).to_vec()
}
