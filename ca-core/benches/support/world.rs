//! One device's requests, and everything that a CA does with them but for the store.

use assay_ca_core::tpm::credential::Credential;
use assay_ca_core::tpm::template::ParentArea;
use assay_ca_core::{
    Admitted, AuthenticatedDevice, BoundKey, Candidate, Confirmation, EkEvidence, Evidence,
    FIRST_GENERATION, IssuedCertificate, MasterSecret, ParentEvidence, Prepared, Profile,
    ProvenDevice, Readmitted, Records, SharedKeyOnRecord, Token, TrustedEk, Unconfirmed,
};
use assay_wire::{
    ActivationReply, Bundle, CertificateReply, ChallengeReply, ConfirmedReply, DeviceId, EkId,
    EkPublic, Flow, ParentBundle, Proof, Reply, ReplyBody, Request, RequestBody, RequestId,
    SealedCertificate, SealedReply,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};
use time::Duration;

use super::fixture::*;
use super::{Case, Kind, Path};

/// A device of a case, the CA, and the messages that pass between them.
pub(crate) struct World {
    pub(crate) case: Case,
    pub(crate) vendor: Vendor,
    pub(crate) device: Device,
    pub(crate) parent: SoftwareParent,
    pub(crate) ca: Ca,
    pub(crate) issuing_key: KeyPair,
    master: MasterSecret,
    profile: Profile,
    /// What the store says of a device that never came before.
    records: Records,
}

impl World {
    pub(crate) fn new(case: Case) -> Self {
        let vendor = Vendor::with_keys("Acme", [case.ek.new_key(), case.ek.new_key()]);
        let mut ca = Ca::trusting(&vendor);
        let mut device = Device::with_ek(
            &vendor,
            SoftwareEk::golden(match case.ek {
                Kind::Rsa2048 => "rsa2048",
                Kind::P256 => "p256",
                Kind::P384 => "p384",
            }),
        );
        match case.path {
            Path::Root => device.ek_certificates = vendor.certify_by_root(&device.ek.key()),
            Path::KnownIntermediate => {
                device.ek_certificates.truncate(1);
                let others = (0..OTHER_INTERMEDIATES)
                    .map(|at| Vendor::new(&format!("Vendor {at}")).intermediate);
                let mut trusted: Vec<_> = others.chain([vendor.root.clone()]).collect();
                trusted.insert(OTHER_INTERMEDIATES / 2, vendor.intermediate.clone());
                ca.anchors = trusting(trusted);
            }
            Path::SentIntermediate => {}
        }
        let (ik_area, ik) = match case.ik {
            Kind::Rsa2048 => rsa_ik(),
            Kind::P256 => p256_ik(),
            Kind::P384 => p384_ik(),
        };
        (device.ik_area, device.csr) = (ik_area, csr(&ik));
        let parent = match case.ek {
            Kind::Rsa2048 => SoftwareParent::fresh_rsa2048(),
            Kind::P256 | Kind::P384 => SoftwareParent::fresh_p256(),
        };
        let issuing_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (master, profile) =
            (MasterSecret::generate(&mut CountingRng::new()), Profile::default());
        Self {
            case,
            vendor,
            device,
            parent,
            ca,
            issuing_key,
            master,
            profile,
            records: Records::default(),
        }
    }

    /// A message of the device.
    pub(crate) fn message(body: RequestBody) -> Vec<u8> {
        Request { id: RequestId::from([7; 16]), body }.encode()
    }

    /// A message of the CA.
    pub(crate) fn reply(id: RequestId, body: ReplyBody) -> Vec<u8> {
        Reply { id, body }.encode()
    }

    /// As `assay-device` sends it: the EK's public area in brief.
    pub(crate) fn request(&self) -> Bundle {
        let index = match self.case.ek {
            Kind::Rsa2048 => 0x01C0_0002,
            Kind::P256 => 0x01C0_000A,
            Kind::P384 => 0x01C0_0016,
        };
        Bundle { ek_public: EkPublic::OfCertificate(index), ..self.device.request() }
    }

    pub(crate) fn parent_bundle(&self) -> ParentBundle {
        let Bundle { device_id, ek_public, ek_certificates, .. } = self.request();
        ParentBundle {
            device_id,
            ek_public,
            ek_certificates,
            parent_public: self.parent.area.encode().try_into().unwrap(),
            other_eks: None,
        }
    }

    pub(crate) fn trust(&self, evidence: &EkEvidence) -> TrustedEk {
        TrustedEk::verify(evidence, &self.ca.anchors, None, now()).unwrap()
    }

    pub(crate) fn admit(&self, ek: TrustedEk, requested: Option<&DeviceId>) -> Admitted {
        Admitted::decide(ek, requested, &self.records).unwrap()
    }

    pub(crate) fn challenge(&self, admitted: &Admitted, ik: &BoundKey) -> ChallengeReply {
        admitted
            .challenge(ik, &self.ca.scope, &self.ca.ticket_key, now(), &mut CountingRng::new())
            .unwrap()
    }

    pub(crate) fn prove(&self, proof: &Proof) -> ProvenDevice {
        ProvenDevice::verify(proof, &self.ca.scope, &self.ca.ticket_key, now()).unwrap()
    }

    pub(crate) fn readmit(&self, device: ProvenDevice) -> Readmitted {
        device.readmit(&self.records).unwrap()
    }

    pub(crate) fn prepare(&self, device: Readmitted) -> Prepared {
        Prepared::new(device, &self.profile, &self.ca.issuer, now(), &mut CountingRng::new())
            .unwrap()
    }

    pub(crate) fn prepare_unproven(&self, candidate: &Candidate) -> Prepared {
        Prepared::unproven(
            candidate,
            &self.profile,
            &self.ca.issuer,
            now(),
            &mut CountingRng::new(),
        )
        .unwrap()
    }

    pub(crate) fn candidate(&self, admitted: &Admitted, ik: &BoundKey) -> Candidate {
        admitted.candidate(ik, &self.ca.scope, &self.records, now()).unwrap()
    }

    pub(crate) fn seal(&self, candidate: &Candidate, certificate: &[u8]) -> SealedReply {
        let chain = self.ca.issuer.chain(certificate).unwrap();
        let confirm_by = now() + self.profile.confirm_within();
        candidate
            .seal(chain, confirm_by, &self.ca.ticket_key, now(), &mut CountingRng::new())
            .unwrap()
    }

    pub(crate) fn activate(&self, admitted: &Admitted, parent: &ParentArea) -> ActivationReply {
        let parent = admitted.parent(parent.clone(), &self.records).unwrap();
        let generation = admitted.generation(&parent, &self.records).unwrap();
        admitted
            .activation(&parent, &self.ca.scope, &self.master, generation, &mut CountingRng::new())
            .unwrap()
    }

    /// A message that begins a flow.
    pub(crate) fn first_message(&self, flow: Flow) -> Vec<u8> {
        Self::message(match flow {
            Flow::Ticket => RequestBody::Challenge(self.request()),
            Flow::Sealed => RequestBody::Enroll(self.request()),
            Flow::SharedKey => RequestBody::Register(self.parent_bundle()),
        })
    }

    /// What the CA does for one device in this flow, from each message's bytes to its reply's. What
    /// the device does in between is done beforehand.
    pub(crate) fn whole(self, flow: Flow) -> Box<dyn Fn() -> usize> {
        let first = self.first_message(flow);
        match flow {
            Flow::Ticket => {
                let reply = Reply::decode(&self.answer_challenge(&first)).unwrap();
                let ReplyBody::Challenge(challenge) = reply.body else { unreachable!() };
                let second = Self::message(RequestBody::Certify(self.device.answer(&challenge)));
                Box::new(move || {
                    self.answer_challenge(&first).len() + self.answer_certify(&second).len()
                })
            }
            Flow::Sealed => {
                let (reply, unconfirmed) = self.answer_enroll(&first);
                let second = Self::message(RequestBody::Confirm(self.open(&reply)));
                Box::new(move || {
                    self.answer_enroll(&first).0.len()
                        + self.answer_confirm(&second, &unconfirmed).len()
                })
            }
            Flow::SharedKey => {
                let token = self.token();
                Box::new(move || {
                    self.answer_register(&first).len()
                        + usize::from(self.login(&token).device_id().as_str().is_empty())
                })
            }
        }
    }

    fn answer_challenge(&self, message: &[u8]) -> Vec<u8> {
        let Request { id, body: RequestBody::Challenge(bundle) } =
            Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let (admitted, ik) = self.apply(bundle);
        let reply = self.challenge(&admitted, &ik);
        Self::reply(id, ReplyBody::Challenge(reply))
    }

    fn answer_certify(&self, message: &[u8]) -> Vec<u8> {
        let Request { id, body: RequestBody::Certify(proof) } = Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let prepared = self.prepare(self.readmit(self.prove(&proof)));
        let issued = self.ca.issuer.sign(prepared).unwrap();
        let chain = self.ca.issuer.chain(&issued.der).unwrap();
        Self::reply(id, ReplyBody::Certificate(CertificateReply { chain }))
    }

    fn answer_enroll(&self, message: &[u8]) -> (Vec<u8>, Unconfirmed) {
        let Request { id, body: RequestBody::Enroll(bundle) } = Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let (admitted, ik) = self.apply(bundle);
        let candidate = self.candidate(&admitted, &ik);
        candidate.check_quota(&self.records).unwrap();
        let prepared = self.prepare_unproven(&candidate);
        let issued = self.ca.issuer.sign(prepared).unwrap();
        let reply = self.seal(&candidate, &issued.der);
        let unconfirmed = Self::unconfirmed(&issued, candidate.ik_id());
        (Self::reply(id, ReplyBody::Sealed(reply)), unconfirmed)
    }

    /// What the store says of a sealed certificate.
    pub(crate) fn unconfirmed(issued: &IssuedCertificate, ik_id: [u8; 32]) -> Unconfirmed {
        Unconfirmed {
            serial: issued.serial,
            device_id: issued.device_id.clone(),
            ek_id: issued.ek_id,
            ik_id,
            assurance: issued.assurance,
            issued_at: now(),
            confirm_by: issued.confirm_by.unwrap(),
        }
    }

    pub(crate) fn answer_confirm(&self, message: &[u8], unconfirmed: &Unconfirmed) -> Vec<u8> {
        let Request { id, body: RequestBody::Confirm(proof) } = Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let confirmation =
            Confirmation::verify(&proof, &self.ca.scope, &self.ca.ticket_key, now()).unwrap();
        unconfirmed.clone().confirm(&self.records, now()).unwrap();
        Self::reply(
            id,
            ReplyBody::Confirmed(ConfirmedReply { receipt: confirmation.into_receipt() }),
        )
    }

    fn answer_register(&self, message: &[u8]) -> Vec<u8> {
        let Request { id, body: RequestBody::Register(bundle) } = Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let evidence = ParentEvidence::parse(bundle).unwrap();
        let ek = self.trust(&evidence.ek);
        let parent = evidence.parent().unwrap();
        let admitted = self.admit(ek, evidence.ek.requested_device_id());
        let reply = self.activate(&admitted, &parent);
        Self::reply(id, ReplyBody::Activation(reply))
    }

    fn apply(&self, bundle: Bundle) -> (Admitted, BoundKey) {
        let evidence = Evidence::parse(bundle).unwrap();
        let ek = self.trust(&evidence.ek);
        let ik = BoundKey::verify(&evidence).unwrap();
        (self.admit(ek, evidence.ek.requested_device_id()), ik)
    }

    /// A device's user name and token, and its EK.
    pub(crate) fn token(&self) -> (String, String, EkId) {
        let evidence = self.device.evidence().ek;
        let (device_id, scope) = (evidence.derived_device_id(), &self.ca.scope);
        let key = self.master.key(scope, &device_id, &evidence.ek_id(), FIRST_GENERATION);
        let resource = format!("{scope}%2Fregistrations%2F{device_id}");
        let expiry = (now() + Duration::HOUR).unix_timestamp();
        let mac =
            data_encoding::BASE64.encode(&key.hmac(format!("{resource}\n{expiry}").as_bytes()));
        let mac =
            percent_encoding::percent_encode(mac.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
        let token =
            format!("SharedAccessSignature sr={resource}&sig={mac}&se={expiry}&skn=registration");
        (device_id.to_string(), token, evidence.ek_id())
    }

    /// What the CA does at every connection of a device with a shared key.
    pub(crate) fn login(
        &self,
        (user_name, token, ek): &(String, String, EkId),
    ) -> AuthenticatedDevice {
        let token = Token::parse(user_name, token.as_bytes()).unwrap();
        let shared_key = Some(SharedKeyOnRecord {
            generation: FIRST_GENERATION,
            is_used: true,
            plain_srk_generation: 0,
        });
        let generations = Records { shared_key, ..Records::default() }.accepted_generations();
        AuthenticatedDevice::verify(token, &self.ca.scope, &self.master, *ek, &generations, now())
            .unwrap()
    }

    /// Does what the TPM of a device does with a sealed certificate.
    pub(crate) fn open(&self, reply: &[u8]) -> Proof {
        let ReplyBody::Sealed(reply) = Reply::decode(reply).unwrap().body else { unreachable!() };
        let credential = Credential {
            id_object: reply.credential_blob.to_vec(),
            encrypted_seed: reply.encrypted_seed.to_vec(),
        };
        let key = self.device.ek.activate(&self.device.ik_name(), &credential).unwrap();
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
        let evidence = self.device.evidence();
        let ik = BoundKey::verify(&evidence).unwrap();
        let data = SealedReply::associated_data(&reply.claim, &evidence.ek.ek_id(), &ik.ik_id());
        let (nonce, content) = reply.sealed.split_at(NONCE_LEN);
        let (nonce, mut content) =
            (Nonce::try_assume_unique_for_key(nonce).unwrap(), content.to_vec());
        let content = key.open_in_place(nonce, Aad::from(data), &mut content).unwrap();
        Proof { claim: reply.claim, ticket: SealedCertificate::decode(content).unwrap().ticket }
    }

    /// A proof that is good now.
    pub(crate) fn proof(&self) -> Proof {
        let evidence = self.device.evidence();
        let (ek, ik) = (self.trust(&evidence.ek), BoundKey::verify(&evidence).unwrap());
        let admitted = self.admit(ek, None);
        let challenge = self.challenge(&admitted, &ik);
        self.device.answer(&challenge)
    }
}

impl Kind {
    /// A vendor's key.
    pub(crate) fn new_key(self) -> KeyPair {
        match self {
            Self::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Self::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        }
        .unwrap()
    }
}

/// Beside the one in question: Microsoft's collection of TPM vendors' certificates has some
/// hundreds.
const OTHER_INTERMEDIATES: usize = 300;
