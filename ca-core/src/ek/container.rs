//! Takes certificates and keys out of the formats in which tools, mails and TPMs wrap them.

use data_encoding::BASE64_NOPAD;
use rustls_pki_types::CertificateDer;

use crate::der::{Reader, tag};
use crate::oid;
use crate::x509::parse_certificate;

/// The certificates in a file: in PEM, DER, PKCS #7, or one of these in base64; one after the
/// other, or with padding.
///
/// # Errors
/// The file holds no certificate, or something that is labelled as one of these formats and is not.
pub fn certificates_in(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, ContainerError> {
    let mut found = Vec::new();
    for item in unwrap(file)? {
        if let Item::Certificate(der) = item.item {
            found.push(CertificateDer::from(der));
        }
    }
    if found.is_empty() { Err(ContainerError::NoCertificate) } else { Ok(found) }
}

/// One item of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unwrapped {
    pub(crate) around: Around,
    pub(crate) item: Item,
}

/// The format around an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Around {
    Nothing,
    Pem,
    Pkcs7,
    /// The answer of Intel's service.
    Json,
    /// A certificate in DER, then the rest of an area of NV memory that is longer.
    Padding,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A certificate, or data with that label.
    Certificate(Vec<u8>),
    /// A SubjectPublicKeyInfo, or data with that label.
    PublicKey(Vec<u8>),
    /// An RSAPublicKey (RFC 8017, appendix A.1.1).
    RsaPublicKey(Vec<u8>),
    /// Anything else. It may be a TPM structure.
    Other(Vec<u8>),
}

/// Why nothing can be taken out of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum ContainerError {
    #[error("it holds no certificate in PEM, DER, PKCS #7 or base64")]
    NoCertificate,
    #[error("it is a PEM file with a block that is not base64, or that has no end")]
    BrokenPem,
    #[error("it is a PEM file with {0:?}, but without a certificate or a public key")]
    OtherPem(String),
    #[error("it is JSON without a member `certificate` that is a certificate in base64 or PEM")]
    Json,
}

/// Takes a file apart.
pub(crate) fn unwrap(file: &[u8]) -> Result<Vec<Unwrapped>, ContainerError> {
    let Some(text) = text_of(file) else { return Ok(unwrap_binary(file)) };
    if text.trim_start().starts_with('{') {
        return unwrap_json(&text);
    }
    if text.contains(PEM_BEGIN) {
        return unwrap_pem(&text);
    }
    // No binary format consists of base64 characters only.
    Ok(unwrap_binary(&decode_base64(&text).unwrap_or_else(|| file.to_vec())))
}

/// The text of a file in UTF-8, or in UTF-16 as Windows writes it, without a byte order mark.
/// `None` if the file is not text.
fn text_of(file: &[u8]) -> Option<String> {
    let utf16 = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, []) = rest.as_chunks::<2>() else { return None };
        String::from_utf16(&units.iter().copied().map(unit).collect::<Vec<_>>()).ok()
    };
    match file {
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [b'-' | b'M', 0, ..] => utf16(file, u16::from_le_bytes),
        [0, b'-' | b'M', ..] => utf16(file, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] | rest => String::from_utf8(rest.to_vec()).ok(),
    }
}

/// Every block of a PEM file (RFC 7468, but lenient): blocks may be indented, on one line, with
/// headers, or with text around them.
fn unwrap_pem(text: &str) -> Result<Vec<Unwrapped>, ContainerError> {
    let (mut found, mut other, mut rest) = (Vec::new(), None, text);
    while let Some((_, block)) = rest.split_once(PEM_BEGIN) {
        let (label, block) = block.split_once(PEM_DASHES).ok_or(ContainerError::BrokenPem)?;
        let (body, after) = block.split_once(PEM_END).ok_or(ContainerError::BrokenPem)?;
        rest = after;
        let content = || {
            // RFC 1421 has headers, e.g. `Proc-Type: 4,ENCRYPTED`.
            let body: String = body.lines().filter(|line| !line.contains(':')).collect();
            decode_base64(&body).ok_or(ContainerError::BrokenPem)
        };
        let item = match label.trim() {
            "CERTIFICATE" | "X509 CERTIFICATE" => Item::Certificate(content()?),
            // OpenSSL's own format. After the certificate it says what the certificate is trusted
            // for.
            "TRUSTED CERTIFICATE" => Item::Certificate(first_element(&content()?).to_vec()),
            "PUBLIC KEY" => Item::PublicKey(content()?),
            "RSA PUBLIC KEY" => Item::RsaPublicKey(content()?),
            "PKCS7" | "CMS" | "PKCS #7 SIGNED DATA" => {
                let certificates = pkcs7(&content()?).ok_or(ContainerError::BrokenPem)?;
                found.extend(
                    certificates.into_iter().map(|item| Unwrapped { around: Around::Pkcs7, item }),
                );
                continue;
            }
            label => {
                other.get_or_insert_with(|| label.chars().take(MAX_LABEL).collect());
                continue;
            }
        };
        found.push(Unwrapped { around: Around::Pem, item });
    }
    match other {
        Some(label) if found.is_empty() => Err(ContainerError::OtherPem(label)),
        _ => Ok(found),
    }
}

/// The answer of Intel's EK certificate service: `certificate` in base64url, whose padding may be
/// percent-encoded.
fn unwrap_json(text: &str) -> Result<Vec<Unwrapped>, ContainerError> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|_| ContainerError::Json)?;
    let certificate = value["certificate"].as_str().ok_or(ContainerError::Json)?;
    let certificates = match certificate.contains(PEM_BEGIN) {
        true => unwrap_pem(certificate)?,
        false => unwrap_binary(&decode_base64(certificate).ok_or(ContainerError::Json)?),
    };
    let is_certificate = |found: &Unwrapped| matches!(found.item, Item::Certificate(_));
    let found: Vec<_> = certificates.into_iter().filter(is_certificate).collect();
    if found.is_empty() {
        return Err(ContainerError::Json);
    }
    Ok(found
        .into_iter()
        .map(|Unwrapped { item, .. }| Unwrapped { around: Around::Json, item })
        .collect())
}

fn unwrap_binary(file: &[u8]) -> Vec<Unwrapped> {
    let first = first_element(file);
    if parse_certificate(first).is_some() {
        return unwrap_certificates(file);
    }
    if let Some(certificates) = pkcs7(first) {
        return certificates
            .into_iter()
            .map(|item| Unwrapped { around: Around::Pkcs7, item })
            .collect();
    }
    let item = match file {
        [tag::SEQUENCE, ..] if is_rsa_public_key(file) => Item::RsaPublicKey(file.to_vec()),
        [tag::SEQUENCE, ..] => Item::PublicKey(file.to_vec()),
        _ => Item::Other(file.to_vec()),
    };
    vec![Unwrapped { around: Around::Nothing, item }]
}

/// Certificates one after the other. Anything that follows is padding: a TPM's NV area may be
/// longer than its certificate, and hold older data.
fn unwrap_certificates(file: &[u8]) -> Vec<Unwrapped> {
    let (mut found, mut rest) = (Vec::new(), file);
    while !rest.is_empty() {
        let certificate = first_element(rest);
        if parse_certificate(certificate).is_none() {
            break;
        }
        rest = &rest[certificate.len()..];
        found.push(Item::Certificate(certificate.to_vec()));
    }
    let around = if rest.is_empty() { Around::Nothing } else { Around::Padding };
    found.into_iter().map(|item| Unwrapped { around, item }).collect()
}

/// The certificates of a SignedData (RFC 5652 §5.1). A bundle of certificates has nothing else in
/// it.
fn pkcs7(der: &[u8]) -> Option<Vec<Item>> {
    let mut content = Reader::new(Reader::only(tag::SEQUENCE, der)?);
    if content.take(tag::OID)? != oid::SIGNED_DATA {
        return None;
    }
    let mut signed = Reader::new(Reader::only(tag::SEQUENCE, content.take(tag::CONTEXT_0)?)?);
    // Version, digest algorithms, signed content.
    for _ in 0..3 {
        signed.next()?;
    }
    let (mut list, mut certificates) = (Reader::new(signed.take(tag::CONTEXT_0)?), Vec::new());
    while let Some(element) = list.next() {
        // Other tags are for attribute certificates and the like.
        if element.tag == tag::SEQUENCE {
            certificates.push(Item::Certificate(element.whole.to_vec()));
        }
    }
    Some(certificates)
}

/// A SEQUENCE of two INTEGERs.
fn is_rsa_public_key(der: &[u8]) -> bool {
    let Some(content) = Reader::only(tag::SEQUENCE, der) else { return false };
    let mut fields = Reader::new(content);
    fields.take(tag::INTEGER).is_some() && fields.take(tag::INTEGER).is_some() && fields.is_empty()
}

/// The first element, or all bytes if they do not begin with an element.
fn first_element(bytes: &[u8]) -> &[u8] {
    Reader::new(bytes).next().map_or(bytes, |element| element.whole)
}

/// Base64 or base64url (RFC 4648 §4 and §5), with or without padding and line breaks. `None` for
/// anything else, and for empty data.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text: String = text.replace("%3D", "=").split_whitespace().collect();
    let text = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    BASE64_NOPAD.decode(text.as_bytes()).ok().filter(|decoded| !decoded.is_empty())
}

const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_END: &str = "-----END ";
const PEM_DASHES: &str = "-----";
/// The most characters of a PEM label that are shown to people. The longest label in use has 30.
const MAX_LABEL: usize = 40;
