//! The agent's side of mutual TLS: its certificate, and the CA that a client's must come from.
//!
//! The three files are a Secret that the kubelet swaps while we run, so they are read again now
//! and then; a connection keeps what it began with. TLS 1.3 only. No session tickets: each
//! connection shows its certificate.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, version};

/// Files of the directory, as in a Secret of type `kubernetes.io/tls`.
const FILES: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

/// Failed to load the agent's identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is not there or cannot be read.
    #[error(
        "failed to read {path}: {source}; mount the Secret faultline-agent-tls there, which the \
         operator makes"
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no PEM, or has nothing of what is looked for.
    #[error("failed to parse {path}: {source}; it must be PEM as the operator writes it")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// The CA's certificates are of no use.
    #[error("failed to trust ca.crt: {0}")]
    Ca(#[from] VerifierBuilderError),
    /// The certificate and its key do not go together, or are of an unknown kind.
    #[error("failed to use tls.crt with tls.key: {0}")]
    Certificate(#[from] rustls::Error),
}

struct Loaded {
    files: Vec<Vec<u8>>,
    config: Arc<ServerConfig>,
}

/// What the agent shows and whom it trusts, as of the last [`Self::refresh`].
pub struct Identity {
    directory: PathBuf,
    loaded: RwLock<Option<Loaded>>,
}

impl Identity {
    /// Of this directory, nothing loaded yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            loaded: RwLock::new(None),
        }
    }

    /// Where it comes from.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the files; returns whether they have changed. When they cannot be used, what was
    /// loaded before stays.
    ///
    /// # Errors
    /// [`IdentityError`], which names the file.
    pub fn refresh(&self) -> Result<bool, IdentityError> {
        let mut files = Vec::with_capacity(FILES.len());
        for name in FILES {
            let path = self.directory.join(name);
            files.push(fs::read(&path).map_err(|source| IdentityError::Read { path, source })?);
        }
        let known = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|loaded| loaded.files == files) {
            return Ok(false);
        }
        drop(known);
        let config = Arc::new(self.config_of(&files)?);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Loaded { files, config });
        Ok(true)
    }

    /// For the next connection; `None` before the first successful [`Self::refresh`].
    pub fn config(&self) -> Option<Arc<ServerConfig>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.as_ref().map(|loaded| Arc::clone(&loaded.config))
    }

    fn config_of(&self, files: &[Vec<u8>]) -> Result<ServerConfig, IdentityError> {
        let at = |name: &str| {
            let path = self.directory.join(name);
            move |source| IdentityError::Pem { path, source }
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&files[0]) {
            roots.add(certificate.map_err(at(FILES[0]))?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&files[1])
            .collect::<Result<Vec<_>, _>>()
            .map_err(at(FILES[1]))?;
        let key = PrivateKeyDer::from_pem_slice(&files[2]).map_err(at(FILES[2]))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Refuses an empty set of roots. An agent's own certificate is for servers only (its
        // extended key usage says so) and is refused as a client's.
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}
