//! Which EK to show, and the certificates that vouch for it.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use assay_wire::{Bytes, CertificateList, EkId, EkIds, EkPublic, Limit};

use crate::desk::Desk;
use crate::failure::Failure;
use crate::kinds::EkKind;
use crate::machine::Machine;
use crate::memory::Shown;
use crate::step::CertificateSource;
use crate::tpm::{
    EkCertificates, EndorsementKey, TpmAnswer, TpmFailure, TpmFailureKind, TpmOperation,
};

/// An EK, as a device shows it to a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownEk {
    /// Its kind.
    pub kind: EkKind,
    /// Its public part.
    pub key: EndorsementKey,
    /// Its certificate and issuers; empty if there is none.
    pub certificates: EkCertificates,
    /// Where the certificate comes from.
    pub source: CertificateSource,
    /// Other EKs of the TPM. The CA may know the device by one of them.
    pub others: Vec<EkId>,
}

/// A machine that only looks for the EK that a device shows: the EK of this kind, or of the first
/// kind with a certificate.
pub fn find_ek(kind: Option<EkKind>, now: Duration) -> Machine<ShownEk> {
    Machine::start(now, |desk| async move { ShownEk::find(&desk, kind, None).await })
}

impl ShownEk {
    /// Takes the kind that is wanted; else the kind that the certificate in the request is for;
    /// else the first kind with a certificate in NV memory; else P-256 or RSA-2048, without a
    /// certificate.
    pub(crate) async fn find(
        desk: &Desk,
        wanted: Option<EkKind>,
        given: Option<&EkCertificates>,
    ) -> Result<Self, Failure> {
        if let Some(given) = given {
            if wanted == Some(EkKind::LegacyDps) {
                return Err(Failure::CertificateForLegacyEk);
            }
            let kind = wanted.or(given.kind).ok_or(Failure::UnknownKindOfEk)?;
            let key = load(desk, kind).await?;
            let key = key.ok_or_else(|| Failure::Unsupported(kind.to_string()))?;
            return Ok(Self::new(kind, key, given.clone(), CertificateSource::Request));
        }
        let mut without = CertificateSource::None;
        for &kind in wanted.as_ref().map_or(&EkKind::CERTIFIED[..], core::slice::from_ref) {
            let certificates = match certificates(desk, kind).await {
                Ok(certificates) if certificates.chain.is_empty() => continue,
                // An EK that the operator enrolled needs no certificate.
                Err(TpmFailure { kind: TpmFailureKind::Unreadable, .. }) => {
                    without = CertificateSource::Unreadable;
                    continue;
                }
                certificates => certificates?,
            };
            if let Some(key) = load(desk, kind).await? {
                return Ok(Self::new(kind, key, certificates, CertificateSource::NvMemory));
            }
        }
        let kinds =
            wanted.as_ref().map_or(&[EkKind::P256, EkKind::Rsa2048][..], core::slice::from_ref);
        for &kind in kinds {
            if let Some(key) = load(desk, kind).await? {
                return Ok(Self::new(kind, key, EkCertificates::default(), without));
            }
        }
        let kinds: Vec<_> = kinds.iter().map(EkKind::to_string).collect();
        Err(Failure::Unsupported(kinds.join(" or ")))
    }

    fn new(
        kind: EkKind,
        key: EndorsementKey,
        certificates: EkCertificates,
        source: CertificateSource,
    ) -> Self {
        Self { kind, key, certificates, source, others: Vec::new() }
    }

    /// Looks for the other EKs of the TPM, if the CA could accept this EK because of its
    /// certificate alone.
    ///
    /// It leaves out an RSA-3072 EK without a certificate: such an EK is rarely enrolled, and some
    /// chips need minutes to make it.
    pub(crate) async fn find_others(&mut self, desk: &Desk) {
        if self.certificates.chain.is_empty() {
            return;
        }
        for kind in EkKind::CERTIFIED.into_iter().filter(|kind| *kind != self.kind) {
            // The device does not use this EK, so a fault of it must not stop the run.
            let certified = certificates(desk, kind).await.ok().and_then(|found| found.key_id);
            let id = match certified {
                Some(id) => Some(id),
                None if kind != EkKind::Rsa3072 => {
                    load(desk, kind).await.ok().flatten().map(|key| key.id)
                }
                None => None,
            };
            self.others.extend(id);
        }
    }

    /// The [others](Self::find_others) as a request has them.
    pub(crate) fn other_ids(&self) -> Result<Option<EkIds>, Limit> {
        if self.others.is_empty() { Ok(None) } else { self.others.clone().try_into().map(Some) }
    }

    /// The public area as a request has it. If the certificate has the same key, and everything
    /// else is as in TCG's default template, this is only the NV index of the certificate.
    pub(crate) fn public_area(&self) -> Result<EkPublic, Limit> {
        let is_told = self.certificates.key_id == Some(self.key.id);
        match self.kind.certificate_index() {
            Some(index) if is_told && self.key.is_of_default_template => {
                Ok(EkPublic::OfCertificate(index))
            }
            _ => self.key.public.clone().try_into(),
        }
    }

    /// The certificates as a request has them.
    pub(crate) fn certificate_list(&self) -> Result<CertificateList<0>, Limit> {
        list(&self.certificates.chain)
    }
}

/// Whether the TPM has a certificate for an EK of this kind.
pub(crate) async fn has_certificate(desk: &Desk, kind: EkKind) -> Result<bool, TpmFailure> {
    Ok(!certificates(desk, kind).await?.chain.is_empty())
}

/// What a device shows of an EK that the CA knows already, without the TPM using that EK: its
/// certificate says all. An EK without a certificate has to be made. `None` if the TPM has another
/// EK of this kind.
pub(crate) async fn evidence(
    desk: &Desk,
    shown: &Shown,
    given: Option<&EkCertificates>,
) -> Result<Option<(EkPublic, CertificateList<0>)>, Failure> {
    let is_of_the_ek = |it: &EkCertificates| it.key_id == Some(shown.ek_id);
    let found = match given.filter(|given| is_of_the_ek(given)) {
        Some(given) => Some(given.clone()),
        None => match certificates(desk, shown.ek).await {
            Err(TpmFailure { kind: TpmFailureKind::Unreadable, .. }) => None,
            found => Some(found?).filter(is_of_the_ek),
        },
    };
    let (Some(found), Some(index)) = (found, shown.ek.certificate_index()) else {
        let key = load(desk, shown.ek).await?.filter(|key| key.id == shown.ek_id);
        let Some(key) = key else { return Ok(None) };
        return Ok(Some((key.public.try_into()?, Vec::new().try_into()?)));
    };
    Ok(Some((EkPublic::OfCertificate(index), list(&found.chain)?)))
}

fn list(chain: &[Vec<u8>]) -> Result<CertificateList<0>, Limit> {
    let certificates: Result<Vec<_>, _> = chain.iter().cloned().map(Bytes::try_from).collect();
    certificates.and_then(CertificateList::try_from)
}

async fn certificates(desk: &Desk, kind: EkKind) -> Result<EkCertificates, TpmFailure> {
    desk.tpm(TpmOperation::EkCertificates(kind), |answer| match answer {
        TpmAnswer::EkCertificates(certificates) => Some(certificates),
        _ => None,
    })
    .await
}

async fn load(desk: &Desk, kind: EkKind) -> Result<Option<EndorsementKey>, TpmFailure> {
    desk.tpm(TpmOperation::EndorsementKey(kind), |answer| match answer {
        TpmAnswer::EndorsementKey(key) => Some(key),
        _ => None,
    })
    .await
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn shown(kind: EkKind, key_id: Option<EkId>, is_of_default_template: bool) -> EkPublic {
        let key = EndorsementKey { public: vec![7], id: [1; 32].into(), is_of_default_template };
        let certificates = EkCertificates { chain: vec![vec![0x30, 0]], key_id, kind: None };
        ShownEk::new(kind, key, certificates, CertificateSource::NvMemory).public_area().unwrap()
    }

    #[test]
    fn ek_is_shown_in_brief_only_beside_its_own_certificate_and_of_the_default_template() {
        let (own, other) = (Some([1; 32].into()), Some([2; 32].into()));
        let in_full = EkPublic::try_from(vec![7]).unwrap();
        assert_eq!(shown(EkKind::P256, own, true), EkPublic::OfCertificate(0x01C0_000A));
        assert_eq!(shown(EkKind::P256, own, false), in_full);
        assert_eq!(shown(EkKind::P256, other, true), in_full);
        assert_eq!(shown(EkKind::P256, None, true), in_full);
        assert_eq!(shown(EkKind::LegacyDps, own, true), in_full, "nobody certifies such an EK");
    }
}
