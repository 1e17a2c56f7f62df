//! Requests and replies, each with exactly one encoding.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use minicbor::bytes::ByteArray;
use minicbor::data::Type;
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::{Adoption, Renewal};
use crate::{
    Bytes, CertificateDer, CertificateList, DeviceId, EkId, EkIds, Limit, MAX_CLAIM,
    MAX_CREDENTIAL_BLOB, MAX_CSR, MAX_DUPLICATE, MAX_ENCRYPTED_SEED, MAX_PUBLIC_AREA, MAX_SEALED,
    MAX_SIGNED_CONFIGURATION, Problem, RequestId,
};

/// The longest message, in bytes: a full EK chain of RSA-4096 certificates, a CSR and two public
/// areas fit.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// What a device asks of the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The device chooses it at random for each request to which it wants one answer.
    pub id: RequestId,
    /// What the device asks for.
    pub body: RequestBody,
}

/// The kinds of request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// The ticket flow's first step.
    Challenge(Bundle),
    /// The ticket flow's second step.
    Certify(Proof),
    /// The sealed flow's only step: asks for a certificate that nobody but the TPM can read.
    Enroll(Bundle),
    /// Tells the CA that the device could read a sealed certificate, so that it becomes active.
    Confirm(Proof),
    /// The shared key flow's only step: asks for a key that nobody but the TPM can load.
    Register(ParentBundle),
    /// Asks whether a worker answers in this scope. Says nothing about any device, and changes
    /// nothing.
    Ping,
    /// Asks for a new certificate in place of one that is in force, for the same IK.
    Renew(Renewal),
    /// Tells the CA that the device has stored a certificate that waits, so that it becomes active.
    Adopt(Adoption),
    /// The ticket flow's first step for a device that keeps its certificate until it takes the one
    /// for the IK that it shows here. Answered by a challenge; the certificate for that is adopted.
    Rekey(Bundle),
}

/// What the device shows of its EK and IK. The CA believes none of it before it has checked it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Bundle {
    /// The wanted device id. Without one, the CA gives the id that is due to the EK.
    #[n(0)]
    pub device_id: Option<DeviceId>,
    /// The EK's public area.
    #[n(1)]
    pub ek_public: EkPublic,
    /// The EK certificate and its issuers as far as the device knows them, leaf first; may be
    /// empty.
    #[n(2)]
    pub ek_certificates: CertificateList<0>,
    /// The IK's TPMT_PUBLIC, without the size of a TPM2B.
    #[n(3)]
    pub ik_public: Bytes<MAX_PUBLIC_AREA>,
    /// A certificate request (RFC 2986, DER) for the IK, signed by it.
    #[n(4)]
    pub csr: Bytes<MAX_CSR>,
    /// Other EKs of this TPM, for a device that does not know which of them the CA knows.
    #[n(5)]
    pub other_eks: Option<EkIds>,
}

/// An EK's public area, in full or in brief.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EkPublic {
    /// TPMT_PUBLIC (TPM 2.0 Part 2, 12.2.4), without the size of a TPM2B.
    Area(Bytes<MAX_PUBLIC_AREA>),
    /// The NV index that TCG reserves for the certificate of an EK of a default template (EK
    /// Credential Profile 2.5, 2.2.1.4 and 2.2.1.5). Stands for that template with the key of the
    /// first EK certificate.
    OfCertificate(u32),
}

impl TryFrom<Vec<u8>> for EkPublic {
    type Error = Limit;

    fn try_from(area: Vec<u8>) -> Result<Self, Limit> {
        area.try_into().map(Self::Area)
    }
}

impl<C> Encode<C> for EkPublic {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match self {
            Self::Area(area) => area.encode(e, context),
            Self::OfCertificate(index) => index.encode(e, context),
        }
    }
}

impl<'b, C> Decode<'b, C> for EkPublic {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, minicbor::decode::Error> {
        match d.datatype()? {
            Type::Bytes => Bytes::decode(d, context).map(Self::Area),
            _ => d.u32().map(Self::OfCertificate),
        }
    }
}

/// What the device shows of its EK and of the parent of the key that it asks for. The CA believes
/// none of it before it has checked it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ParentBundle {
    /// The wanted device id. Without one, the CA gives the id that is due to the EK.
    #[n(0)]
    pub device_id: Option<DeviceId>,
    /// The EK's public area.
    #[n(1)]
    pub ek_public: EkPublic,
    /// The EK certificate and its issuers as far as the device knows them, leaf first; may be
    /// empty.
    #[n(2)]
    pub ek_certificates: CertificateList<0>,
    /// The parent's TPMT_PUBLIC, without the size of a TPM2B: of an import parent, or of a plain
    /// storage root key.
    #[n(3)]
    pub parent_public: Bytes<MAX_PUBLIC_AREA>,
    /// Other EKs of this TPM, for a device that does not know which of them the CA knows.
    #[n(4)]
    pub other_eks: Option<EkIds>,
}

/// Shows that the TPM activated a credential: the ticket flow's second step, and the sealed flow's
/// confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Proof {
    /// The claim, as the CA sent it.
    #[n(0)]
    pub claim: Bytes<MAX_CLAIM>,
    /// The secret that TPM2_ActivateCredential gave, or the ticket that was sealed with the
    /// certificate.
    #[n(1)]
    pub ticket: Ticket,
}

macro_rules! claim_mac {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] ByteArray<{ Self::LEN }>);

        impl $name {
            /// Its length in bytes, that of SHA-256.
            pub const LEN: usize = 32;

            /// The bytes themselves. Compare them in constant time.
            pub fn as_bytes(&self) -> &[u8; Self::LEN] {
                &self.0
            }
        }

        impl From<[u8; Self::LEN]> for $name {
            fn from(bytes: [u8; Self::LEN]) -> Self {
                Self(bytes.into())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

claim_mac!(
    /// The secret that proves a claim: HMAC-SHA-256 of the claim under the CA's ticket key. Its
    /// `Debug` shows nothing.
    Ticket
);

claim_mac!(
    /// The CA's statement that it accepted a confirmation: HMAC-SHA-256 of the claim under the CA's
    /// ticket key, but with another label. Nobody else can make it, and nobody sees it before the
    /// CA sends it. Its `Debug` shows nothing.
    Receipt
);

/// What the CA answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The id of the request that this answers, or [`RequestId::NIL`] if that id could not be read.
    pub id: RequestId,
    /// The answer.
    pub body: ReplyBody,
}

/// The kinds of reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// The request is not granted.
    Problem(Problem),
    /// Answers [`RequestBody::Challenge`] and [`RequestBody::Rekey`].
    Challenge(ChallengeReply),
    /// Answers [`RequestBody::Certify`] and [`RequestBody::Renew`].
    Certificate(CertificateReply),
    /// Answers [`RequestBody::Enroll`].
    Sealed(SealedReply),
    /// Answers [`RequestBody::Confirm`]: the certificate is active.
    Confirmed(ConfirmedReply),
    /// Answers [`RequestBody::Register`].
    Activation(ActivationReply),
    /// Answers [`RequestBody::Ping`].
    Pong,
    /// Answers [`RequestBody::Adopt`]: the certificate is active.
    Adopted,
}

/// The body of messages whose kind says everything.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Nothing {}

/// A challenge that only the TPM with both the EK and the IK can answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ChallengeReply {
    /// What the CA verified. Opaque to the device, which sends it back unchanged.
    #[n(0)]
    pub claim: Bytes<MAX_CLAIM>,
    /// TPMS_ID_OBJECT (TPM 2.0 Part 2, 12.4.2): the content of a TPM2B_ID_OBJECT, without its size.
    #[n(1)]
    pub credential_blob: Bytes<MAX_CREDENTIAL_BLOB>,
    /// The content of a TPM2B_ENCRYPTED_SECRET (TPM 2.0 Part 2, 11.4.3), without its size.
    #[n(2)]
    pub encrypted_seed: Bytes<MAX_ENCRYPTED_SEED>,
}

/// The device's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CertificateReply {
    /// The device's certificate, then its issuers, without the root.
    #[n(0)]
    pub chain: CertificateList<1>,
    /// When the device is to renew it, in seconds since 1970.
    #[n(1)]
    pub renew_at: Option<u64>,
    /// A [`SignedConfiguration`](crate::SignedConfiguration), if the operator has a document for
    /// the device. Whether it can be read says nothing about the certificate.
    #[n(2)]
    pub configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
    /// A new root, certified by the one before, for the device to pin beside it.
    #[n(3)]
    pub new_root: Option<CertificateDer>,
}

/// A certificate that only the TPM with both the EK and the IK can read.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SealedReply {
    /// What the CA verified and issued. Opaque to the device, which sends it back unchanged.
    #[n(0)]
    pub claim: Bytes<MAX_CLAIM>,
    /// TPMS_ID_OBJECT with the key of [`sealed`](Self::sealed): 32 bytes, for AES-256-GCM.
    #[n(1)]
    pub credential_blob: Bytes<MAX_CREDENTIAL_BLOB>,
    /// The content of a TPM2B_ENCRYPTED_SECRET, without its size.
    #[n(2)]
    pub encrypted_seed: Bytes<MAX_ENCRYPTED_SEED>,
    /// A nonce of 12 bytes, then a [`SealedCertificate`] encrypted with AES-256-GCM (SP 800-38D),
    /// then the tag of 16 bytes.
    #[n(3)]
    pub sealed: Bytes<MAX_SEALED>,
}

impl SealedReply {
    /// The associated data of [`sealed`](Self::sealed): the box opens only with this claim, for
    /// this EK and for this IK.
    ///
    /// A CBOR array of the text `assay sealed v1`, the claim, the EK's id, and SHA-256 of the IK's
    /// SubjectPublicKeyInfo.
    pub fn associated_data(claim: &[u8], ek_id: &EkId, ik_id: &[u8; 32]) -> Vec<u8> {
        let mut data = Vec::new();
        // Unwrap safety: writing to a Vec cannot fail.
        Encoder::new(&mut data)
            .array(4)
            .and_then(|e| e.str("assay sealed v1"))
            .and_then(|e| e.bytes(claim))
            .and_then(|e| e.bytes(ek_id.as_bytes()))
            .and_then(|e| e.bytes(ik_id))
            .unwrap();
        data
    }
}

/// The content of a [`SealedReply`] that only the TPM can open.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SealedCertificate {
    /// The device's certificate, then its issuers, without the root.
    #[n(0)]
    pub chain: CertificateList<1>,
    /// Confirms the claim of the same reply.
    #[n(1)]
    pub ticket: Ticket,
    /// SHA-256 of the receipt that answers the confirmation.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub receipt_sha256: [u8; 32],
    /// When the device is to renew the certificate, in seconds since 1970.
    #[n(3)]
    pub renew_at: Option<u64>,
    /// As in [`CertificateReply`]; left out if [`SealedReply::sealed`] would be too long with it.
    #[n(4)]
    pub configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
}

impl SealedCertificate {
    /// The bytes to encrypt.
    pub fn encode(&self) -> Vec<u8> {
        // Unwrap safety: writing to a Vec cannot fail, and no `Encode` of this crate fails by
        // itself.
        minicbor::to_vec(self).unwrap()
    }

    /// Reads decrypted bytes.
    ///
    /// # Errors
    /// The bytes are not the one encoding of a sealed certificate; see [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sealed: Self = minicbor::decode(bytes)?;
        only_encoding(bytes, sealed.encode())?;
        Ok(sealed)
    }
}

/// Says that a sealed certificate is active.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ConfirmedReply {
    /// Its SHA-256 was sealed with the certificate.
    #[n(0)]
    pub receipt: Receipt,
}

/// An HMAC key that only the TPM with both the EK and the parent can load.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ActivationReply {
    /// TPMS_ID_OBJECT for the parent's Name, with the key of the inner wrapper: 16 bytes, for
    /// AES-128-CFB.
    #[n(0)]
    pub credential_blob: Bytes<MAX_CREDENTIAL_BLOB>,
    /// The content of that credential's TPM2B_ENCRYPTED_SECRET, without its size.
    #[n(1)]
    pub encrypted_seed: Bytes<MAX_ENCRYPTED_SEED>,
    /// The content of a TPM2B_PRIVATE (TPM 2.0 Part 1, 23.3): the HMAC key in its inner and outer
    /// wrapper.
    #[n(2)]
    pub duplicate: Bytes<MAX_DUPLICATE>,
    /// The seed of the outer wrapper, encrypted for the parent: the content of a
    /// TPM2B_ENCRYPTED_SECRET, without its size.
    #[n(3)]
    pub symmetric_seed: Bytes<MAX_ENCRYPTED_SEED>,
    /// The HMAC key's TPMT_PUBLIC, without the size of a TPM2B.
    #[n(4)]
    pub key_public: Bytes<MAX_PUBLIC_AREA>,
    /// The registration: the name under which the device connects.
    #[n(5)]
    pub device_id: DeviceId,
    /// After how many seconds the device is to ask for the next key. It is a length of time, and
    /// not a time, because nothing that is signed says what time it is where a key is used.
    #[n(6)]
    pub rotate_after: Option<u32>,
}

impl Request {
    const CHALLENGE: u64 = 1;
    const CERTIFY: u64 = 2;
    const ENROLL: u64 = 3;
    const CONFIRM: u64 = 4;
    const REGISTER: u64 = 5;
    const PING: u64 = 6;
    const RENEW: u64 = 7;
    const ADOPT: u64 = 8;
    const REKEY: u64 = 9;

    /// The message to publish.
    pub fn encode(&self) -> Vec<u8> {
        match &self.body {
            RequestBody::Challenge(body) => encode(Self::CHALLENGE, self.id, body),
            RequestBody::Certify(body) => encode(Self::CERTIFY, self.id, body),
            RequestBody::Enroll(body) => encode(Self::ENROLL, self.id, body),
            RequestBody::Confirm(body) => encode(Self::CONFIRM, self.id, body),
            RequestBody::Register(body) => encode(Self::REGISTER, self.id, body),
            RequestBody::Ping => encode(Self::PING, self.id, &Nothing {}),
            RequestBody::Renew(body) => encode(Self::RENEW, self.id, body),
            RequestBody::Adopt(body) => encode(Self::ADOPT, self.id, body),
            RequestBody::Rekey(body) => encode(Self::REKEY, self.id, body),
        }
    }

    /// Reads a message that anybody may have published.
    ///
    /// # Errors
    /// The message is not the one encoding of a request; see [`DecodeError`].
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_after(&Head::read(message)?, message)
    }

    /// Does the same for a message whose head was read before.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_after(head: &Head, message: &[u8]) -> Result<Self, DecodeError> {
        let Head { kind, id, body_at } = *head;
        let mut d = Decoder::new(message);
        d.set_position(body_at);
        let body = match kind {
            Self::CHALLENGE => RequestBody::Challenge(d.decode()?),
            Self::CERTIFY => RequestBody::Certify(d.decode()?),
            Self::ENROLL => RequestBody::Enroll(d.decode()?),
            Self::CONFIRM => RequestBody::Confirm(d.decode()?),
            Self::REGISTER => RequestBody::Register(d.decode()?),
            Self::PING => d.decode().map(|Nothing {}| RequestBody::Ping)?,
            Self::RENEW => RequestBody::Renew(d.decode()?),
            Self::ADOPT => RequestBody::Adopt(d.decode()?),
            Self::REKEY => RequestBody::Rekey(d.decode()?),
            kind => return Err(DecodeError::UnknownKind(kind)),
        };
        let request = Self { id, body };
        only_encoding(message, request.encode())?;
        Ok(request)
    }
}

/// The beginning of a message: its kind and its id. The rest may still be unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    kind: u64,
    id: RequestId,
    body_at: usize,
}

impl Head {
    /// Reads the beginning of a message that anybody may have published.
    ///
    /// # Errors
    /// The message is longer than [`MAX_MESSAGE`], or does not begin like one.
    pub fn read(message: &[u8]) -> Result<Self, DecodeError> {
        if message.len() > MAX_MESSAGE {
            return Err(DecodeError::Oversize(Limit { length: message.len(), limit: MAX_MESSAGE }));
        }
        let mut d = Decoder::new(message);
        if d.array()? != Some(3) {
            return Err(DecodeError::Malformed("not an array of three".into()));
        }
        Ok(Self { kind: d.u64()?, id: d.decode()?, body_at: d.position() })
    }

    /// The message's id.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Whether a request finishes a flow (*certify*, *confirm*). The CA has less to decide for such
    /// a request than for one that starts a flow, and checks its ticket before it looks anything
    /// up. An adoption has no ticket, and loses nothing by waiting.
    pub fn finishes_a_flow(&self) -> bool {
        matches!(self.kind, Request::CERTIFY | Request::CONFIRM)
    }
}

impl Reply {
    const PROBLEM: u64 = 0;
    const CHALLENGE: u64 = 1;
    const CERTIFICATE: u64 = 2;
    const SEALED: u64 = 3;
    const CONFIRMED: u64 = 4;
    const ACTIVATION: u64 = 5;
    const PONG: u64 = 6;
    const ADOPTED: u64 = 7;

    /// The message to publish.
    pub fn encode(&self) -> Vec<u8> {
        match &self.body {
            ReplyBody::Problem(body) => encode(Self::PROBLEM, self.id, body),
            ReplyBody::Challenge(body) => encode(Self::CHALLENGE, self.id, body),
            ReplyBody::Certificate(body) => encode(Self::CERTIFICATE, self.id, body),
            ReplyBody::Sealed(body) => encode(Self::SEALED, self.id, body),
            ReplyBody::Confirmed(body) => encode(Self::CONFIRMED, self.id, body),
            ReplyBody::Activation(body) => encode(Self::ACTIVATION, self.id, body),
            ReplyBody::Pong => encode(Self::PONG, self.id, &Nothing {}),
            ReplyBody::Adopted => encode(Self::ADOPTED, self.id, &Nothing {}),
        }
    }

    /// Reads a message that anybody who may write to the reply topic may have published.
    ///
    /// # Errors
    /// The message is not the one encoding of a reply; see [`DecodeError`].
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let Head { kind, id, body_at } = Head::read(message)?;
        let mut d = Decoder::new(message);
        d.set_position(body_at);
        let body = match kind {
            Self::PROBLEM => ReplyBody::Problem(d.decode()?),
            Self::CHALLENGE => ReplyBody::Challenge(d.decode()?),
            Self::CERTIFICATE => ReplyBody::Certificate(d.decode()?),
            Self::SEALED => ReplyBody::Sealed(d.decode()?),
            Self::CONFIRMED => ReplyBody::Confirmed(d.decode()?),
            Self::ACTIVATION => ReplyBody::Activation(d.decode()?),
            Self::PONG => d.decode().map(|Nothing {}| ReplyBody::Pong)?,
            Self::ADOPTED => d.decode().map(|Nothing {}| ReplyBody::Adopted)?,
            kind => return Err(DecodeError::UnknownKind(kind)),
        };
        let reply = Self { id, body };
        only_encoding(message, reply.encode())?;
        Ok(reply)
    }
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Longer than [`MAX_MESSAGE`]; no byte was read.
    Oversize(Limit),
    /// Not CBOR, not the right shape, or a field beyond its limit.
    Malformed(String),
    /// A kind of message that this version does not know.
    UnknownKind(u64),
    /// Readable, but not the one encoding of its content: unknown, repeated or unsorted keys, an
    /// indefinite or needlessly long length, or trailing bytes. The number is the position of the
    /// first byte that differs.
    NotDeterministic(usize),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oversize(limit) => write!(f, "message length {limit}"),
            Self::Malformed(why) => f.write_str(why),
            Self::UnknownKind(kind) => write!(f, "unknown kind of message {kind}"),
            Self::NotDeterministic(at) => {
                write!(f, "not the deterministic encoding of its content, from byte {at}")
            }
        }
    }
}

impl core::error::Error for DecodeError {}

impl From<minicbor::decode::Error> for DecodeError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Malformed(alloc::string::ToString::to_string(&error))
    }
}

fn encode(kind: u64, id: RequestId, body: &impl Encode<()>) -> Vec<u8> {
    let mut message = Vec::new();
    // Unwrap safety: writing to a Vec cannot fail, and no `Encode` of this crate fails by itself.
    Encoder::new(&mut message)
        .array(3)
        .and_then(|e| e.u64(kind))
        .and_then(|e| e.encode(id))
        .and_then(|e| e.encode(body))
        .unwrap();
    message
}

pub(crate) fn only_encoding(message: &[u8], encoded: Vec<u8>) -> Result<(), DecodeError> {
    if message == encoded {
        return Ok(());
    }
    let same = message.iter().zip(&encoded).take_while(|(a, b)| a == b).count();
    Err(DecodeError::NotDeterministic(same))
}
