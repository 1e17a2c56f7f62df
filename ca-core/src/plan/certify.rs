//! The ticket flow's last step: the certificate of a device that proved itself.

use assay_wire::CertificateReply;
use rand_core::CryptoRng;
use time::OffsetDateTime;

use crate::flows::ticket::{ProvenDevice, Readmitted};
use crate::issue::{Issued, Issuers, Prepared, Proven, Term};
use crate::profile::Profile;
use crate::records::{ActiveCertificate, Records};
use crate::{Failure, Fault};

/// What a proven device gets.
#[derive(Debug)]
pub enum Certification {
    /// The certificate in force that it has for this IK.
    OnRecord(CertificateReply),
    /// A new certificate.
    New(Box<Prepared<Proven>>),
}

impl Certification {
    /// A device with a certificate in force for the same IK gets that one again, so a repeated or
    /// resumed request issues nothing. If the issuing CA that signed it is not known any more, its
    /// chain would lead nowhere, and the device gets a new one.
    ///
    /// `active` is the EK's certificate in force, if it is for the device's IK and not expired.
    pub fn plan(
        device: ProvenDevice,
        records: &Records,
        active: Option<&ActiveCertificate>,
        profile: &Profile,
        issuers: &Issuers,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        let device = Readmitted::decide(device, records)?;
        let kept = active
            .filter(|active| device.keeps_its_key() && active.ik_id == device.subject().ik_id());
        match kept.and_then(|active| Some((active, issuers.of(&active.der)?))) {
            Some((active, issuer)) => {
                let chain = issuer.chain(&active.der)?;
                let renew_at = Term::of(&active.der).map(|term| term.renew_at(profile));
                let reply =
                    CertificateReply { chain, renew_at, configuration: None, new_root: None };
                Ok(Self::OnRecord(reply))
            }
            None => {
                let issuer = issuers.current(now);
                let prepared = Prepared::<Proven>::new(device, profile, issuer, now, rng)?;
                Ok(Self::New(Box::new(prepared)))
            }
        }
    }

    /// Whether a key that is elsewhere has to sign, so that [`sign`](Self::sign) may take long.
    pub fn signs_elsewhere(&self) -> bool {
        matches!(self, Self::New(prepared) if prepared.signs_elsewhere())
    }

    /// Signs a new certificate and makes the reply. Record the certificate before you send the
    /// reply.
    pub fn sign(self) -> Result<(CertificateReply, Option<Issued<Proven>>), Fault> {
        match self {
            Self::OnRecord(reply) => Ok((reply, None)),
            Self::New(prepared) => {
                let issued = Issued::<Proven>::sign(*prepared)?;
                Ok((issued.reply(), Some(issued)))
            }
        }
    }
}
