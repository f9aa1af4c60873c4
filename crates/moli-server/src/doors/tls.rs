//! TLS, where the server itself speaks it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::ServerError;

/// What a server proves who it is with. Both are PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate, and behind it those that lead to one that clients know.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
}

impl TlsFiles {
    /// # Errors
    /// [`ServerError::Tls`] for a file that can't be read or has not what it should have, and for a key of another certificate.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, ServerError> {
        let wrong = |path: &Path, reason: String| ServerError::Tls { path: path.to_owned(), reason };
        let certs =
            CertificateDer::pem_file_iter(&self.cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certs = certs.map_err(|error| wrong(&self.cert, say(&error, "certificate")))?;
        if certs.is_empty() {
            return Err(wrong(&self.cert, say(&pem::Error::NoItemsFound, "certificate")));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key);
        let key = key.map_err(|error| wrong(&self.key, say(&error, "private key")))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(certs, key));
        let mut config = config.map_err(|error| {
            wrong(&self.key, format!("not a key for the certificate in {}: {error}", self.cert.display()))
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn say(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("there is no {wanted} in PEM in it"),
        pem::Error::Io(error) => error.to_string(),
        error => format!("not a {wanted} in PEM: {error}"),
    }
}
