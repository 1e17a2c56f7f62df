//! What the manufacturer left in NV memory: EK certificates and their issuers.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::command::CommandError;
use super::connection::Connection;
use crate::der;
use crate::tpm::RSA_2048_CERTIFICATE;

/// The EK certificate at an index and the issuers found elsewhere; empty if it is not there.
pub(super) fn with_issuers(tpm: &mut Connection<'_>, leaf: u32) -> Result<Vec<Vec<u8>>, CommandError> {
    let Some(contents) = read(tpm, leaf)? else { return Ok(Vec::new()) };
    let mut certificates: Vec<_> = split(&contents).take(1).collect();
    if certificates.is_empty() {
        return Ok(certificates);
    }
    for index in tpm.handles(ISSUERS_FIRST)?.into_iter().take_while(|&index| index <= ISSUERS_LAST) {
        if let Some(contents) = read(tpm, index)? {
            certificates.extend(split(&contents));
        }
    }
    Ok(certificates)
}

/// The SubjectPublicKeyInfo in the certificate for the EK of template L-1.
pub(super) fn rsa_2048_key(tpm: &mut Connection<'_>) -> Result<Option<Vec<u8>>, CommandError> {
    let contents = read(tpm, RSA_2048_CERTIFICATE)?;
    let certificate = contents.as_deref().and_then(|contents| X509Certificate::from_der(contents).ok());
    Ok(certificate.map(|(_, certificate)| certificate.public_key().raw.to_vec()))
}

fn read(tpm: &mut Connection<'_>, index: u32) -> Result<Option<Vec<u8>>, CommandError> {
    let Some(size) = tpm.nv_size(index)? else { return Ok(None) };
    let mut contents = Vec::with_capacity(size.into());
    let mut offset = 0;
    while offset < size {
        let part = tpm.nv_read(index, offset, READ_MAX.min(size - offset))?;
        contents.extend_from_slice(&part);
        // It fits: a part is no longer than what was asked for.
        offset += part.len() as u16;
    }
    Ok(Some(contents))
}

/// The certificates that stand one behind the other; what follows them is padding of the NV area.
fn split(mut contents: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let (certificate, rest) = der::split_sequence(contents)?;
        contents = rest;
        Some(certificate.to_vec())
    })
}

/// Certificates of the EK's issuers (TCG EK Credential Profile 2.5, 2.2.1.5).
const ISSUERS_FIRST: u32 = 0x01C0_0100;
const ISSUERS_LAST: u32 = 0x01C0_01FF;
/// What every TPM reads at once (PC Client Platform TPM Profile: TPM_PT_NV_BUFFER_MAX of at least 512). Asking for more costs the
/// command that a larger buffer would save.
const READ_MAX: u16 = 512;
