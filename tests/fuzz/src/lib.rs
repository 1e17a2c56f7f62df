//! What must hold for any bytes: one function for each fuzz target.
//!
//! Each function panics if it does not hold. `tests/seeds.rs` plays the seeds on every toolchain.

use std::sync::LazyLock;

use assay_ca_core::key::SoundKey;
use assay_ca_core::tpm::public::PublicArea;
use assay_ca_core::tpm::template::{EkArea, IkArea, ParentArea};
use assay_ca_core::{
    AuthenticatedDevice, EkIdentity, MasterSecret, ParentEvidence, Profile, Token, TrustAnchors,
    TrustedEk, VendorCertificate, certificates_in,
};
use assay_pair::{Op, play};
use assay_server::ek_list::{Defaults, read_csv};
use assay_wire::{
    Configuration, ConfigurationNews, EkPublic, Flow, Head, MAX_CERTIFICATES, ParentBundle, Reply,
    Request, SealedCertificate, SignedConfiguration,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

/// A message that is accepted is the only encoding of its content.
pub fn wire(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        assert_eq!(request.encode(), bytes);
        let head = Head::read(bytes).expect("a request has a head");
        assert_eq!(head.id(), request.id);
        assert_eq!(Request::decode_after(&head, bytes), Ok(request));
    }
    if let Ok(reply) = Reply::decode(bytes) {
        assert_eq!(reply.encode(), bytes);
    }
    if let Ok(sealed) = SealedCertificate::decode(bytes) {
        assert_eq!(sealed.encode(), bytes);
    }
    if let Ok(signed) = SignedConfiguration::decode(bytes) {
        assert_eq!(signed.encode(), bytes);
    }
    if let Ok(configuration) = Configuration::decode(bytes) {
        assert_eq!(configuration.encode(), bytes);
    }
    if let Ok(news) = ConfigurationNews::decode(bytes) {
        assert_eq!(news.encode(), bytes);
    }
}

/// An EK is trusted only if a trusted vendor signed its certificate. The bytes are certificates one
/// after the other, leaf first.
pub fn ek_certificate(bytes: &[u8]) {
    let chain: Vec<_> = elements(bytes).take(MAX_CERTIFICATES).collect();
    let Ok(certificates) = chain.iter().map(|der| (*der).try_into()).collect::<Result<Vec<_>, _>>()
    else {
        return;
    };
    let Ok(ek_certificates) = certificates.try_into() else { return };
    // The NV indices of the templates L-1, L-2, H-3 and H-6.
    for index in [0x01C0_0002, 0x01C0_000A, 0x01C0_0016, 0x01C0_001C] {
        let bundle = ParentBundle {
            device_id: None,
            ek_public: EkPublic::OfCertificate(index),
            ek_certificates: Clone::clone(&ek_certificates),
            parent_public: PARENT[2..].try_into().expect("a public area"),
            other_eks: None,
        };
        let Ok(evidence) = ParentEvidence::parse(bundle) else { continue };
        if TrustedEk::verify(&evidence.ek, &ANCHORS, None, now()).is_ok() {
            let ours = EK_CERTIFICATES.iter().any(|known| certifies(known, chain[0]));
            assert!(ours, "an EK is trusted by a certificate that the vendor did not sign");
        }
    }
}

/// Whether both certificates have the same signed part. The whole certificates may differ, because
/// an ECDSA signature can be written in more than one way.
fn certifies(known: &[u8], der: &[u8]) -> bool {
    // The signed part is the first element of the outer sequence (RFC 5280 §4.1.1.1).
    let signed = |certificate| elements(elements_within(certificate)?).next().map(<[u8]>::to_vec);
    signed(known).is_some() && signed(known) == signed(der)
}

/// Reading a file of any form ends with an EK or an error.
pub fn ek_file(bytes: &[u8]) {
    if let Ok((_, identity)) = EkIdentity::recognise(bytes) {
        _ = identity.of_azure_sdk();
    }
    for certificate in certificates_in(bytes).unwrap_or_default() {
        _ = VendorCertificate::read(&certificate);
    }
}

/// A public area that is accepted is the only encoding of its content. It is at most one of an EK,
/// an IK and a parent.
pub fn public_area(bytes: &[u8]) {
    // Files have the size field of a TPM2B before the public area.
    for bytes in [Some(bytes), bytes.get(2..)].into_iter().flatten() {
        let Ok(area) = PublicArea::parse(bytes) else { continue };
        assert_eq!(area.encode(), bytes);
        if let Ok(key) = area.public_key() {
            _ = SoundKey::new(key);
        }
        let kinds = [
            EkArea::recognise(&area).is_ok(),
            IkArea::recognise(&area).is_ok(),
            ParentArea::recognise(&area).is_ok(),
        ];
        assert!(kinds.iter().filter(|is_one| **is_one).count() <= 1, "{kinds:?}");
    }
}

/// Reading a list of EKs ends, and each entry is reported to the callback.
pub fn ek_list(bytes: &[u8]) {
    let (reprovision, legacy_dps_ek, plain_srk) = (None, None, None);
    let defaults = Defaults { reprovision, legacy_dps_ek, plain_srk, added_at: now() };
    let mut count = 0;
    let entries = read_csv(bytes, defaults, |_| count += 1);
    if let Ok(entries) = entries {
        assert!(entries.len() <= count, "each entry is reported");
    }
}

/// No invented token lets anybody in. The bytes are the user name, a line feed, and the password.
pub fn token(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(user), Some(password)) = (parts.next(), parts.next()) else { return };
    let Ok(user) = std::str::from_utf8(user) else { return };
    let Ok(token) = Token::parse(user, password) else { return };
    assert_eq!(token.device_id().as_str(), user);
    let profile = Profile::default().with_flows(Flow::ALL.to_vec()).expect("there are flows");
    let offered = profile.offer().expect("all are offered");
    let (scope, master) = ("default".parse().expect("a scope"), MasterSecret::new([7; 32]).into());
    let device =
        AuthenticatedDevice::verify(offered, token, &scope, &master, [9; 32].into(), &[1], now());
    assert!(device.is_err(), "a signature without the key");
}

/// The rules of `assay-pair` hold in any sequence.
pub fn sequences(bytes: &[u8]) {
    if let Err(broken) = play(&Op::sequence(bytes)) {
        panic!("{broken}");
    }
}

/// DER elements one after the other, up to the first that is not whole.
fn elements(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (header, length) = header(bytes)?;
        let (element, rest) = bytes.split_at_checked(header.checked_add(length)?)?;
        bytes = rest;
        Some(element)
    })
}

/// The contents of the first element.
fn elements_within(bytes: &[u8]) -> Option<&[u8]> {
    let (header, length) = header(bytes)?;
    bytes.get(header..header.checked_add(length)?)
}

/// The lengths of an element's header and of its contents.
fn header(bytes: &[u8]) -> Option<(usize, usize)> {
    let length = *bytes.get(1)?;
    let Some(more) = length.checked_sub(0x80) else { return Some((2, length.into())) };
    let more = usize::from(more);
    let length = bytes.get(2..2 + more).filter(|_| (1..=4).contains(&more))?;
    Some((2 + more, length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))))
}

/// A moment at which the vendor's certificates are valid.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time")
}

/// A file of the CA's own tests. Their directory describes it.
macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../ca-core/tests/golden/", $name))
    };
}

static PARENT: &[u8] = golden!("parent-p256.tpm2b");
static EK_CERTIFICATES: [&[u8]; 2] = [golden!("ek-p384.der"), golden!("ek-rsa2048.der")];
static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(|| {
    let files: [&[u8]; 2] = [golden!("vendor-root.pem"), golden!("vendor-issuer.pem")];
    TrustAnchors::new(files.map(|pem| {
        let der = CertificateDer::from_pem_slice(pem).expect("a certificate");
        VendorCertificate::read(&der).expect("a vendor's certificate")
    }))
});
