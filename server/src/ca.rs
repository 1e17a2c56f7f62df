//! The decisions of `ca-core`, given what the store knows.

use assay_ca_core::tpm::template::ParentArea;
use assay_ca_core::{
    Admitted, AuthenticatedDevice, BoundKey, Confirmation, EkEvidence, Evidence, Fault, Issuer,
    MasterSecret, ParentEvidence, Prepared, Profile, ProvenDevice, Records, Rejection, Role,
    TicketKey, Token, TokenRefused, TrustAnchors, TrustedEk, Unconfirmed, VendorCertificate,
};
use assay_wire::{
    ActivationReply, CertificateReply, ChallengeReply, ConfirmedReply, DeviceId, EkId, Flow, Scope,
    SealedReply,
};
use time::OffsetDateTime;

use crate::random::random;
use assay_store::{
    AnchorRow, AnchorsVersion, Change, IdInQuestion, RevokedCertificates, SharedKeyHolder, Store,
    StoreError, ToConfirm, Transaction,
};

/// The CA's own keys and rules.
pub struct Ca {
    /// The provisioning domain it serves.
    pub scope: Scope,
    /// Seals tickets.
    pub ticket_key: TicketKey,
    /// Makes shared keys.
    pub master: MasterSecret,
    /// Signs certificates.
    pub issuer: Issuer,
    /// Says what a certificate looks like, and which flows lead to one.
    pub profile: Profile,
}

impl Ca {
    /// Certifies a proven device inside the store's transaction: what is decided here and what is
    /// recorded cannot come apart.
    ///
    /// A device that holds a certificate in force for the same IK gets that one again, so a
    /// repeated or resumed request issues nothing; unless an issuing CA signed it that was replaced
    /// since, for then the chain would lead nowhere.
    ///
    /// # Errors
    /// The device is no longer admitted, the store failed, or the signer did.
    pub fn certify(
        &self,
        transaction: &Transaction<'_>,
        device: ProvenDevice,
        now: OffsetDateTime,
    ) -> Result<(CertificateReply, Change), Refusal> {
        transaction.check_scope(&self.scope)?;
        let records =
            transaction.records(&device.ek_id(), IdInQuestion::Is(device.device_id()), now)?;
        let device = device.readmit(&records)?;
        let proven = device.device();
        let active = transaction.active_certificate(&proven.ek_id(), &proven.ik_id(), now)?;
        let (leaf, change) = match active.filter(|der| self.issuer.has_signed(der)) {
            Some(der) => (der, Change::None),
            None => {
                let prepared =
                    Prepared::new(device, &self.profile, &self.issuer, now, &mut random())?;
                (self.issue(transaction, prepared, now)?, Change::Made)
            }
        };
        Ok((CertificateReply { chain: self.issuer.chain(&leaf)? }, change))
    }

    /// Seals a certificate to an applicant's TPM: the one that it has for this IK, else a new one
    /// that counts for nothing until it is confirmed.
    ///
    /// # Errors
    /// The device is not admitted, the store failed, or the signer did.
    pub fn enroll(
        &self,
        transaction: &Transaction<'_>,
        applicant: Applicant<BoundKey>,
        now: OffsetDateTime,
    ) -> Result<(SealedReply, DeviceId), Refusal> {
        transaction.check_scope(&self.scope)?;
        let records = transaction.records(&applicant.ek_id(), applicant.id_in_question(), now)?;
        let Applicant { ek, key, requested, .. } = applicant;
        let admitted = Admitted::decide(ek, requested.as_ref(), &records)?;
        let candidate = admitted.candidate(&key, &self.scope, &records, now)?;
        let (ek, ik_id) = (candidate.ek_id(), candidate.ik_id());
        let waiting = transaction.waiting_certificates(&ek, &ik_id, &self.ticket_key)?.into_iter();
        let mut waiting = waiting.filter(|(_, der)| self.issuer.has_signed(der));
        let waiting =
            waiting.find(|(certificate, _)| candidate.may_have(certificate, &records, now));
        let confirm_by = now + self.profile.confirm_within();
        let active = transaction
            .active_certificate(&ek, &ik_id, now)?
            .filter(|der| self.issuer.has_signed(der));
        let (leaf, confirm_by) = if let Some(active) = active {
            (active, confirm_by)
        } else if let Some((certificate, der)) = waiting {
            (der, certificate.confirm_by)
        } else {
            candidate.check_quota(&records)?;
            let prepared =
                Prepared::unproven(&candidate, &self.profile, &self.issuer, now, &mut random())?;
            (self.issue(transaction, prepared, now)?, confirm_by)
        };
        let chain = self.issuer.chain(&leaf)?;
        let reply = candidate.seal(chain, confirm_by, &self.ticket_key, now, &mut random())?;
        Ok((reply, admitted.device_id().clone()))
    }

    /// Makes a sealed certificate active that its device could read, and says which device that is.
    /// Doing so again changes nothing.
    ///
    /// # Errors
    /// It may not become active, or the store failed.
    pub fn confirm(
        &self,
        transaction: &Transaction<'_>,
        confirmation: Confirmation,
        now: OffsetDateTime,
    ) -> Result<(ConfirmedReply, DeviceId, Change), Refusal> {
        let (device_id, change) = match transaction.certificate_to_confirm(&confirmation, now)? {
            ToConfirm::Unconfirmed(certificate) => {
                let device_id = certificate.device_id.clone();
                if !self.activate(transaction, certificate, now)? {
                    return Err(confirmation.outdated().into());
                }
                (device_id, Change::Made)
            }
            ToConfirm::Active(device_id) => (device_id, Change::None),
            ToConfirm::Ended => return Err(confirmation.outdated().into()),
        };
        Ok((ConfirmedReply { receipt: confirmation.into_receipt() }, device_id, change))
    }

    /// Offers an applicant its shared key, in the form that its TPM can load.
    ///
    /// # Errors
    /// The device is not admitted, its enrolment forbids it, or the store failed.
    pub fn register(
        &self,
        transaction: &Transaction<'_>,
        applicant: Applicant<ParentArea>,
        now: OffsetDateTime,
    ) -> Result<ActivationReply, Refusal> {
        transaction.check_scope(&self.scope)?;
        let records = transaction.records(&applicant.ek_id(), applicant.id_in_question(), now)?;
        let Applicant { ek, key: parent, requested, .. } = applicant;
        let (ek_id, assurance) = (ek.ek_id(), ek.assurance());
        let admitted = Admitted::decide(ek, requested.as_ref(), &records)?;
        let parent = admitted.parent(parent, &records)?;
        let generation = admitted.generation(&parent, &records)?;
        let reply =
            admitted.activation(&parent, &self.scope, &self.master, generation, &mut random())?;
        transaction.offer_shared_key(
            &ek_id,
            admitted.device_id(),
            assurance,
            generation,
            parent.kind(),
        )?;
        Ok(reply)
    }

    /// Lets a device in that shows a token; the first use of a key counts once it is
    /// [recorded](Self::record_first_use).
    ///
    /// # Errors
    /// The token is not good, its device is not admitted, or the store failed.
    pub fn login(
        &self,
        store: &Store,
        user_name: &str,
        password: &[u8],
        now: OffsetDateTime,
    ) -> Result<(AuthenticatedDevice, Option<FirstUse>), LoginRefused> {
        let token = Token::parse(user_name, password)?;
        let mut refusal = LoginRefused::NoKey { device_id: token.device_id().clone() };
        for holder in store.shared_key_holders(token.device_id())? {
            let records = store.records(&holder.ek_id, IdInQuestion::Is(token.device_id()), now)?;
            match self.check_login(&token, &holder, &records, now) {
                Ok(device) => {
                    let used =
                        records.shared_key.filter(|key| key.is_used).map(|key| key.generation);
                    let is_first =
                        used != Some(device.generation()) || records.registration.is_none();
                    return Ok((device, is_first.then_some(FirstUse { token, holder })));
                }
                Err(refused) => refusal = refused,
            }
        }
        Err(refusal)
    }

    /// Registers a device with its key and retires older keys, if what is on record in the
    /// transaction still lets it in.
    ///
    /// # Errors
    /// It no longer does, or the store failed.
    pub fn record_first_use(
        &self,
        store: &mut Store,
        FirstUse { token, holder }: &FirstUse,
        now: OffsetDateTime,
    ) -> Result<(), LoginRefused> {
        let refused = store.transaction(|transaction| {
            let records =
                transaction.records(&holder.ek_id, IdInQuestion::Is(token.device_id()), now)?;
            match self.check_login(token, holder, &records, now) {
                Ok(device) => {
                    transaction.accept_shared_key(
                        holder,
                        token.device_id(),
                        device.generation(),
                        now,
                    )?;
                    Ok(None)
                }
                Err(refused) => Ok(Some(refused)),
            }
        })?;
        refused.map_or(Ok(()), Err)
    }

    fn check_login(
        &self,
        token: &Token,
        holder: &SharedKeyHolder,
        records: &Records,
        now: OffsetDateTime,
    ) -> Result<AuthenticatedDevice, LoginRefused> {
        records.admit(&holder.ek_id, token.device_id(), holder.assurance)?;
        let generations = records.accepted_generations();
        Ok(AuthenticatedDevice::verify(
            token.clone(),
            &self.scope,
            &self.master,
            holder.ek_id,
            &generations,
            now,
        )?)
    }

    fn issue(
        &self,
        transaction: &Transaction<'_>,
        prepared: Prepared,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, Refusal> {
        let issued = self.issuer.sign(prepared)?;
        transaction.add_certificate(&issued, &self.ticket_key, now)?;
        Ok(issued.der.to_vec())
    }

    /// Signs a list of what is no longer good, with a number of its own.
    ///
    /// If it has more than `longest` bytes, certificates that never came into force are left out:
    /// strangers can fill a list with them, and nobody but their TPMs can show them.
    ///
    /// # Errors
    /// The store failed, or the signer did.
    pub fn revocation_list(
        &self,
        store: &mut Store,
        longest: usize,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, Refusal> {
        let (RevokedCertificates { once_in_force, never_in_force }, number) =
            store.revocation_list(now)?;
        let all = once_in_force.iter().chain(&never_in_force).cloned();
        let list = self.issuer.revocation_list(all, number, now)?;
        if list.len() <= longest {
            return Ok(list);
        }
        Ok(self.issuer.revocation_list(once_in_force, number, now)?)
    }

    fn activate(
        &self,
        transaction: &Transaction<'_>,
        certificate: Unconfirmed,
        now: OffsetDateTime,
    ) -> Result<bool, Refusal> {
        let records = transaction.records(
            &certificate.ek_id,
            IdInQuestion::Is(&certificate.device_id),
            now,
        )?;
        let confirmed = certificate.confirm(&records, now)?;
        Ok(transaction.activate(&confirmed, &self.ticket_key, now)?)
    }
}

/// A good token of a key that was not used before.
pub struct FirstUse {
    token: Token,
    holder: SharedKeyHolder,
}

/// A trusted EK with the key it is to be joined to, both checked, and the device id that was asked
/// for.
pub struct Applicant<K> {
    /// The EK.
    pub ek: TrustedEk,
    /// An IK, or the parent of a shared key.
    pub key: K,
    /// As it was sent.
    pub requested: Option<DeviceId>,
    /// Other EKs that are in the same TPM, as the device says.
    pub other_eks: Vec<EkId>,
}

impl<K> Applicant<K> {
    fn new(ek: TrustedEk, key: K, evidence: &EkEvidence) -> Self {
        let requested = evidence.requested_device_id().cloned();
        Self { ek, key, requested, other_eks: evidence.other_eks().to_vec() }
    }

    fn id_in_question(&self) -> IdInQuestion<'_> {
        IdInQuestion::Due { derived: self.ek.derived_device_id(), other_eks: &self.other_eks }
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.ek.ek_id()
    }
}

/// Checks evidence against the store's newest state. Each thread has its own.
pub struct Examiner {
    store: Store,
    anchors: TrustAnchors,
    anchors_version: AnchorsVersion,
}

impl Examiner {
    /// Reads the vendors' certificates.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn new(store: Store) -> Result<Self, StoreError> {
        let anchors_version = store.anchors_version()?;
        let anchors = read_anchors(&store)?;
        Ok(Self { store, anchors, anchors_version })
    }

    /// Answers a device's evidence with a challenge, once every check that needs no answer has
    /// passed.
    ///
    /// # Errors
    /// A check failed, or the store did.
    pub fn challenge(
        &mut self,
        ca: &Ca,
        evidence: Evidence,
        now: OffsetDateTime,
    ) -> Result<(ChallengeReply, DeviceId), Refusal> {
        ca.profile.check_flow(Flow::Ticket)?;
        let applicant = self.applicant(&evidence, now)?;
        let records = self.store.records(&applicant.ek_id(), applicant.id_in_question(), now)?;
        let Applicant { ek, key, requested, .. } = applicant;
        let admitted = Admitted::decide(ek, requested.as_ref(), &records)?;
        let device_id = admitted.device_id().clone();
        let reply = admitted.challenge(&key, &ca.scope, &ca.ticket_key, now, &mut random())?;
        Ok((reply, device_id))
    }

    /// Checks evidence as far as that needs no transaction; [`Ca::enroll`] goes on.
    ///
    /// # Errors
    /// A check failed, or the store did.
    pub fn applicant(
        &mut self,
        evidence: &Evidence,
        now: OffsetDateTime,
    ) -> Result<Applicant<BoundKey>, Refusal> {
        let ek = self.trust(&evidence.ek, now)?;
        let key = BoundKey::verify(evidence)?;
        Ok(Applicant::new(ek, key, &evidence.ek))
    }

    /// The same for the parent of a shared key; [`Ca::register`] goes on.
    ///
    /// # Errors
    /// A check failed, or the store did.
    pub fn parent_applicant(
        &mut self,
        evidence: &ParentEvidence,
        now: OffsetDateTime,
    ) -> Result<Applicant<ParentArea>, Refusal> {
        let ek = self.trust(&evidence.ek, now)?;
        let key = evidence.parent()?;
        Ok(Applicant::new(ek, key, &evidence.ek))
    }

    fn trust(&mut self, evidence: &EkEvidence, now: OffsetDateTime) -> Result<TrustedEk, Refusal> {
        self.refresh_anchors()?;
        let enrolment = self.store.granted(&evidence.ek_id())?;
        Ok(TrustedEk::verify(evidence, &self.anchors, enrolment.as_ref(), now)?)
    }

    fn refresh_anchors(&mut self) -> Result<(), StoreError> {
        let version = self.store.anchors_version()?;
        if version != self.anchors_version {
            self.anchors = read_anchors(&self.store)?;
            self.anchors_version = version;
        }
        Ok(())
    }
}

/// Reads the vendors' certificates.
///
/// # Errors
/// The store cannot be read.
pub fn read_anchors(store: &Store) -> Result<TrustAnchors, StoreError> {
    let certificates = store.anchors()?;
    Ok(TrustAnchors::new(certificates.iter().map(read_anchor).collect::<Result<Vec<_>, _>>()?))
}

/// Reads one vendor's certificate.
///
/// # Errors
/// It was fit to be trusted when it was stored, and is no longer.
pub fn read_anchor(row: &AnchorRow) -> Result<VendorCertificate, StoreError> {
    Ok(match row.role {
        Role::Anchor(allowances) => VendorCertificate::read_anchor(&row.certificate, allowances)?,
        Role::Root | Role::Issuer => VendorCertificate::read(&row.certificate)?,
    })
}

/// Why a request gets no other answer than a problem.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The device's fault; it is told.
    #[error(transparent)]
    Rejection(#[from] Rejection),
    /// Ours; the device learns no more than that.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Ours; the device learns no more than that.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token lets nobody in. The device learns no more than that; the text is for the log.
#[derive(Debug, thiserror::Error)]
pub enum LoginRefused {
    /// It is not good.
    #[error(transparent)]
    Token(#[from] TokenRefused),
    /// Its device is not admitted.
    #[error(transparent)]
    Rejection(#[from] Rejection),
    /// Nothing was ever offered under this name.
    #[error("no shared key was offered to {device_id}")]
    NoKey {
        /// As the token says.
        device_id: DeviceId,
    },
    /// Ours.
    #[error(transparent)]
    Store(#[from] StoreError),
}
