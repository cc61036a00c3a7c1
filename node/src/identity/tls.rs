//! How those who dial say which cipher they like best.
//!
//! libp2p's TLS names ChaCha20 first, which on machines that have instructions for AES costs about twice the
//! time. The one who dials decides, so only its configuration is ours: the certificates, and what is
//! checked of them, are libp2p's.
//!
//! <https://github.com/libp2p/specs/blob/master/tls/tls.md>

use std::sync::Arc;

use libp2p::{PeerId, tls::certificate};
use quinn::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};

/// Like libp2p's configuration, `theirs`, for dialling `peer`, but with the ciphers in the order of this machine.
pub(super) fn dialling(theirs: &ClientConfig, peer: PeerId) -> Result<ClientConfig, Error> {
    let mut provider = CryptoProvider::clone(theirs.crypto_provider());
    if has_aes() {
        let fastest = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
        // A stable sort: the others stay as they are.
        provider.cipher_suites.sort_by_key(|suite| *suite != fastest);
    }
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    Ok(ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { peer, schemes }))
        .with_client_cert_resolver(Arc::clone(&theirs.client_auth_cert_resolver)))
}

/// Lets nobody through but `peer`.
#[derive(Debug)]
struct Verifier {
    peer: PeerId,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Checks its times, its signature, and that of the peer's key over the certificate's.
        let proven = certificate::parse(certificate)?.peer_id();
        if !others.is_empty() || proven != self.peer {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        certificate::parse(certificate)?.verify_signature(signed.scheme, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}
