//! TLS for NBD: the certificates, and who has to use them.
//!
//! The files are those that QEMU and libnbd use: `server-cert.pem`, `server-key.pem`, and `ca-cert.pem` where clients have
//! to show a certificate that it has signed. They are read again for every client that begins TLS, so renewed ones count
//! from the next connection on. There are no pre-shared keys: docs/decisions/007.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

/// The server's certificate, and those between it and the authority that the clients know.
const CERTIFICATE: &str = "server-cert.pem";
/// The server's key.
const KEY: &str = "server-key.pem";
/// Who signs the clients' certificates; without it, clients need none.
const AUTHORITY: &str = "ca-cert.pem";
/// Which of the clients' certificates are no longer good, where there is one.
const REVOKED: &str = "ca-crl.pem";

/// TLS cannot be used as it is set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing, or is not what its name says.
    #[error("{} cannot be read as PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: pem::Error,
    },
    /// A file holds nothing of what it should.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Certificates and key do not fit, or are of a kind that is not supported.
    #[error("the certificates in {} cannot be used", directory.display())]
    Certificates {
        /// The directory.
        directory: PathBuf,
        /// Why it failed.
        #[source]
        source: rustls::Error,
    },
    /// The authority's certificate or its list of revoked ones cannot be used.
    #[error("clients cannot be checked by {} in {}", AUTHORITY, directory.display())]
    Authority {
        /// The directory.
        directory: PathBuf,
        /// Why it failed.
        #[source]
        source: VerifierBuilderError,
    },
}

/// How a server uses TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    directory: PathBuf,
    required: bool,
}

impl Tls {
    /// Uses the certificates of a directory; with `required`, clients get nothing without TLS.
    ///
    /// # Errors
    /// When they cannot be used now.
    pub fn new(directory: impl Into<PathBuf>, required: bool) -> Result<Tls, TlsError> {
        let tls = Tls { directory: directory.into(), required };
        tls.load()?;
        Ok(tls)
    }

    /// Whether clients get nothing without TLS.
    #[must_use]
    pub fn required(&self) -> bool {
        self.required
    }

    /// Reads the certificates as they are now.
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let failed = |source| TlsError::Certificates { directory: self.directory.clone(), source };
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
        let builder = if self.directory.join(AUTHORITY).exists() {
            let mut roots = RootCertStore::empty();
            for certificate in self.certificates(AUTHORITY)? {
                roots.add(certificate).map_err(failed)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.with_crls(self.revoked()?).build();
            let failed = |source| TlsError::Authority { directory: self.directory.clone(), source };
            builder.with_client_cert_verifier(verifier.map_err(failed)?)
        } else {
            builder.with_no_client_auth()
        };
        let path = self.directory.join(KEY);
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|source| TlsError::File { path, source })?;
        let mut config = builder.with_single_cert(self.certificates(CERTIFICATE)?, key).map_err(failed)?;
        // A connection lasts as long as its guest: there is nothing to resume.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let path = self.directory.join(name);
        let read = |path: &Path| CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
        match read(&path) {
            Err(source) => Err(TlsError::File { path, source }),
            Ok(certificates) if certificates.is_empty() => Err(TlsError::Empty { path }),
            Ok(certificates) => Ok(certificates),
        }
    }

    fn revoked(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let path = self.directory.join(REVOKED);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let read = |path: &Path| CertificateRevocationListDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
        read(&path).map_err(|source| TlsError::File { path, source })
    }
}
