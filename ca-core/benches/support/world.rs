//! One device's requests, and everything that a CA does with them except the store.

use assay_ca_core::tpm::credential::Credential;
use assay_ca_core::tpm::template::ParentArea;
use assay_ca_core::{
    Admission, Admitted, AdmittedParent, Assurance, BoundKey, Candidate, Certification, Challenge,
    Confirmation, Confirming, EkEvidence, Evidence, FIRST_GENERATION, Flaws, FlowKind, Instead,
    Issued, KeyOffer, Login, MasterSecret, Overlapping, ParentEvidence, Prepared, Profile, Proven,
    ProvenDevice, Readmitted, Records, SealedFlow, SealedOnRecord, Sealing, SharedKeyFlow,
    SharedKeyHolder, SharedKeyOnRecord, TicketFlow, Token, TrustedEk, Unconfirmed, Unproven,
};
use assay_wire::{
    ActivationReply, Bundle, ChallengeReply, EkId, EkPublic, Flow, ParentBundle, Proof, Reply,
    ReplyBody, Request, RequestBody, RequestId, SealedCertificate, SealedReply,
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
    masters: Overlapping<MasterSecret>,
    profile: Profile,
    /// What is on record about a device that never came before.
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
        let (masters, profile) =
            (MasterSecret::generate(&mut CountingRng::new()).into(), Profile::default());
        Self {
            case,
            vendor,
            device,
            parent,
            ca,
            issuing_key,
            masters,
            profile,
            records: nothing_on_record(),
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

    /// The request of `assay-device`: with the EK's public area in brief.
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

    pub(crate) fn admit<F: FlowKind>(&self, ek: TrustedEk) -> Admitted<F> {
        let admission = Admission {
            groups: &self.ca.groups,
            flaws: &Flaws::default(),
            waits_since: None,
            ik: None,
            now: now(),
        };
        Admitted::decide(offered(), ek, &self.records, &admission).unwrap()
    }

    pub(crate) fn challenge(
        &self,
        admitted: &Admitted<TicketFlow>,
        ik: &BoundKey,
    ) -> ChallengeReply {
        let Ca { scope, ticket_keys, .. } = &self.ca;
        let key = ticket_keys.in_use(now());
        let rng = &mut CountingRng::new();
        Challenge::new(admitted, ik, Instead::AtOnce, scope, key, now(), rng).unwrap().into_reply()
    }

    pub(crate) fn prove(&self, proof: &Proof) -> ProvenDevice {
        ProvenDevice::verify(proof, &self.ca.scope, &self.ca.ticket_keys, now()).unwrap()
    }

    pub(crate) fn readmit(&self, device: ProvenDevice) -> Readmitted {
        Readmitted::decide(device, &self.records).unwrap()
    }

    pub(crate) fn prepare(&self, device: Readmitted) -> Prepared<Proven> {
        let (profile, issuer) = (&self.profile, self.ca.issuers.current(now()));
        Prepared::<Proven>::new(device, profile, issuer, now(), &mut CountingRng::new()).unwrap()
    }

    pub(crate) fn candidate(&self, admitted: &Admitted<SealedFlow>, ik: &BoundKey) -> Candidate {
        Candidate::decide(admitted, ik, &self.ca.scope, &self.records, now()).unwrap()
    }

    pub(crate) fn plan_sealing(&self, candidate: Candidate) -> Sealing {
        Sealing::plan(
            candidate,
            &self.records,
            None,
            &[],
            &self.ca.ticket_keys,
            &self.profile,
            &self.ca.issuers,
            now(),
            &mut CountingRng::new(),
        )
        .unwrap()
    }

    /// Signs and seals.
    pub(crate) fn seal(&self, sealing: Sealing) -> (SealedReply, Issued<Unproven>) {
        let ticket_keys = &self.ca.ticket_keys;
        let (reply, issued) =
            sealing.sign(ticket_keys.in_use(now()), now(), &mut CountingRng::new()).unwrap();
        (reply, issued.unwrap())
    }

    pub(crate) fn activate(
        &self,
        admitted: Admitted<SharedKeyFlow>,
        parent: &ParentArea,
    ) -> ActivationReply {
        let parent = AdmittedParent::decide(&admitted, parent.clone(), &self.records).unwrap();
        let offer =
            KeyOffer::decide(admitted, parent, &self.records, &Profile::default(), now()).unwrap();
        offer
            .activation(&self.ca.scope, self.masters.in_use(now()), &mut CountingRng::new())
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

    /// What the CA does for one device in this flow, from the bytes of each message to those of its
    /// reply. The device's part is done beforehand.
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
        let certification = Certification::plan(
            self.prove(&proof),
            &self.records,
            None,
            &self.profile,
            &self.ca.issuers,
            now(),
            &mut CountingRng::new(),
        );
        let (reply, _) = certification.unwrap().sign().unwrap();
        Self::reply(id, ReplyBody::Certificate(reply))
    }

    fn answer_enroll(&self, message: &[u8]) -> (Vec<u8>, Unconfirmed) {
        let Request { id, body: RequestBody::Enroll(bundle) } = Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let (admitted, ik) = self.apply(bundle);
        let (reply, issued) = self.seal(self.plan_sealing(self.candidate(&admitted, &ik)));
        (Self::reply(id, ReplyBody::Sealed(reply)), Self::unconfirmed(&issued))
    }

    /// What is on record about a sealed certificate.
    pub(crate) fn unconfirmed(issued: &Issued<Unproven>) -> Unconfirmed {
        let facts = issued.facts();
        Unconfirmed {
            serial: facts.serial,
            device_id: facts.device_id.clone(),
            ek_id: facts.ek_id,
            ik_id: facts.ik_id,
            assurance: facts.assurance,
            issued_at: now(),
            confirm_by: facts.confirm_by.unwrap(),
            sha256: issued.sha256(),
            encrypted: issued.encrypted(),
        }
    }

    pub(crate) fn answer_confirm(&self, message: &[u8], unconfirmed: &Unconfirmed) -> Vec<u8> {
        let Request { id, body: RequestBody::Confirm(proof) } = Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let confirmation =
            Confirmation::verify(&proof, &self.ca.scope, &self.ca.ticket_keys, now()).unwrap();
        let sealed = SealedOnRecord::waiting(unconfirmed.clone(), self.records.clone());
        let key = &self.ca.ticket_keys;
        let plan = Confirming::plan(confirmation, sealed, key, now()).unwrap();
        let Confirming::New { reply, .. } = plan else { unreachable!() };
        Self::reply(id, ReplyBody::Confirmed(reply))
    }

    fn answer_register(&self, message: &[u8]) -> Vec<u8> {
        let Request { id, body: RequestBody::Register(bundle) } = Request::decode(message).unwrap()
        else {
            unreachable!()
        };
        let evidence = ParentEvidence::parse(bundle).unwrap();
        let ek = self.trust(&evidence.ek);
        let parent = evidence.parent().unwrap();
        let admitted = self.admit(ek);
        let reply = self.activate(admitted, &parent);
        Self::reply(id, ReplyBody::Activation(reply))
    }

    fn apply<F: FlowKind>(&self, bundle: Bundle) -> (Admitted<F>, BoundKey) {
        let evidence = Evidence::parse(bundle).unwrap();
        let ek = self.trust(&evidence.ek);
        let ik = BoundKey::verify(&evidence).unwrap();
        (self.admit(ek), ik)
    }

    /// A device's user name and token, and its EK.
    pub(crate) fn token(&self) -> (String, String, EkId) {
        let evidence = self.device.evidence().ek;
        let (device_id, scope) = (evidence.derived_device_id(), &self.ca.scope);
        let key =
            self.masters.in_use(now()).key(scope, &device_id, &evidence.ek_id(), FIRST_GENERATION);
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

    /// What the CA does for every connection of a device with a shared key.
    pub(crate) fn login(&self, (user_name, token, ek_id): &(String, String, EkId)) -> Login {
        let token = Token::parse(user_name, token.as_bytes()).unwrap();
        let shared_key = Some(SharedKeyOnRecord {
            generation: FIRST_GENERATION,
            is_used: true,
            plain_srk_generation: 0,
        });
        let records = Records { shared_key, ..nothing_on_record() };
        let holder = SharedKeyHolder { ek_id: *ek_id, assurance: Assurance::VendorCertificate };
        let (scope, masters) = (&self.ca.scope, &self.masters);
        Login::decide(offered(), &token, &holder, scope, masters, &records, now()).unwrap()
    }

    /// Does what the device's TPM does with a sealed certificate.
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
        let admitted = self.admit(ek);
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

/// The number of other intermediates. Microsoft's collection of TPM vendors' certificates has some
/// hundreds.
const OTHER_INTERMEDIATES: usize = 300;
