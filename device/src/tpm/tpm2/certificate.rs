//! What the manufacturer left in NV memory: EK certificates and their issuers, and the values that
//! EKs are made from.

use assay_device_core::RSA_2048_CERTIFICATE;
use tpm2_protocol::data::TpmRcBase;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::commands::Connection;
use super::fault::Fault;
use super::parts::{CommandError, NvIndex, Reader};
use crate::der;

/// The owner's authorisation, for NV indices that only the owner may read.
pub(super) trait Owner {
    /// Whether the owner's authorisation can be used now.
    fn may_authorise(&self) -> bool;

    /// The session that carries the owner's password; `None` if there is no password.
    fn session(&mut self, tpm: &mut Connection<'_>) -> Result<Option<u32>, Fault>;
}

/// The indices in use, of those that TCG reserves for EKs.
pub(super) fn indices(tpm: &mut Connection<'_>) -> Result<Vec<u32>, CommandError> {
    let mut indices = tpm.handles(FIRST)?;
    indices.retain(|&index| index <= ISSUERS_LAST);
    Ok(indices)
}

/// The EK certificate at the index `leaf`, which is in use, and the issuers found at other indices.
pub(super) fn with_issuers(
    tpm: &mut Connection<'_>,
    owner: &mut dyn Owner,
    leaf: u32,
    indices: &[u32],
) -> Result<Vec<Vec<u8>>, Fault> {
    let Some(contents) = read(tpm, owner, leaf)? else { return Ok(Vec::new()) };
    let (mut certificates, _) = split(&contents);
    certificates.truncate(1);
    if certificates.is_empty() {
        return Ok(certificates);
    }
    let mut issuers = Issuers::default();
    for &index in indices.iter().filter(|&&index| index >= ISSUERS_FIRST) {
        match read(tpm, owner, index) {
            Ok(contents) => issuers.add(index, &contents.unwrap_or_default()),
            // It is left out, because the CA may know the issuer.
            Err(Fault::Unreadable { .. }) => {}
            Err(fault) => return Err(fault),
        }
    }
    certificates.extend(issuers.certificates);
    Ok(certificates)
}

/// The SubjectPublicKeyInfo in the certificate for the EK of template L-1.
pub(super) fn rsa_2048_key(
    tpm: &mut Connection<'_>,
    owner: &mut dyn Owner,
) -> Result<Option<Vec<u8>>, Fault> {
    let contents = match read(tpm, owner, RSA_2048_CERTIFICATE) {
        Err(Fault::Unreadable { .. }) => None,
        contents => contents?,
    };
    let certificate =
        contents.as_deref().and_then(|contents| X509Certificate::from_der(contents).ok());
    Ok(certificate.map(|(_, certificate)| certificate.public_key().raw.to_vec()))
}

/// The contents of an index; `None` if there is no such index. Reads it with its own, empty
/// password, or with the owner's, as the index allows. Does not use the owner's password while the
/// key for the salt of its session is still being chosen.
pub(super) fn read(
    tpm: &mut Connection<'_>,
    owner: &mut dyn Owner,
    index: u32,
) -> Result<Option<Vec<u8>>, Fault> {
    let Some(nv) = tpm.nv_index(index)? else { return Ok(None) };
    if nv.takes_own_password {
        match read_by(tpm, index, &nv, Reader::Index) {
            Err(error) if is_forbidden(&error) => {}
            outcome => return Ok(Some(outcome?)),
        }
    }
    if nv.takes_owner_password && owner.may_authorise() {
        let session = owner.session(tpm)?;
        match read_by(tpm, index, &nv, Reader::Owner { session }) {
            Err(error) if is_forbidden(&error) => {}
            outcome => return Ok(Some(outcome?)),
        }
    }
    Err(Fault::Unreadable { index })
}

fn read_by(
    tpm: &mut Connection<'_>,
    index: u32,
    nv: &NvIndex,
    reader: Reader,
) -> Result<Vec<u8>, CommandError> {
    let mut contents = Vec::with_capacity(nv.size.into());
    let mut offset = 0;
    while offset < nv.size {
        let part = tpm.nv_read(index, nv, reader, offset, READ_MAX.min(nv.size - offset))?;
        contents.extend_from_slice(&part);
        // The cast loses nothing, because a part is no longer than what was asked for.
        offset += part.len() as u16;
    }
    Ok(contents)
}

fn is_forbidden(error: &CommandError) -> bool {
    use TpmRcBase::{AuthFail, AuthUnavailable, BadAuth, NvAuthorization, NvLocked};
    matches!(error.code(), Some(AuthFail | AuthUnavailable | BadAuth | NvAuthorization | NvLocked))
}

/// Collects certificates of issuers from one index after the other. A certificate that does not fit
/// into an index continues in the next one (TCG EK Credential Profile 2.5, 2.2.1.5).
#[derive(Default)]
struct Issuers {
    certificates: Vec<Vec<u8>>,
    /// The beginning of a certificate, and the index where it continues.
    cut_off: Option<(u32, Vec<u8>)>,
}

impl Issuers {
    fn add(&mut self, index: u32, contents: &[u8]) {
        let begun = self
            .cut_off
            .take()
            .filter(|(next, _)| *next == index)
            .map(|(_, begun)| begun)
            .unwrap_or_default();
        let contents = [&begun, contents].concat();
        let (found, rest) = split(&contents);
        self.certificates.extend(found);
        // If the rest is longer than any certificate that a request can hold, it is padding that
        // looks like a certificate.
        let is_cut_off = der::is_cut_off_sequence(rest) && rest.len() < MAX_CERTIFICATE;
        self.cut_off = is_cut_off.then(|| (index + 1, rest.to_vec()));
    }
}

/// The certificates that follow each other, and the rest: padding of the NV area, or the beginning
/// of a certificate.
fn split(mut contents: &[u8]) -> (Vec<Vec<u8>>, &[u8]) {
    let mut certificates = Vec::new();
    while let Some((certificate, rest)) = der::split_sequence(contents) {
        certificates.push(certificate.to_vec());
        contents = rest;
    }
    (certificates, contents)
}

/// EK certificates, and the values that EKs of the low range are made from (TCG EK Credential
/// Profile 2.5, 2.2.1.4).
const FIRST: u32 = 0x01C0_0000;
/// Certificates of the EK's issuers (TCG EK Credential Profile 2.5, 2.2.1.5).
const ISSUERS_FIRST: u32 = 0x01C0_0100;
const ISSUERS_LAST: u32 = 0x01C0_01FF;
/// The limit of the protocol (`assay_wire::MAX_CERTIFICATE`).
const MAX_CERTIFICATE: usize = assay_wire::MAX_CERTIFICATE;
/// Every TPM reads this much at once (PC Client Platform TPM Profile: TPM_PT_NV_BUFFER_MAX of at
/// least 512). To ask the TPM for its limit costs one command, as many as a larger buffer would
/// save.
const READ_MAX: u16 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(length: u8) -> Vec<u8> {
        [&[0x30, 0x81, length][..], &vec![7; length.into()]].concat()
    }

    #[test]
    fn certificate_goes_on_in_the_next_index_wherever_it_was_cut() {
        let all = [certificate(0x80), certificate(0xF0), certificate(0x90)].concat();
        for cut in 1..all.len() {
            let mut issuers = Issuers::default();
            issuers.add(ISSUERS_FIRST, &all[..cut]);
            issuers.add(ISSUERS_FIRST + 1, &[&all[cut..], &[0xFF; 20]].concat());
            assert_eq!(
                issuers.certificates,
                [certificate(0x80), certificate(0xF0), certificate(0x90)],
                "{cut}"
            );
        }
    }

    #[test]
    fn certificate_does_not_go_on_behind_a_gap_and_padding_is_none() {
        let mut issuers = Issuers::default();
        issuers.add(ISSUERS_FIRST, &certificate(0x80)[..50]);
        issuers.add(ISSUERS_FIRST + 2, &[&certificate(0x90)[..], &[0; 30]].concat());
        issuers.add(ISSUERS_FIRST + 3, &certificate(0xA0));
        assert_eq!(issuers.certificates, [certificate(0x90), certificate(0xA0)]);
    }
}
