//! Agreement with tpm2-tools, swtpm and OpenSSL; see `tests/golden/README.md`.

use assay_ca_core::key::PublicKey;
use assay_ca_core::tpm::credential::{Credential, make_credential};
use assay_ca_core::tpm::kdf::Hash;
use assay_ca_core::tpm::public::{AreaKey, Name, PublicArea};
use assay_ca_core::tpm::template::{EkArea, IkArea, ParentArea, ParentKind};
use assay_ca_core::{Assurance, TrustedEk};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::fixture::*;

const EKS: [(&str, &str, Hash, usize); 4] = [
    ("rsa2048", "EK L-1 (RSA-2048)", Hash::Sha256, 16),
    ("p256", "EK L-2 (P-256)", Hash::Sha256, 16),
    ("p384", "EK H-3 (P-384)", Hash::Sha384, 32),
    ("rsa3072", "EK H-6 (RSA-3072)", Hash::Sha384, 32),
];
const PARENTS: [(&str, &str, ParentKind); 4] = [
    ("parent-rsa2048", "import parent RSA-2048", ParentKind::Import),
    ("parent-p256", "import parent P-256", ParentKind::Import),
    ("srk-rsa2048", "SRK RSA-2048", ParentKind::PlainSrk),
    ("srk-p256", "SRK P-256", ParentKind::PlainSrk),
];
const IKS: [(&str, &str); 3] =
    [("p256", "IK P-256"), ("p384", "IK P-384"), ("rsa2048", "IK RSA-2048")];

#[test]
fn areas_read_and_write_back() {
    let eks = EKS.iter().map(|(kind, ..)| format!("ek-{kind}.tpm2b"));
    let iks = IKS.iter().map(|(kind, _)| format!("ik-{kind}.tpm2b"));
    let parents = PARENTS.iter().map(|(file, ..)| format!("{file}.tpm2b"));
    for file in eks.chain(iks).chain(parents) {
        let sized = golden(&file);
        let area = PublicArea::parse(&sized[2..]).unwrap();
        assert_eq!(area.encode(), sized[2..], "{file}");
        assert_eq!(area.encode_sized(), sized, "{file}");
    }
}

#[test]
fn names_are_those_the_tpm_computes() {
    for (kind, template) in IKS {
        let ik = IkArea::recognise(&golden_area(&format!("ik-{kind}"))).unwrap();
        assert_eq!(ik.template(), template);
        assert_eq!(ik.name().as_ref(), golden(&format!("ik-{kind}.name")));
    }
}

#[test]
fn parents_of_swtpm_are_on_template_and_have_the_names_the_tpm_computes() {
    for (file, template, kind) in PARENTS {
        let parent = ParentArea::recognise(&golden_area(file)).unwrap();
        assert_eq!((parent.template(), parent.kind()), (template, kind));
        assert_eq!((parent.hash(), parent.aes_key_bytes()), (Hash::Sha256, 16));
        assert_eq!(parent.name().as_ref(), golden(&format!("{file}.name")));
        assert_eq!(*parent.key(), golden_area(file).public_key().unwrap());
    }
}

#[test]
fn eks_of_swtpm_are_on_template() {
    for (kind, template, hash, aes_key_bytes) in EKS {
        for origin in ["ek", "software"] {
            let ek = EkArea::recognise(&golden_area(&format!("{origin}-{kind}"))).unwrap();
            assert_eq!(
                (ek.template(), ek.hash(), ek.aes_key_bytes()),
                (template, hash, aes_key_bytes)
            );
        }
    }
}

#[test]
fn eks_of_the_high_range_are_on_template() {
    for (kind, template) in [("rsa2048", "EK H-1 (RSA-2048)"), ("p256", "EK H-2 (P-256)")] {
        let area = on_high_range(golden_area(&format!("ek-{kind}")));
        assert_eq!(EkArea::recognise(&area).unwrap().template(), template);
    }
}

#[test]
fn credentials_of_tpm2_tools_open() {
    let name = Name::of(Hash::Sha256, &golden_area("ik-p256").encode());
    for (kind, ..) in EKS {
        let file = golden(&format!("software-{kind}.credential"));
        let (header, body) = file.split_at(8);
        assert_eq!(header, [0xBA, 0xDC, 0xC0, 0xDE, 0, 0, 0, 1]);
        let (id_object, seed) =
            body[2..].split_at(usize::from(u16::from_be_bytes([body[0], body[1]])));
        let credential =
            Credential { id_object: id_object.to_vec(), encrypted_seed: seed[2..].to_vec() };
        assert_eq!(
            SoftwareEk::golden(kind).activate(&name, &credential),
            Some(golden("secret")),
            "{kind}"
        );
    }
}

/// The code that opens tpm2-tools' credentials opens ours too, so every length is right.
#[test]
fn our_credentials_open_for_their_name_only() {
    let mut rng = CountingRng::new();
    let name = Name::of(Hash::Sha256, &golden_area("ik-p256").encode());
    let other = Name::of(Hash::Sha256, &golden_area("ik-p384").encode());
    let secret = golden("secret");
    for (kind, ..) in EKS {
        let software = SoftwareEk::golden(kind);
        let ek = EkArea::recognise(&software.area).unwrap();
        let credential = make_credential(&ek, &name, &secret, &mut rng).unwrap();
        let theirs = golden(&format!("software-{kind}.credential")).len();
        assert_eq!(
            12 + credential.id_object.len() + credential.encrypted_seed.len(),
            theirs,
            "{kind}"
        );
        assert_eq!(software.activate(&name, &credential).as_ref(), Some(&secret), "{kind}");
        assert_eq!(software.activate(&other, &credential), None, "{kind}");
        let again = make_credential(&ek, &name, &secret, &mut rng).unwrap();
        assert_ne!(credential, again, "seeds are fresh");
    }
}

/// One key in 256 has a short coordinate. Code that strips its zeros would fail for such devices
/// only.
#[test]
fn coordinates_with_leading_zeros_keep_their_width() {
    let mut rng = CountingRng::new();
    let name = Name::of(Hash::Sha256, &golden_area("ik-p256").encode());
    let ek = std::iter::repeat_with(SoftwareEk::fresh)
        .find(|ek| matches!(&ek.area.key, AreaKey::Ecc { x, .. } if x[0] == 0))
        .unwrap();
    let area = EkArea::recognise(&ek.area).unwrap();
    // In some of these, the ephemeral key or the agreed value has a leading zero, too.
    for _ in 0..1000 {
        let credential = make_credential(&area, &name, b"secret", &mut rng).unwrap();
        assert_eq!(ek.activate(&name, &credential).as_deref(), Some(&b"secret"[..]));
    }
    assert_eq!(PublicKey::from_spki(&ek.key().spki()).unwrap(), ek.key());
}

#[test]
fn certificates_of_swtpm_are_trusted() {
    let pem = |file| CertificateDer::from_pem_slice(&golden(file)).unwrap().into_owned();
    let anchors = trusting([pem("vendor-issuer.pem"), pem("vendor-root.pem")]);
    for kind in ["rsa2048", "p384"] {
        let mut device = Device::of(&Vendor::new("unused"));
        device.ek.area = golden_area(&format!("ek-{kind}"));
        device.ek_certificates = vec![golden(&format!("ek-{kind}.der")).into()];
        let ek = TrustedEk::verify(&device.evidence().ek, &anchors, None, now()).unwrap();
        assert_eq!(ek.assurance(), Assurance::VendorCertificate);
    }
}

/// `openssl pkey -in software-p256.pem -pubout -outform der | sha256sum`, and the same for the
/// others.
#[test]
fn ek_ids_are_what_openssl_hashes() {
    for (kind, ..) in EKS {
        let pem = golden(&format!("software-{kind}.pem"));
        let key = rcgen::KeyPair::from_pem(std::str::from_utf8(&pem).unwrap()).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert_eq!(SoftwareEk::golden(kind).key().spki(), spki, "{kind}");
    }
}
