//! Names of things.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a chunk: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId([u8; 32]);

/// The name of a model: the BLAKE3 hash of its encoded [`Manifest`](crate::Manifest).
///
/// Written `surf:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelId([u8; 32]);

/// The name of a node: its Ed25519 public key.
///
/// Written as a libp2p peer id, `12D3Koo…`: base58 of the identity multihash of the key in libp2p's
/// protobuf (<https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md>).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

/// What a written model id starts with.
pub const MODEL_ID_PREFIX: &str = "surf:";

impl ChunkId {
    /// The id of `bytes`. Hashes them on the calling thread.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The id whose raw hash is `bytes`, if there are 32 of them.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The id written by [`ChunkId::to_hex`].
    pub fn from_hex(hex: &str) -> Option<Self> {
        parse_hex(hex).map(Self)
    }

    /// The raw hash, for use as a DHT or database key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash in 64 hexadecimal digits, for use as a file name.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

impl ModelId {
    /// The id of an encoded manifest.
    pub fn of(manifest: &[u8]) -> Self {
        Self(*blake3::hash(manifest).as_bytes())
    }

    /// The id whose raw hash is `bytes`, if there are 32 of them.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The raw hash, for use as a DHT or database key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash in 64 hexadecimal digits, without the prefix.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

impl std::str::FromStr for ModelId {
    type Err = NotAnId;

    /// Reads `surf:` and 64 hexadecimal digits; the prefix may be left out.
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        parse_hex(text.strip_prefix(MODEL_ID_PREFIX).unwrap_or(text)).map(Self).ok_or(NotAnId)
    }
}

/// What stands before the key in a peer id: identity multihash, 36 bytes; Ed25519; 32 bytes of data.
const PEER_ID_HEAD: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl NodeId {
    /// The node that a peer id names, if it names one by an Ed25519 key.
    pub fn from_peer_id(text: &str) -> Option<Self> {
        let mut bytes = [0; 38];
        let size = bs58::decode(text).onto(&mut bytes[..]).ok()?;
        let key = bytes.strip_prefix(&PEER_ID_HEAD)?;
        (size == bytes.len()).then(|| Self(key.try_into().expect("32 of 38 bytes")))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode([&PEER_ID_HEAD[..], &self.0].concat()).into_string())
    }
}

/// Text that is no model id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a model id is {MODEL_ID_PREFIX} and 64 hexadecimal digits")]
pub struct NotAnId;

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..5]))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self}..)")
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MODEL_ID_PREFIX}{}", hex::encode(self.0))
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelId({}..)", hex::encode(&self.0[..5]))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({}..)", hex::encode(&self.0[..5]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_id_reads_back() {
        let id = ModelId::of(b"manifest");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_hex().parse(), Ok(id));
        assert_eq!("surf:12".parse::<ModelId>(), Err(NotAnId));
    }

    #[test]
    fn a_node_is_written_as_its_peer_id() {
        // From the specification of peer ids.
        let key = "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e";
        let node = NodeId(parse_hex(key).unwrap());
        assert_eq!(node.to_string(), "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq");
        assert_eq!(NodeId::from_peer_id(&node.to_string()), Some(node));
        assert_eq!(NodeId::from_peer_id("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"), None);
        assert_eq!(NodeId::from_peer_id("12D3KooW"), None);
    }

    #[test]
    fn a_chunk_id_is_the_blake3_of_its_bytes() {
        // From the BLAKE3 reference test vectors: the hash of nothing.
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(ChunkId::of(b"").to_hex(), empty);
        assert_eq!(ChunkId::from_hex(empty), Some(ChunkId::of(b"")));
    }
}
