//! Requests, replies, and the encoding of everything that is sent or stored.
//!
//! One request per QUIC stream, one reply, then the stream ends: there is no session state to get
//! wrong. A reply is a header frame and then, if it was not a refusal, exactly `size` bytes of body.
//! `bincode` is used here and nowhere else, always with a limit; the golden tests below are the
//! format.

use std::{io, ops::Range};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    bitmap::Bitmap,
    contact::Contact,
    id::{ChunkId, ModelId},
    limits::{
        CONTACT_SIZE_MAX, HOLDINGS_SIZE_MAX, MANIFEST_SIZE_MAX, NAME_SIZE_MAX, REPLY_HEADER_SIZE_MAX,
        REQUEST_SIZE_MAX,
    },
    manifest::{FileEntry, Parts},
    name::Name,
};

/// The ALPN of the data plane. The number goes up when the bytes on the wire change.
pub const ALPN: &[u8] = b"/surf/data/2";

/// The ALPN of the same in a private swarm, where both ends prove the swarm key before anything else. One
/// for all private swarms: it says nothing about the key.
pub const ALPN_PRIVATE: &[u8] = b"/surf/data/private/2";

/// What a getter asks of a holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The encoded manifest of a model.
    Manifest(ModelId),
    /// Which chunks of a model the holder has, now and from now on: [`Holdings`] in frames, for as long
    /// as the asker listens. The reply's size is [`ENDLESS`].
    Have(ModelId),
    /// All bytes of a chunk.
    Chunk(ChunkId),
    /// Some bytes of a chunk, with their proof: see [`range::encode`](crate::range::encode).
    Range {
        /// The chunk.
        id: ChunkId,
        /// First byte and end, in the chunk.
        range: Range<u32>,
    },
}

/// The size of a body that ends when the asker has heard enough.
pub const ENDLESS: u64 = u64::MAX;

/// Which chunks of a model a holder has, by their positions in the manifest's chunk list: the first
/// frame says all, the others what has changed since the frame before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holdings {
    /// All it has.
    All(Bitmap),
    /// What came and what went.
    Change {
        /// Positions that it has now.
        added: Vec<u32>,
        /// Positions that it no longer has.
        removed: Vec<u32>,
    },
}

impl Holdings {
    /// What leads from `before` to `after`, which are over the same positions, in few bytes.
    pub fn between(before: &Bitmap, after: &Bitmap) -> Self {
        let mut changed = (0..after.len()).filter(|&at| before.contains(at) != after.contains(at));
        // A position takes up to five bytes, a bitmap an eighth of one for each.
        let positions: Vec<usize> = changed.by_ref().take(after.len() / 40 + 1).collect();
        if changed.next().is_some() {
            return Self::All(after.clone());
        }
        let (added, removed): (Vec<usize>, Vec<usize>) =
            positions.into_iter().partition(|&at| after.contains(at));
        let short = |positions: Vec<usize>| positions.into_iter().map(|at| at as u32).collect();
        Self::Change { added: short(added), removed: short(removed) }
    }

    /// What is had after this was said, by one who had `before`. `None` if it speaks of positions that
    /// there are not.
    pub fn after(&self, before: &Bitmap) -> Option<Bitmap> {
        match self {
            Self::All(bitmap) if bitmap.len() == before.len() && bitmap.is_consistent() => {
                Some(bitmap.clone())
            }
            Self::All(_) => None,
            Self::Change { added, removed } => {
                if added.iter().chain(removed).any(|&at| before.len() <= at as usize) {
                    return None;
                }
                let mut after = before.clone();
                added.iter().for_each(|&at| after.insert(at as usize));
                removed.iter().for_each(|&at| after.remove(at as usize));
                Some(after)
            }
        }
    }
}

/// How a holder answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// This many bytes follow.
    Found {
        /// Bytes in the body.
        size: u64,
    },
    /// Nothing follows.
    Refused(Refusal),
}

/// Why a holder does not serve a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The holder does not have it.
    #[error("not here")]
    NotHere,
    /// The asker has too much outstanding, or the holder serves too many. Ask again later.
    #[error("busy")]
    Busy,
    /// The request could not be read, or asks for an impossible range.
    #[error("malformed request")]
    Malformed,
    /// The holder failed: its disk, most likely.
    #[error("the holder failed")]
    Failed,
    /// The holder has just given this to another and many are waiting: ask others, or ask again a
    /// little later.
    #[error("just given to another")]
    Elsewhere,
    /// The asker came through a relay, and the holder sends no chunks through relays.
    #[error("the peer sends no chunks through a relay")]
    Relayed,
}

/// A message that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("malformed {what}")]
pub struct Malformed {
    what: &'static str,
    #[source]
    cause: Option<bincode::error::DecodeError>,
}

/// The bytes of `request`, at most [`REQUEST_SIZE_MAX`].
pub fn encode_request(request: &Request) -> Vec<u8> {
    encode(request)
}

/// The request in `bytes`.
pub fn decode_request(bytes: &[u8]) -> Result<Request, Malformed> {
    decode::<_, REQUEST_SIZE_MAX>(bytes, "request")
}

/// A reply header as it is sent: its size in one byte, then its bytes.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    let body = encode(reply);
    let size = u8::try_from(body.len()).expect("a reply header has a dozen bytes");
    [&[size], &body[..]].concat()
}

/// The reply header in `bytes`, which follow the size byte.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, Malformed> {
    decode::<_, REPLY_HEADER_SIZE_MAX>(bytes, "reply")
}

/// Holdings as they are sent: the size of what follows in four bytes, the lowest first, then as many.
pub fn encode_holdings(holdings: &Holdings) -> Vec<u8> {
    let body = encode(holdings);
    let size = u32::try_from(body.len()).expect("at most HOLDINGS_SIZE_MAX");
    [&size.to_le_bytes(), &body[..]].concat()
}

/// The size of the holdings whose frame begins with these bytes, if it is one they can have.
pub fn decode_holdings_size(bytes: [u8; 4]) -> Result<usize, Malformed> {
    match u32::from_le_bytes(bytes) as usize {
        size @ 1..=HOLDINGS_SIZE_MAX => Ok(size),
        _ => Err(Malformed { what: "holdings", cause: None }),
    }
}

/// The holdings in `bytes`, which follow the size. What they say is checked by [`Holdings::after`].
pub fn decode_holdings(bytes: &[u8]) -> Result<Holdings, Malformed> {
    decode::<_, HOLDINGS_SIZE_MAX>(bytes, "holdings")
}

pub(crate) fn encode_contact(contact: &Contact, signature: &[u8; 64]) -> Vec<u8> {
    encode(&(contact, halves(signature)))
}

pub(crate) fn decode_contact(bytes: &[u8]) -> Result<(Contact, [u8; 64]), Malformed> {
    let (contact, halves): (Contact, _) = decode::<_, CONTACT_SIZE_MAX>(bytes, "contact record")?;
    Ok((contact, whole(halves)))
}

pub(crate) fn encode_name(name: &Name, signature: &[u8; 64]) -> Vec<u8> {
    encode(&(name, halves(signature)))
}

pub(crate) fn decode_name(bytes: &[u8]) -> Result<(Name, [u8; 64]), Malformed> {
    let (name, halves): (Name, _) = decode::<_, NAME_SIZE_MAX>(bytes, "record of a name")?;
    Ok((name, whole(halves)))
}

/// A signature as serde can write it.
fn halves(signature: &[u8; 64]) -> [[u8; 32]; 2] {
    let (r, s) = signature.split_at(32);
    [r.try_into().expect("half of 64"), s.try_into().expect("half of 64")]
}

fn whole([r, s]: [[u8; 32]; 2]) -> [u8; 64] {
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&r);
    signature[32..].copy_from_slice(&s);
    signature
}

pub(crate) fn encode_manifest(parts: &Parts) -> Vec<u8> {
    encode(parts)
}

/// Reads a manifest whose bytes are the only ones that say so: others would be another model of the same
/// files.
pub(crate) fn decode_manifest(bytes: &[u8]) -> Result<Parts, Malformed> {
    const WHAT: &str = "manifest";
    let parts = decode::<_, MANIFEST_SIZE_MAX>(bytes, WHAT)?;
    let mut rest = Same(bytes);
    let written = bincode::serde::encode_into_std_write(&parts, &mut rest, bincode::config::standard());
    match written {
        Ok(_) if rest.0.is_empty() => Ok(parts),
        _ => Err(Malformed { what: WHAT, cause: None }),
    }
}

/// The files of a manifest of another `format` that begins as all have: with its number, and the files.
pub(crate) fn decode_files(bytes: &[u8], format: u32) -> Option<Vec<FileEntry>> {
    if MANIFEST_SIZE_MAX < bytes.len() {
        return None;
    }
    let config = bincode::config::standard().with_limit::<MANIFEST_SIZE_MAX>();
    let ((found, files), _) = bincode::serde::decode_from_slice::<(u32, _), _>(bytes, config).ok()?;
    (found == format).then_some(files)
}

/// Bytes that are expected, and taken off as they are written.
struct Same<'a>(&'a [u8]);

impl io::Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.strip_prefix(bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, bincode::config::standard())
        .expect("encoding into memory cannot fail")
}

/// Decodes all of `bytes`. `LIMIT` bounds what bincode will claim memory for, and so what lying
/// length prefixes can make us allocate.
fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8], what: &'static str) -> Result<T, Malformed> {
    if LIMIT < bytes.len() {
        return Err(Malformed { what, cause: None });
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (message, read) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|cause| Malformed { what, cause: Some(cause) })?;
    if read != bytes.len() {
        return Err(Malformed { what, cause: None });
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    /// These bytes are deployed. If this test fails, raise the number in [`ALPN`]; do not edit the
    /// expectations.
    #[test]
    fn golden_requests() {
        let chunk = ChunkId::of(b"");
        let model = ModelId::of(b"");
        let golden = [
            (Request::Manifest(model), format!("00{EMPTY}")),
            (Request::Have(model), format!("01{EMPTY}")),
            (Request::Chunk(chunk), format!("02{EMPTY}")),
            (Request::Range { id: chunk, range: 1..70_000 }, format!("03{EMPTY}01fc70110100")),
        ];
        for (request, bytes) in golden {
            assert_eq!(hex::encode(encode_request(&request)), bytes);
            assert_eq!(decode_request(&hex::decode(bytes).unwrap()).unwrap(), request);
        }
    }

    /// Deployed too.
    #[test]
    fn golden_replies() {
        let golden = [
            (Reply::Found { size: 8 << 20 }, "0600fc00008000"),
            (Reply::Refused(Refusal::NotHere), "020100"),
            (Reply::Refused(Refusal::Busy), "020101"),
            (Reply::Refused(Refusal::Malformed), "020102"),
            (Reply::Refused(Refusal::Failed), "020103"),
            (Reply::Refused(Refusal::Elsewhere), "020104"),
            (Reply::Refused(Refusal::Relayed), "020105"),
        ];
        for (reply, bytes) in golden {
            assert_eq!(hex::encode(encode_reply(&reply)), bytes);
            assert_eq!(decode_reply(&hex::decode(bytes).unwrap()[1..]).unwrap(), reply);
        }
        assert_eq!(
            hex::encode(encode_holdings(&Holdings::All(Bitmap::from_fn(10, |at| at > 7)))),
            "05000000000a020003"
        );
        let change = Holdings::Change { added: vec![1, 300], removed: vec![2] };
        assert_eq!(hex::encode(encode_holdings(&change)), "08000000010201fb2c010102");
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode_request(&Request::Chunk(ChunkId::of(b"")));
        bytes.push(0);
        assert!(decode_request(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode_request(&bytes);
            let _ = decode_reply(&bytes);
            let _ = decode_holdings(&bytes).map(|holdings| holdings.after(&Bitmap::none(100)));
            let _ = decode_contact(&bytes);
            let _ = decode_name(&bytes);
            let _ = decode_manifest(&bytes);
        }

        #[test]
        fn holdings_read_back_and_lead_from_one_to_the_other(
            sets in prop::collection::vec((any::<bool>(), prop::bool::weighted(0.03)), 0..500),
        ) {
            let before = Bitmap::from_fn(sets.len(), |at| sets[at].0);
            let after = Bitmap::from_fn(sets.len(), |at| sets[at].0 != sets[at].1);
            let holdings = Holdings::between(&before, &after);
            let frame = encode_holdings(&holdings);
            let (size, body) = frame.split_first_chunk().unwrap();
            prop_assert_eq!(decode_holdings_size(*size).unwrap(), body.len());
            prop_assert_eq!(decode_holdings(body).unwrap().after(&before), Some(after.clone()));
            prop_assert_eq!(Holdings::All(after).after(&Bitmap::none(sets.len() + 1)), None);
        }
    }
}
