//! Certificates that a stranger sends to cost a CA as much as possible, and honest ones to compare
//! with.

use assay_ca_core::{TrustAnchors, TrustedEk};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;

use super::Kind;
use super::fixture::*;

/// Requests with the same number of certificates: an honest one, and hostile ones by kind of
/// attempt.
pub(crate) struct Requests {
    pub(crate) certificates: usize,
    anchors: TrustAnchors,
    honest: Device,
    hostile: Vec<(&'static str, Device)>,
}

impl Requests {
    pub(crate) fn new(kind: Kind, certificates: usize) -> Self {
        let root = Ca::new(kind, "Acme Root");
        let chain: Vec<_> =
            (1..certificates).map(|level| Ca::new(kind, &format!("Acme CA {level}"))).collect();
        let issuers = chain
            .iter()
            .zip([&root].into_iter().chain(&chain))
            .map(|(ca, above)| ca.certified_by(above, vec![]));
        let mut honest_chain: Vec<_> = issuers.collect();
        honest_chain.reverse();
        let honest = Self::device(chain.last().unwrap_or(&root), honest_chain);
        let impostor = Ca::new(kind, "Acme Root");
        let hostile = vec![
            (
                "junk of the root's name",
                Self::device(&impostor, Self::junk(kind, certificates - 1, &[])),
            ),
            (
                "junk with many alternative names",
                Self::device(&impostor, Self::junk(kind, certificates - 1, &alternative_names())),
            ),
            (
                "junk with 4 KiB of policies",
                Self::device(&impostor, Self::junk(kind, certificates - 1, &policies())),
            ),
            ("junk with long names", Self::long_names(kind, certificates - 1)),
            ("junk that might issue each other", Self::mesh(kind, certificates - 1)),
        ];
        Self { certificates, anchors: trusting([root.root()]), honest, hostile }
    }

    pub(crate) fn honest(&self) -> usize {
        TrustedEk::verify(&self.honest.evidence().ek, &self.anchors, None, now())
            .unwrap()
            .template()
            .len()
    }

    pub(crate) fn hostile(&self) -> impl Iterator<Item = (&'static str, impl Fn() -> usize)> {
        self.hostile.iter().map(|(name, device)| {
            let run = || {
                TrustedEk::verify(&device.evidence().ek, &self.anchors, None, now())
                    .unwrap_err()
                    .to_string()
                    .len()
            };
            (*name, run)
        })
    }

    fn device(issuer: &Ca, issuers: Vec<CertificateDer<'static>>) -> Device {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        // Without a key identifier, every certificate with the right name may be the issuer's.
        let leaf = certify_ek(&device.ek.key(), &issuer.issuer, |params| {
            params.use_authority_key_identifier_extension = false
        });
        device.ek_certificates = [leaf].into_iter().chain(issuers).collect();
        device
    }

    /// CAs with the root's name, each with its own key.
    fn junk(
        kind: Kind,
        count: usize,
        extensions: &[CustomExtension],
    ) -> Vec<CertificateDer<'static>> {
        let other = Ca::new(kind, "Other");
        (0..count)
            .map(|_| Ca::new(kind, "Acme Root").certified_by(&other, extensions.to_vec()))
            .collect()
    }

    /// CAs whose names have the greatest length, in an alphabet whose case is slow to fold.
    fn long_names(kind: Kind, count: usize) -> Device {
        let name = "Ä".repeat(480);
        let (other, issuer) =
            (Ca::new(kind, &"Ö".repeat(480)), Ca::new(kind, &name.to_lowercase()));
        let sent = (0..count).map(|_| Ca::new(kind, &name).certified_by(&other, vec![])).collect();
        Self::device(&issuer, sent)
    }

    /// CAs with two names. Each may be the issuer of every CA with the other name.
    fn mesh(kind: Kind, count: usize) -> Device {
        let cas: Vec<_> = (0..count).map(|at| Ca::new(kind, ["A", "B"][at % 2])).collect();
        let sent =
            cas.iter().enumerate().map(|(at, ca)| ca.certified_by(&cas[(at + 1) % count], vec![]));
        let sent: Vec<_> = sent.collect();
        let nobody = Ca::new(kind, "A");
        Self::device(cas.last().unwrap_or(&nobody), sent)
    }
}

struct Ca {
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(kind: Kind, name: &str) -> Self {
        Self { name: name.to_owned(), issuer: Issuer::new(params(name), kind.new_key()) }
    }

    fn root(&self) -> CertificateDer<'static> {
        params(&self.name).self_signed(self.issuer.key()).unwrap().into()
    }

    fn certified_by(
        &self,
        issuer: &Self,
        extensions: Vec<CustomExtension>,
    ) -> CertificateDer<'static> {
        let mut params = params(&self.name);
        params.custom_extensions = extensions;
        params.signed_by(self.issuer.key(), &issuer.issuer).unwrap().into()
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Directory names that take long to compare, in most of the 4 KiB of a certificate
/// (`assay_wire::MAX_CERTIFICATE`).
fn alternative_names() -> Vec<CustomExtension> {
    let text = "Ä".repeat(40);
    let attribute = [
        &[0x30, 2 + 5 + text.len() as u8][..],
        &[6, 3, 0x55, 4, 3],
        &[0x0C, text.len() as u8],
        text.as_bytes(),
    ]
    .concat();
    let names: Vec<_> =
        (0..30).flat_map(|_| nested(&[0xA4, 0x30, 0x31], attribute.clone())).collect();
    extension(&[2, 5, 29, 17], &names)
}

/// More policies than any vendor uses.
fn policies() -> Vec<CustomExtension> {
    let policy = |number: u16| {
        [&[0x30, 6, 6, 4, 0x2A, 3][..], &[0x80 | (number >> 7) as u8, (number & 0x7F) as u8]]
            .concat()
    };
    extension(&[2, 5, 29, 32], &(0..380).flat_map(policy).collect::<Vec<_>>())
}

/// Nested elements of less than 128 bytes, the outermost tag first.
fn nested(tags: &[u8], content: Vec<u8>) -> Vec<u8> {
    tags.iter()
        .rev()
        .fold(content, |content, tag| [&[*tag, content.len() as u8][..], &content].concat())
}

fn extension(id: &[u64], list: &[u8]) -> Vec<CustomExtension> {
    let length = u16::try_from(list.len()).unwrap().to_be_bytes();
    vec![CustomExtension::from_oid_content(id, [&[0x30, 0x82], &length[..], list].concat())]
}
