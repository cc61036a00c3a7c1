//! Where a node's data plane listens, signed by that node.
//!
//! The control plane finds peers; this record, exchanged when two of them first meet, says where to
//! dial for chunks. It is signed, so a third party can neither forge nor redirect it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{id::NodeId, limits::CONTACT_ADDRS_MAX, wire};

/// Where a node's data plane listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Whose record this is.
    pub node: NodeId,
    /// Grows with each record of this node; of two records the larger counts.
    pub sequence: u64,
    /// Addresses to try for QUIC, best first. At most [`CONTACT_ADDRS_MAX`].
    pub addrs: Vec<SocketAddr>,
}

/// A contact record whose signature has been checked, with what is needed to pass it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedContact {
    contact: Contact,
    signature: [u8; 64],
}

/// Set before the signed bytes, so that a signature over a contact record is valid for nothing else.
const DOMAIN: &[u8] = b"surf/contact/1\0";

/// Why a contact record was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ContactError {
    /// The record could not be read.
    #[error(transparent)]
    Malformed(#[from] wire::Malformed),
    /// More addresses than a record may have.
    #[error("a contact record with {0} addresses; {CONTACT_ADDRS_MAX} are allowed")]
    TooManyAddrs(usize),
    /// The record was not signed by the node it speaks of.
    #[error("a contact record that its node did not sign")]
    Signature,
}

impl SignedContact {
    /// Signs `contact` with `sign`, which must use the key of `contact.node`.
    pub fn new(contact: Contact, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Result<Self, ContactError> {
        let signature = sign(&signed_bytes(&contact));
        Self::verify(contact, signature)
    }

    /// Checks that `signature` over `contact` was made by `contact.node`.
    pub fn verify(contact: Contact, signature: [u8; 64]) -> Result<Self, ContactError> {
        if CONTACT_ADDRS_MAX < contact.addrs.len() {
            return Err(ContactError::TooManyAddrs(contact.addrs.len()));
        }
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(&contact.node.0).map_err(|_| ContactError::Signature)?;
        key.verify_strict(&signed_bytes(&contact), &signature.into()).map_err(|_| ContactError::Signature)?;
        Ok(Self { contact, signature })
    }

    /// Reads and checks what [`SignedContact::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, ContactError> {
        let (contact, signature) = wire::decode_contact(bytes)?;
        Self::verify(contact, signature)
    }

    /// The record in bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode_contact(&self.contact, &self.signature)
    }

    /// What the record says.
    pub fn contact(&self) -> &Contact {
        &self.contact
    }
}

fn signed_bytes(contact: &Contact) -> Vec<u8> {
    [DOMAIN, &wire::encode_contact(contact, &[0; 64])].concat()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;

    fn signed(seed: u8, port: u16) -> SignedContact {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let contact = Contact {
            node: NodeId(key.verifying_key().to_bytes()),
            sequence: 1,
            addrs: vec![SocketAddr::from(([127, 0, 0, 1], port))],
        };
        SignedContact::new(contact, |bytes| key.sign(bytes).to_bytes()).unwrap()
    }

    #[test]
    fn a_record_reads_back() {
        let record = signed(1, 4001);
        assert_eq!(SignedContact::decode(&record.encode()).unwrap(), record);
    }

    #[test]
    fn a_changed_address_is_refused() {
        let mut forged = signed(1, 4001);
        forged.contact.addrs[0].set_port(4002);
        assert!(matches!(SignedContact::decode(&forged.encode()), Err(ContactError::Signature)));
    }

    #[test]
    fn another_nodes_signature_is_refused() {
        let (mut one, two) = (signed(1, 4001), signed(2, 4001));
        one.contact.node = two.contact.node;
        assert!(SignedContact::decode(&one.encode()).is_err());
    }

    proptest! {
        #[test]
        fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..2_000)) {
            prop_assert!(SignedContact::decode(&noise).is_err());
        }
    }
}
