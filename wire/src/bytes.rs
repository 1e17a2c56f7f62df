//! Byte strings and lists whose length has a limit.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::EkId;

/// TPMT_PUBLIC without its size. The largest we accept, RSA-3072 with a SHA-384 policy, has 458
/// bytes; RSA-4096 would have 586.
pub const MAX_PUBLIC_AREA: usize = 640;
/// One certificate. Measured EK certificates have 0.8 to 1.6 KiB; 4 KiB leaves room for RSA-4096
/// issuers.
pub const MAX_CERTIFICATE: usize = 4096;
/// Certificates of one chain. The longest EK chains in the field (Intel on-die CA) have five.
pub const MAX_CERTIFICATES: usize = 6;
/// Other EKs of the same TPM that a device names: TCG has a template for each of six kinds of key.
pub const MAX_OTHER_EKS: usize = 5;
/// PKCS#10 request. An RSA-2048 request with a subject has 0.7 KiB.
pub const MAX_CSR: usize = 2048;
/// A claim of this CA: identifiers of limited length and one RSA-2048 public key.
pub const MAX_CLAIM: usize = 1024;
/// TPMS_ID_OBJECT: an HMAC and an encrypted TPM2B of at most one SHA-512 digest each (TPM 2.0 Part
/// 2, 12.4.2).
pub const MAX_CREDENTIAL_BLOB: usize = 2 + 64 + 2 + 64;
/// TPMU_ENCRYPTED_SECRET: an RSA-4096 ciphertext, or an ECC point (TPM 2.0 Part 2, 11.4.3).
pub const MAX_ENCRYPTED_SEED: usize = 512;

/// A nonce, an encrypted certificate chain, and a tag. The chains of our CA have 1 to 3 KiB.
pub const MAX_SEALED: usize = 8192;
/// The content of a TPM2B_PRIVATE with a wrapped HMAC key. Ours have 142 bytes, like Azure DPS's.
pub const MAX_DUPLICATE: usize = 256;
/// A signature of an IK. One of RSA-2048 has 256 bytes; one of RSA-4096 would have 512.
pub const MAX_SIGNATURE: usize = 512;

/// Something was longer than its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How many bytes or elements there were.
    pub length: usize,
    /// How many there may be.
    pub limit: usize,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} where {} is the limit", self.length, self.limit)
    }
}

impl core::error::Error for Limit {}

/// At most `MAX` bytes, encoded as a CBOR byte string.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Bytes<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Bytes<MAX> {
    /// The bytes, without copying them.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize> TryFrom<Vec<u8>> for Bytes<MAX> {
    type Error = Limit;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Limit> {
        if bytes.len() > MAX {
            return Err(Limit { length: bytes.len(), limit: MAX });
        }
        Ok(Self(bytes))
    }
}

impl<const MAX: usize> TryFrom<&[u8]> for Bytes<MAX> {
    type Error = Limit;

    fn try_from(bytes: &[u8]) -> Result<Self, Limit> {
        if bytes.len() > MAX {
            return Err(Limit { length: bytes.len(), limit: MAX });
        }
        Ok(Self(bytes.to_vec()))
    }
}

impl<const MAX: usize> Deref for Bytes<MAX> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Bytes<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<C, const MAX: usize> Encode<C> for Bytes<MAX> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C, const MAX: usize> Decode<'b, C> for Bytes<MAX> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let bytes = d.bytes()?;
        bytes.try_into().map_err(|limit: Limit| minicbor::decode::Error::message(limit).at(at))
    }
}

/// One X.509 certificate in DER, unparsed.
pub type CertificateDer = Bytes<MAX_CERTIFICATE>;

/// `MIN` to [`MAX_CERTIFICATES`] certificates, leaf first. This crate does not check that each is
/// the issuer of the one before it.
pub type CertificateList<const MIN: usize> = List<CertificateDer, MIN, MAX_CERTIFICATES>;

/// 1 to [`MAX_OTHER_EKS`] EKs.
pub type EkIds = List<EkId, 1, MAX_OTHER_EKS>;

/// `MIN` to `MAX` elements, encoded as a CBOR array.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct List<T, const MIN: usize, const MAX: usize>(Vec<T>);

impl<T, const MIN: usize, const MAX: usize> TryFrom<Vec<T>> for List<T, MIN, MAX> {
    type Error = Limit;

    fn try_from(list: Vec<T>) -> Result<Self, Limit> {
        if (MIN..=MAX).contains(&list.len()) {
            Ok(Self(list))
        } else {
            Err(Limit { length: list.len(), limit: MAX })
        }
    }
}

impl<T, const MIN: usize, const MAX: usize> Deref for List<T, MIN, MAX> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<C, T: Encode<C>, const MIN: usize, const MAX: usize> Encode<C> for List<T, MIN, MAX> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        self.0.encode(e, context)
    }
}

impl<'b, C, T: Decode<'b, ()>, const MIN: usize, const MAX: usize> Decode<'b, C>
    for List<T, MIN, MAX>
{
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        // One element above the limit is enough to refuse the list.
        let list = d.array_iter()?.take(MAX + 1).collect::<Result<Vec<T>, _>>()?;
        list.try_into().map_err(|limit: Limit| minicbor::decode::Error::message(limit).at(at))
    }
}
