//! The bytes that Assay's devices and certificate authority exchange over MQTT.
//!
//! This crate knows topics, identifiers, messages and problem codes. It turns each into bytes and
//! back. It does no input or output, uses no cryptography, reads no clock, and trusts nothing that
//! it decodes. The TPM structures, certificates and certificate requests inside a message stay
//! opaque bytes of limited size: `assay-ca-core` parses what a device sends, `assay-device` what
//! the CA answers.
//!
//! | message | type | topic |
//! |---|---|---|
//! | request | [`Request`] | `provision/v1/{scope}/{client}/request` |
//! | reply | [`Reply`] | `provision/v1/{scope}/{client}/reply` |
//!
//! Messages are deterministic CBOR (RFC 8949 §4.2.1), described in `wire/assay.cddl` (RFC 8610).
//! [`Request::decode`] accepts exactly the bytes that [`Request::encode`] makes: it decodes a
//! message, encodes it again, and refuses it unless both are equal. So one value has one encoding.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;

mod device_client;
pub use device_client::DeviceClientId;

mod ids;
pub use ids::{
    ClientId, ConnectionName, DeviceId, EkId, IdError, IdentityName, KeyId, RequestId, Scope,
};

mod identity;
pub use identity::{Identity, IdentityError};

mod flow;
pub use flow::Flow;

pub mod filter;

mod topic;
pub use topic::{COMMAND, Topic};

mod rights;
pub use rights::{Rights, RightsError};

mod bytes;
pub use bytes::{
    Bytes, CertificateDer, CertificateList, EkIds, Limit, List, MAX_CERTIFICATE, MAX_CERTIFICATES,
    MAX_CLAIM, MAX_CREDENTIAL_BLOB, MAX_CSR, MAX_DUPLICATE, MAX_ENCRYPTED_SEED, MAX_OTHER_EKS,
    MAX_PUBLIC_AREA, MAX_SEALED, MAX_SIGNATURE,
};

mod message;
pub use message::{
    ActivationReply, Bundle, CertificateReply, ChallengeReply, ConfirmedReply, DecodeError,
    EkPublic, Head, MAX_MESSAGE, ParentBundle, Proof, Receipt, Reply, ReplyBody, Request,
    RequestBody, SealedCertificate, SealedReply, Ticket,
};

mod configuration;
pub use configuration::{
    Configuration, ConfigurationNews, MAX_CONFIGURATION, MAX_SIGNED_CONFIGURATION,
    SignedConfiguration,
};

mod renewal;
pub use renewal::{Adoption, Renewal};

mod printable;
pub use printable::{MAX_SHOWN, printable, printable_json};

mod problem;
pub use problem::{Problem, ProblemCode};
