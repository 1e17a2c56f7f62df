//! The JSON of `device.json`. It has types of its own, so that a change of the core's types does
//! not make a stored file unreadable.

use assay_device_core::{self as core, EkKind, HmacPublic, IkKind, Memory, ParentKind};
use assay_wire::{DeviceId, EkId, Flow, Proof, Scope, Ticket};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub(super) fn write(memory: &Memory) -> serde_json::Result<Vec<u8>> {
    let Memory { in_use, attempt } = memory.clone();
    let file = File { in_use: in_use.map(InUse), attempt: attempt.map(Attempted) };
    let mut json = serde_json::to_vec_pretty(&file)?;
    json.push(b'\n');
    Ok(json)
}

pub(super) fn read(json: &[u8]) -> serde_json::Result<Memory> {
    let File { in_use, attempt } = serde_json::from_slice(json)?;
    let (in_use, attempt) = (in_use.map(|InUse(it)| it), attempt.map(|Attempted(it)| it));
    Ok(Memory { in_use, attempt })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    in_use: Option<InUse>,
    attempt: Option<Attempted>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct InUse(#[serde(with = "Grant")] core::Grant);

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Attempted(#[serde(with = "Attempt")] core::Attempt);

#[derive(Serialize, Deserialize)]
#[serde(remote = "core::Grant", rename_all = "kebab-case")]
enum Grant {
    Certificate(#[serde(with = "CertificateGrant")] core::CertificateGrant),
    SharedKey(#[serde(with = "SharedKeyGrant")] core::SharedKeyGrant),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "core::Attempt", rename_all = "kebab-case")]
enum Attempt {
    Identity(#[serde(with = "IdentityRecord")] core::IdentityRecord),
    Hmac(#[serde(with = "HmacRecord")] core::HmacRecord),
    Rekey(#[serde(with = "IdentityRecord")] core::IdentityRecord),
    Unconfirmed(#[serde(with = "CertificateGrant")] core::CertificateGrant),
    Renewed(#[serde(with = "CertificateGrant")] core::CertificateGrant),
    Rotated(#[serde(with = "SharedKeyGrant")] core::SharedKeyGrant),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "core::CertificateGrant", deny_unknown_fields)]
struct CertificateGrant {
    #[serde(with = "IdentityRecord")]
    record: core::IdentityRecord,
    #[serde(rename = "certificate", with = "as_pem")]
    chain: Vec<CertificateDer<'static>>,
    /// Versions before there were renewals did not write it.
    #[serde(default)]
    renew_at: Option<u64>,
    #[serde(default, with = "confirmation")]
    unconfirmed: Option<core::Confirmation>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "core::SharedKeyGrant", deny_unknown_fields)]
struct SharedKeyGrant {
    #[serde(with = "HmacRecord")]
    record: core::HmacRecord,
    #[serde(with = "as_text")]
    device_id: DeviceId,
    /// Versions before there were rotations did not write it.
    #[serde(default = "of_unknown_age", with = "Rotation")]
    rotation: core::Rotation,
}

fn of_unknown_age() -> core::Rotation {
    core::Rotation::AT_ONCE
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "core::Rotation", deny_unknown_fields)]
struct Rotation {
    from: u64,
    at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "core::IdentityRecord", deny_unknown_fields)]
struct IdentityRecord {
    #[serde(with = "Shown")]
    shown: core::Shown,
    #[serde(with = "as_text")]
    flow: Flow,
    #[serde(with = "as_text")]
    ik: IkKind,
    ik_handle: u32,
}

#[derive(Serialize)]
#[serde(remote = "core::HmacRecord")]
struct HmacRecord {
    #[serde(with = "Shown")]
    shown: core::Shown,
    #[serde(with = "as_text")]
    parent: ParentKind,
    hmac_handle: u32,
    first_handle: u32,
    #[serde(with = "keys")]
    keys: Vec<HmacPublic>,
}

impl HmacRecord {
    fn deserialize<'de, D: Deserializer<'de>>(file: D) -> Result<core::HmacRecord, D::Error> {
        let HmacRecordText { shown, parent, srk, hmac_handle, first_handle, keys } =
            HmacRecordText::deserialize(file)?;
        let first_handle = first_handle.unwrap_or(hmac_handle);
        let parent = parent.or_else(|| Some(format!("srk-{}", srk?)));
        let parent = parent.ok_or_else(|| de::Error::custom("an HMAC key without a parent"))?;
        let parent = parent.parse().map_err(de::Error::custom)?;
        Ok(core::HmacRecord { shown, parent, hmac_handle, first_handle, keys })
    }
}

/// An [`HmacRecord`] as it is read. Before there were import parents, the parent was a plain
/// storage root key, and its field was `srk`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HmacRecordText {
    #[serde(with = "Shown")]
    shown: core::Shown,
    parent: Option<String>,
    srk: Option<String>,
    hmac_handle: u32,
    /// Before there were rotations, no key was moved.
    first_handle: Option<u32>,
    #[serde(with = "keys")]
    keys: Vec<HmacPublic>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "core::Shown", deny_unknown_fields)]
struct Shown {
    #[serde(with = "as_text")]
    scope: Scope,
    #[serde(with = "as_text")]
    ek: EkKind,
    #[serde(default)]
    ek_was_named: bool,
    #[serde(with = "as_text")]
    ek_id: EkId,
}

/// A confirmation in hexadecimal digits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmationText {
    #[serde(with = "as_hex")]
    claim: Vec<u8>,
    #[serde(with = "as_hex")]
    ticket: Vec<u8>,
    #[serde(with = "as_hex")]
    receipt_sha256: Vec<u8>,
}

impl TryFrom<ConfirmationText> for core::Confirmation {
    type Error = &'static str;

    fn try_from(
        ConfirmationText { claim, ticket, receipt_sha256 }: ConfirmationText,
    ) -> Result<Self, Self::Error> {
        let claim = claim.try_into().map_err(|_| "a claim that is too long")?;
        let ticket: [u8; Ticket::LEN] =
            ticket.try_into().map_err(|_| "a ticket of another length")?;
        let receipt_sha256 = receipt_sha256.try_into().map_err(|_| "a hash of another length")?;
        Ok(Self { proof: Proof { claim, ticket: ticket.into() }, receipt_sha256 })
    }
}

mod confirmation {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        confirmation: &Option<core::Confirmation>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = confirmation.as_ref().map(|confirmation| ConfirmationText {
            claim: confirmation.proof.claim.to_vec(),
            ticket: confirmation.proof.ticket.as_bytes().into(),
            receipt_sha256: confirmation.receipt_sha256.into(),
        });
        text.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<core::Confirmation>, D::Error> {
        let text: Option<ConfirmationText> = Option::deserialize(deserializer)?;
        text.map(TryInto::try_into).transpose().map_err(de::Error::custom)
    }
}

/// HMAC keys' public areas in hexadecimal digits.
mod keys {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Text(#[serde(with = "as_hex")] Vec<u8>);

    pub(super) fn serialize<S: Serializer>(
        keys: &[HmacPublic],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(|HmacPublic(public)| Text(public.clone())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<HmacPublic>, D::Error> {
        let keys: Vec<Text> = Vec::deserialize(deserializer)?;
        Ok(keys.into_iter().map(|Text(public)| HmacPublic(public)).collect())
    }
}

/// Serializes a value as its `Display` text, and parses it back.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        value: &impl Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Serializes bytes as hexadecimal digits, and parses them back.
mod as_hex {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        HEXLOWER.decode(String::deserialize(deserializer)?.as_bytes()).map_err(de::Error::custom)
    }
}

/// Serializes certificates as PEM, and parses them back.
mod as_pem {
    use rustls::pki_types::CertificateDer;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::pem;

    pub(super) fn serialize<S: Serializer>(
        chain: &[CertificateDer<'_>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&pem::certificates(chain))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<CertificateDer<'static>>, D::Error> {
        pem::parse(String::deserialize(deserializer)?.as_bytes()).map_err(de::Error::custom)
    }
}
