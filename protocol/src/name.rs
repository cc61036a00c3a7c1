//! A name that its publisher gave to a model: `PEER/NAME`, signed, numbered, and good until a date.
//!
//! Anyone may keep such a record and hand it on; nobody but the publisher can make one. Of two
//! records of one name the larger sequence number counts, so that an old one cannot be passed off as
//! the current one to whoever has seen a later. Pure: what time it is, callers say.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ModelId, NodeId},
    limits::{NAME_LIFE_MAX_S, NAME_TEXT_SIZE_MAX},
    wire,
};

/// How much later than its end a record is still taken, in seconds: clocks differ.
pub const SKEW_S: u64 = 300;

/// Which model a publisher means by a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Whose name it is.
    pub publisher: NodeId,
    /// The name, as [`check_name`] allows it.
    pub name: String,
    /// What it names.
    pub model: ModelId,
    /// Grows with each record of this name; of two records the larger counts.
    pub sequence: u64,
    /// Until when it is good, in seconds since 1970.
    pub expires: u64,
}

/// A name whose signature has been checked, with what is needed to pass it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedName {
    name: Name,
    signature: [u8; 64],
}

/// Set before the signed bytes, so that a signature over a name is valid for nothing else.
const DOMAIN: &[u8] = b"surf/name/1\0";

/// What the keys of names are derived with, so that they are no keys of anything else.
const KEY_CONTEXT: &str = "surf-node 2026-11 name";

/// Why a record of a name was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The record could not be read.
    #[error(transparent)]
    Malformed(#[from] wire::Malformed),
    /// Nothing may be called so.
    #[error(transparent)]
    Bad(#[from] BadName),
    /// The record was not signed by its publisher.
    #[error("a record of a name that its publisher did not sign")]
    Signature,
}

/// A record that is good at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untimely {
    /// It is over.
    #[error("it has expired")]
    Expired,
    /// It claims to be good for longer than any record may be.
    #[error("it claims to be good for more than {} days", NAME_LIFE_MAX_S / 86_400)]
    TooLong,
}

/// Text that cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be a name: {why}")]
pub struct BadName {
    /// The text.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Checks that a name cannot be mistaken for an id or for `PEER/NAME`, and can be written in a shell.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    let why = match name {
        "" => "it is empty",
        _ if NAME_TEXT_SIZE_MAX < name.len() => "it is longer than 128 bytes",
        _ if !name.chars().all(plain) => "only letters, digits and - _ . : are allowed",
        _ if name.starts_with(['-', '.']) => "it starts with a dash or a dot",
        _ if name.starts_with("surf:") => "it looks like a model id",
        _ if 8 <= name.len() && name.chars().all(|c| c.is_ascii_hexdigit()) => "it looks like a model id",
        _ => return Ok(()),
    };
    // Whatever it is, it may be long.
    Err(BadName { name: name.chars().take(NAME_TEXT_SIZE_MAX).collect(), why })
}

/// A name in full: `PEER/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FullName {
    /// Whose name it is.
    pub publisher: NodeId,
    /// The name.
    pub name: String,
}

/// Text that is no name in full.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFullName {
    /// There is no slash in it.
    #[error("a signed name is written PEER/NAME")]
    NoSlash,
    /// What stands before the slash is nobody.
    #[error("{0:?} is not a peer id, such as 12D3KooW…")]
    Peer(String),
    /// What stands after it cannot be a name.
    #[error(transparent)]
    Name(#[from] BadName),
}

impl FullName {
    /// What the DHT stores its record under.
    pub fn key(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
        hasher.update(&self.publisher.0);
        hasher.update(self.name.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

impl FromStr for FullName {
    type Err = NotAFullName;

    fn from_str(text: &str) -> Result<Self, NotAFullName> {
        let (peer, name) = text.split_once('/').ok_or(NotAFullName::NoSlash)?;
        let publisher = NodeId::from_peer_id(peer);
        let publisher =
            publisher.ok_or_else(|| NotAFullName::Peer(peer.chars().take(NAME_TEXT_SIZE_MAX).collect()))?;
        check_name(name)?;
        Ok(Self { publisher, name: name.to_owned() })
    }
}

impl fmt::Display for FullName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.publisher, self.name)
    }
}

impl SignedName {
    /// Signs `name` with `sign`, which must use the key of `name.publisher`.
    pub fn new(name: Name, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Result<Self, NameError> {
        let signature = sign(&signed_bytes(&name));
        Self::verify(name, signature)
    }

    /// Checks that `signature` over `name` was made by `name.publisher`.
    pub fn verify(name: Name, signature: [u8; 64]) -> Result<Self, NameError> {
        check_name(&name.name)?;
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(&name.publisher.0).map_err(|_| NameError::Signature)?;
        key.verify_strict(&signed_bytes(&name), &signature.into()).map_err(|_| NameError::Signature)?;
        Ok(Self { name, signature })
    }

    /// Reads and checks what [`SignedName::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, NameError> {
        let (name, signature) = wire::decode_name(bytes)?;
        Self::verify(name, signature)
    }

    /// The record in bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode_name(&self.name, &self.signature)
    }

    /// What the record says.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The name in full.
    pub fn full(&self) -> FullName {
        FullName { publisher: self.name.publisher, name: self.name.name.clone() }
    }

    /// Whether the record is good at `now`, in seconds since 1970, give or take [`SKEW_S`].
    pub fn timely(&self, now: u64) -> Result<(), Untimely> {
        let expires = self.name.expires;
        if expires.saturating_add(SKEW_S) <= now {
            return Err(Untimely::Expired);
        }
        if now.saturating_add(NAME_LIFE_MAX_S + SKEW_S) < expires {
            return Err(Untimely::TooLong);
        }
        Ok(())
    }
}

fn signed_bytes(name: &Name) -> Vec<u8> {
    [DOMAIN, &wire::encode_name(name, &[0; 64])].concat()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;
    use crate::limits::NAME_SIZE_MAX;

    fn signed(seed: u8, name: &str, sequence: u64, expires: u64) -> SignedName {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let publisher = NodeId(key.verifying_key().to_bytes());
        let name = Name { publisher, name: name.to_owned(), model: ModelId::of(&[seed]), sequence, expires };
        SignedName::new(name, |bytes| key.sign(bytes).to_bytes()).unwrap()
    }

    /// These bytes are deployed. If this test fails, raise the number in [`DOMAIN`]; do not edit the
    /// expectations.
    #[test]
    fn golden_record() {
        let record = signed(1, "tiny", 7, 2_000_000_000);
        let (key, model) = (hex::encode(record.name.publisher.0), record.name.model.to_hex());
        let head = format!("{key}0474696e79{model}07fc00943577");
        let bytes = record.encode();
        assert_eq!(hex::encode(&bytes[..bytes.len() - 64]), head);
        // Ed25519 signs the same bytes the same way each time.
        let signature = "c1a73d0d1879a40f47e3764b2559fdf3ba929645aebe814a659db09c9572ccd318f2c246e9dd14f6f8c4b07bbaa118adec71aae511bd0dc26586daa54bb37407";
        assert_eq!(hex::encode(&bytes[bytes.len() - 64..]), signature);
        let dht = "393fdd30431efeb107a9391998d1893e366db551ec58deee4cedebd483bafb9a";
        assert_eq!(hex::encode(record.full().key()), dht);
    }

    #[test]
    fn the_longest_record_fits() {
        let record = signed(1, &"ö".repeat(64), u64::MAX, u64::MAX);
        assert!(record.encode().len() <= NAME_SIZE_MAX);
        assert_eq!(SignedName::decode(&record.encode()).unwrap(), record);
    }

    #[test]
    fn a_record_is_good_for_a_time() {
        let record = signed(1, "tiny", 7, 1_000_000);
        for (now, timely) in [
            (1_000_000 - NAME_LIFE_MAX_S - SKEW_S - 1, Err(Untimely::TooLong)),
            (1_000_000 - NAME_LIFE_MAX_S, Ok(())),
            (1_000_000 + SKEW_S - 1, Ok(())),
            (1_000_000 + SKEW_S, Err(Untimely::Expired)),
            (u64::MAX, Err(Untimely::Expired)),
        ] {
            assert_eq!(record.timely(now), timely, "{now}");
        }
        assert_eq!(signed(1, "x", 0, u64::MAX).timely(5), Err(Untimely::TooLong));
    }

    #[test]
    fn names_are_told_from_ids() {
        for good in ["tiny-surfer", "llama3.1:8b", "Größe", "cafe"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "a/b", "-x", ".", "surf:x", "deadbeef", "0123456789abcdef", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_full_name_reads_back_and_others_say_what_is_wrong() {
        let full = signed(1, "llama3.1:8b", 1, 1).full();
        assert_eq!(full.to_string().parse(), Ok(full.clone()));
        assert_eq!("tiny".parse::<FullName>(), Err(NotAFullName::NoSlash));
        assert_eq!("org/tiny".parse::<FullName>(), Err(NotAFullName::Peer("org".to_owned())));
        let bad = format!("{}/a/b", full.publisher);
        assert!(matches!(bad.parse::<FullName>(), Err(NotAFullName::Name(_))));
    }

    #[test]
    fn another_publisher_cannot_sign() {
        let (one, two) = (signed(1, "tiny", 7, 9), signed(2, "tiny", 7, 9));
        let name = Name { publisher: two.name.publisher, ..one.name };
        let forged = wire::encode_name(&name, &one.signature);
        assert!(matches!(SignedName::decode(&forged), Err(NameError::Signature)));
    }

    #[test]
    fn a_record_signed_under_a_bad_name_is_refused() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let publisher = NodeId(key.verifying_key().to_bytes());
        let name =
            Name { publisher, name: "a/b".to_owned(), model: ModelId::of(b""), sequence: 1, expires: 1 };
        let signature = key.sign(&signed_bytes(&name)).to_bytes();
        let decoded = SignedName::decode(&wire::encode_name(&name, &signature));
        assert!(matches!(decoded, Err(NameError::Bad(_))));
    }

    proptest! {
        #[test]
        fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(SignedName::decode(&noise).is_err());
        }

        #[test]
        fn whatever_is_changed_the_signature_no_longer_fits(
            at in any::<prop::sample::Index>(),
            change in 1u8..,
            name in "[a-z]{1,20}",
            sequence in any::<u64>(),
        ) {
            let record = signed(3, &name, sequence, 1_000);
            let mut bytes = record.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            prop_assert!(SignedName::decode(&bytes).is_err());
        }

        #[test]
        fn names_of_one_publisher_have_keys_of_their_own(a in "[a-z]{1,9}", b in "[a-z]{1,9}") {
            let (a, b) = (signed(1, &a, 1, 1), signed(1, &b, 2, 1));
            prop_assert_eq!(a.full().key() == b.full().key(), a.name.name == b.name.name);
        }
    }
}
