//! Requests, replies, and the encoding of everything that is sent or stored.
//!
//! One request per QUIC stream, one reply, then the stream ends: there is no session state to get
//! wrong. A reply is a header frame and then, if it was not a refusal, exactly `size` bytes of body.
//! `bincode` is used here and nowhere else, always with a limit; the golden tests below are the
//! format.

use std::ops::Range;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    bitmap::Bitmap,
    contact::Contact,
    id::{ChunkId, ModelId},
    limits::{BITMAP_SIZE_MAX, CONTACT_SIZE_MAX, MANIFEST_SIZE_MAX, REPLY_HEADER_SIZE_MAX, REQUEST_SIZE_MAX},
    manifest::Parts,
};

/// The ALPN of the data plane. The number goes up when the bytes on the wire change.
pub const ALPN: &[u8] = b"/surf/data/1";

/// What a getter asks of a holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The encoded manifest of a model.
    Manifest(ModelId),
    /// Which chunks of a model the holder has, as an encoded [`Bitmap`].
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

/// The bytes of `bitmap`, at most [`BITMAP_SIZE_MAX`].
pub fn encode_bitmap(bitmap: &Bitmap) -> Vec<u8> {
    encode(bitmap)
}

/// The bitmap in `bytes`, if it is over `len` positions.
pub fn decode_bitmap(bytes: &[u8], len: usize) -> Result<Bitmap, Malformed> {
    let bitmap: Bitmap = decode::<_, BITMAP_SIZE_MAX>(bytes, "bitmap")?;
    if bitmap.len() == len && bitmap.is_consistent() {
        Ok(bitmap)
    } else {
        Err(Malformed { what: "bitmap", cause: None })
    }
}

pub(crate) fn encode_contact(contact: &Contact, signature: &[u8; 64]) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    let halves: [[u8; 32]; 2] = [r.try_into().expect("half of 64"), s.try_into().expect("half of 64")];
    encode(&(contact, halves))
}

pub(crate) fn decode_contact(bytes: &[u8]) -> Result<(Contact, [u8; 64]), Malformed> {
    let (contact, [r, s]): (Contact, [[u8; 32]; 2]) = decode::<_, CONTACT_SIZE_MAX>(bytes, "contact record")?;
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&r);
    signature[32..].copy_from_slice(&s);
    Ok((contact, signature))
}

pub(crate) fn encode_manifest(parts: &Parts) -> Vec<u8> {
    encode(parts)
}

pub(crate) fn decode_manifest(bytes: &[u8]) -> Result<Parts, Malformed> {
    decode::<_, MANIFEST_SIZE_MAX>(bytes, "manifest")
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
        ];
        for (reply, bytes) in golden {
            assert_eq!(hex::encode(encode_reply(&reply)), bytes);
            assert_eq!(decode_reply(&hex::decode(bytes).unwrap()[1..]).unwrap(), reply);
        }
        assert_eq!(hex::encode(encode_bitmap(&Bitmap::from_fn(10, |at| at > 7))), "0a020003");
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
            let _ = decode_bitmap(&bytes, 100);
            let _ = decode_contact(&bytes);
            let _ = decode_manifest(&bytes);
        }

        #[test]
        fn a_bitmap_reads_back(set in prop::collection::vec(any::<bool>(), 0..500)) {
            let bitmap = Bitmap::from_fn(set.len(), |at| set[at]);
            prop_assert_eq!(decode_bitmap(&encode_bitmap(&bitmap), set.len()).unwrap(), bitmap);
            prop_assert!(decode_bitmap(&encode_bitmap(&Bitmap::none(set.len())), set.len() + 1).is_err());
        }
    }
}
