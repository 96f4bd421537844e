//! By which authorities servers are trusted where requests are seen.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// How many characters a line of PEM has (RFC 7468, section 2).
const PEM_LINE: usize = 64;

/// A file of authorities that is none.
#[derive(Debug, thiserror::Error)]
pub enum BadTrust {
    /// It cannot be read.
    #[error("{path}: {problem}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It has no certificate.
    #[error("{path}: it has no certificate; it should be a file of PEM", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl From<BadTrust> for io::Error {
    fn from(bad: BadTrust) -> Self {
        Self::other(bad)
    }
}

/// The authorities by which servers are trusted.
#[derive(Debug, Clone)]
pub struct Trust {
    /// All of them.
    pub roots: Arc<RootCertStore>,
    /// Those of the host, as a file of PEM.
    pub host: String,
}

impl Trust {
    /// The host's, and those of a file.
    pub fn of_host(also: Option<&Path>) -> Result<Self, BadTrust> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "an authority of the host is not trusted");
        }
        let host = found.certs.iter().map(pem).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if let Some(path) = also {
            for certificate in authorities(path)? {
                roots.add(certificate).map_err(|error| unfit(path, error))?;
            }
        }
        Ok(Self { roots: Arc::new(roots), host })
    }
}

/// The certificates of a file, of which there has to be one at least.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTrust> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unfit(path, error))?;
    if certificates.is_empty() { Err(BadTrust::Empty { path: path.to_owned() }) } else { Ok(certificates) }
}

fn unfit(path: &Path, error: impl std::fmt::Display) -> BadTrust {
    BadTrust::File { path: path.to_owned(), problem: error.to_string() }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines = (0..text.len()).step_by(PEM_LINE).map(|at| &text[at..text.len().min(at + PEM_LINE)]);
    let body = lines.fold(String::new(), |body, line| body + line + "\n");
    format!("-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.pem");
        assert!(matches!(authorities(&path), Err(BadTrust::File { .. })));
        std::fs::write(&path, "nothing of the kind").unwrap();
        assert!(matches!(authorities(&path), Err(BadTrust::Empty { .. })));
        std::fs::write(&path, pem(&CertificateDer::from(vec![7; 100]))).unwrap();
        assert_eq!(authorities(&path).unwrap(), [CertificateDer::from(vec![7; 100])]);
        assert!(matches!(Trust::of_host(Some(&path)), Err(BadTrust::File { .. })), "it is none that can be read");
    }
}
