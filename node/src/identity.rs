//! Who this node is: one key, proven the same way in both planes.
//!
//! The TLS certificate of the data plane is the one libp2p defines, so a peer that the DHT named
//! cannot be impersonated when it is dialled for chunks. The key is a secret file, made once and never
//! changed here.

mod tls;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey, ed25519},
    tls as libp2p_tls,
};
use quinn::{
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    rustls::pki_types::CertificateDer,
};
use surf_protocol::{NodeId, wire::ALPN};

use crate::secret::{self, SecretError};

/// Bytes of a secret key as we write it.
const SECRET_SIZE: usize = 32;

/// Bytes of a key file. libp2p's own encoding of an Ed25519 key has 68.
const FILE_SIZE_MAX: u64 = 1024;

/// A peer id up to the key: a multihash of kind "identity" and 36 bytes, in which a protobuf says
/// "Ed25519, 32 bytes".
const PEER_ID_PREFIX: [u8; 6] = [0x00, 36, 0x08, 0x01, 0x12, 32];

/// This node's key pair.
#[derive(Clone)]
pub struct Identity {
    keypair: ed25519::Keypair,
}

/// There is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key file cannot be used.
    #[error(transparent)]
    File(#[from] SecretError),
    /// The file holds something else.
    #[error("{path} is not an Ed25519 key: 32 secret bytes or libp2p's encoding are expected, not these {size} bytes", path = path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// How many bytes it has, as far as they were read.
        size: usize,
    },
    /// No certificate could be made for the key.
    #[error("no certificate for this key: {0}")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Identity {
    /// A new identity, kept nowhere.
    pub fn generate() -> Self {
        Self { keypair: ed25519::Keypair::generate() }
    }

    /// The identity in the file at `path`; if there is no such file, a new one, kept there.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(IdentityError::File(SecretError::Io { cause, .. }))
                if cause.kind() == io::ErrorKind::NotFound =>
            {
                let identity = Self::generate();
                match secret::write_new(path, identity.keypair.secret().as_ref()) {
                    Ok(()) => Ok(identity),
                    // Another process was faster. Its key is the node's key.
                    Err(SecretError::Io { cause, .. }) if cause.kind() == io::ErrorKind::AlreadyExists => {
                        Self::load(path)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            done => done,
        }
    }

    /// This node's name.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.keypair.public().to_bytes())
    }

    /// Signs `bytes`. The caller sets something before them that says what the signature is for.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.keypair.sign(bytes).try_into().expect("an Ed25519 signature has 64 bytes")
    }

    /// The key pair, for the swarm.
    pub(crate) fn keypair(&self) -> Keypair {
        self.keypair.clone().into()
    }

    /// Proves who we are to those who dial us, and asks them to do the same.
    pub fn server_tls(&self) -> Result<QuicServerConfig, IdentityError> {
        self.server_tls_for(ALPN)
    }

    /// The same, for another protocol than that of an open swarm.
    pub fn server_tls_for(&self, alpn: &[u8]) -> Result<QuicServerConfig, IdentityError> {
        let mut tls = libp2p_tls::make_server_config(&self.keypair()).map_err(certificate)?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        QuicServerConfig::try_from(tls).map_err(certificate)
    }

    /// Proves who we are, and refuses to talk to anyone but `peer`.
    pub fn client_tls(&self, peer: NodeId) -> Result<QuicClientConfig, IdentityError> {
        self.client_tls_for(peer, ALPN)
    }

    /// The same, for another protocol than that of an open swarm.
    pub fn client_tls_for(&self, peer: NodeId, alpn: &[u8]) -> Result<QuicClientConfig, IdentityError> {
        let peer = libp2p_id(peer);
        let theirs = libp2p_tls::make_client_config(&self.keypair(), Some(peer)).map_err(certificate)?;
        let mut tls = tls::dialling(&theirs, peer).map_err(certificate)?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        QuicClientConfig::try_from(tls).map_err(certificate)
    }

    fn load(path: &Path) -> Result<Self, IdentityError> {
        let mut bytes = secret::read(path, FILE_SIZE_MAX)?;
        let size = bytes.len();
        let keypair = if size == SECRET_SIZE {
            ed25519::SecretKey::try_from_bytes(&mut bytes).ok().map(ed25519::Keypair::from)
        } else {
            Keypair::from_protobuf_encoding(&bytes).ok().and_then(|key| key.try_into_ed25519().ok())
        };
        let keypair = keypair.ok_or_else(|| IdentityError::NotAKey { path: path.to_owned(), size })?;
        Ok(Self { keypair })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node_id())
    }
}

/// The key inside `peer`, if it is of the kind we use.
pub(crate) fn node_id(peer: PeerId) -> Option<NodeId> {
    let key = PublicKey::try_decode_protobuf(peer.to_bytes().strip_prefix(&PEER_ID_PREFIX[..2])?).ok()?;
    Some(NodeId(key.try_into_ed25519().ok()?.to_bytes()))
}

/// What libp2p calls `node`.
pub(crate) fn libp2p_id(node: NodeId) -> PeerId {
    PeerId::from_bytes(&[&PEER_ID_PREFIX[..], &node.0].concat())
        .expect("an identity multihash of 36 bytes is a peer id")
}

/// Who is at the other end of `connection`, as its certificate proves. `None` before the handshake
/// is done.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_id(libp2p_tls::certificate::parse(chain.first()?).ok()?.peer_id())
}

fn certificate(error: impl std::error::Error + Send + Sync + 'static) -> IdentityError {
    IdentityError::Certificate(Box::new(error))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_for_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/node.key");
        let made = Identity::load_or_create(&path).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().node_id(), made.node_id());
        assert_eq!(fs::read(&path).unwrap().len(), SECRET_SIZE);
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1, "no temporary file is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::File(SecretError::Exposed { mode: 0o640, .. })));
            assert!(error.to_string().contains("node.key"), "{error}");
        }
    }

    #[test]
    fn libp2ps_own_encoding_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let identity = Identity::generate();
        write_private(&path, &identity.keypair().to_protobuf_encoding().unwrap());
        assert_eq!(Identity::load_or_create(&path).unwrap().node_id(), identity.node_id());
    }

    #[test]
    fn anything_else_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 31, 33, 68, 5000] {
            let path = dir.path().join(size.to_string());
            write_private(&path, &vec![7; size]);
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::NotAKey { .. }), "{size}: {error}");
            assert_eq!(fs::read(&path).unwrap().len(), size);
        }
    }

    #[test]
    fn a_peer_id_reads_back() {
        let identity = Identity::generate();
        let text = identity.node_id().to_string();
        assert_eq!(text, identity.keypair().public().to_peer_id().to_base58());
        assert_eq!(NodeId::from_peer_id(&text), Some(identity.node_id()));
        // From libp2p's documentation: the SHA-256 of an RSA key.
        assert_eq!(NodeId::from_peer_id("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"), None);
        assert_eq!(NodeId::from_peer_id(""), None);
    }

    #[test]
    fn any_32_bytes_can_be_written() {
        // Not a point of the curve, so nobody's key; it may still stand in a message.
        assert!(NodeId([2; 32]).to_string().starts_with("12D3KooW"));
    }

    fn write_private(path: &Path, bytes: &[u8]) {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
        file.write_all(bytes).unwrap();
        file.persist(path).unwrap();
    }
}
