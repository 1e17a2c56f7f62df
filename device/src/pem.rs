//! Certificates in files: PEM (RFC 7468), or one in DER.

use std::fs;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::Error;

/// Reads certificates from a file, PEM or DER.
///
/// # Errors
/// [`Error::Usage`] if the file cannot be read or holds no certificate.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let contents = fs::read(path).map_err(|error| error.to_string());
    contents
        .and_then(|contents| parse(&contents))
        .map_err(|reason| Error::Usage(format!("{}: {reason}", path.display())))
}

pub(crate) fn parse(contents: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if crate::der::split_sequence(contents).is_some_and(|(_, rest)| rest.is_empty()) {
        return Ok(vec![contents.to_vec().into()]);
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(contents).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("no certificate in PEM or DER".into()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("bad PEM: {error}")),
    }
}

pub(crate) fn certificates(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| block("CERTIFICATE", certificate)).collect()
}

/// One piece of DER under a label.
pub(crate) fn block(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let base64 = data_encoding::BASE64.encode(der);
    for line in base64.as_bytes().chunks(64) {
        // Unwrap safety: base64 is ASCII.
        text += str::from_utf8(line).unwrap();
        text += "\n";
    }
    text + &format!("-----END {label}-----\n")
}
