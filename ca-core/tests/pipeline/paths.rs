//! Which certificate paths lead from an EK to a trusted vendor (RFC 5280 §6.1), and what the CA
//! tells people about the others.

use assay_ca_core::{
    Allowances, AnchorError, EkCheck, Rejection, TrustAnchors, VendorCertificate, VendorPath,
};
use assay_wire::ProblemCode;
use rustls_pki_types::CertificateDer;

use crate::fixture::*;
use crate::forge::*;

type Certificates = Vec<CertificateDer<'static>>;

/// A root, a CA below it, and the key of an EK.
struct Chain {
    root: Forger,
    issuer: Forger,
    root_certificate: Forged,
    issuer_certificate: Forged,
    ek_certificate: Forged,
}

impl Chain {
    fn new() -> Self {
        Self {
            root: Forger::new("Acme Root"),
            issuer: Forger::new("Acme EK CA"),
            root_certificate: Forged::ca(),
            issuer_certificate: Forged::ca(),
            ek_certificate: Forged::ek(),
        }
    }

    fn root(mut self, change: impl FnOnce(Forged) -> Forged) -> Self {
        self.root_certificate = change(self.root_certificate);
        self
    }

    fn issuer(mut self, change: impl FnOnce(Forged) -> Forged) -> Self {
        self.issuer_certificate = change(self.issuer_certificate);
        self
    }

    fn ek(mut self, change: impl FnOnce(Forged) -> Forged) -> Self {
        self.ek_certificate = change(self.ek_certificate);
        self
    }

    fn anchors(&self) -> TrustAnchors {
        trusting([self.root.certified_by(&self.root, self.root_certificate.clone())])
    }

    /// The EK's certificate and that of its issuer.
    fn certificates(&self) -> Certificates {
        vec![
            self.issuer.certify(&self.ek_certificate, &ek_spki()),
            self.issuer.certified_by(&self.root, self.issuer_certificate.clone()),
        ]
    }

    fn check(&self) -> Result<VendorPath, Rejection> {
        check(&self.certificates(), &self.anchors())
    }

    /// The text for a path that is refused.
    fn refused(&self) -> String {
        let said = self.check().unwrap_err().to_string();
        assert_is_for_people(&said);
        said
    }
}

fn ek_spki() -> Vec<u8> {
    SoftwareEk::golden("p256").key().spki()
}

fn check(
    certificates: &[CertificateDer<'static>],
    anchors: &TrustAnchors,
) -> Result<VendorPath, Rejection> {
    EkCheck::of(certificates, anchors, now())?.path
}

/// The text must not name a library's internal states.
fn assert_is_for_people(said: &str) {
    for dump in ["Context", "Unix", "Error", "::", " {", "Some(", "Invalid", "[0", "Oid"] {
        assert!(!said.contains(dump), "{said}");
    }
    assert!(said.len() < 500 && said.contains(' ') && !said.contains('\n'), "{said}");
}

mod kinds {
    //! One test for each kind of real certificate that used to be refused.
    use super::*;

    /// Kind A: Infineon, Nuvoton, NSING and STMicroelectronics have such roots.
    #[test]
    fn every_accepted_algorithm_may_sign_at_any_place() {
        // Algorithms with which this library cannot sign are tested in the module itself.
        let ecdsa = [(256, 256), (384, 384), (521, 256), (521, 384), (521, 512)]
            .map(|(curve, hash)| Algorithm::Ecdsa(curve, hash));
        let rsa = [Padding::Pkcs1, Padding::Pss]
            .into_iter()
            .flat_map(|padding| [256, 384, 512].map(|hash| Algorithm::Rsa(padding, hash)));
        for algorithm in ecdsa.into_iter().chain(rsa) {
            let root = Forger::with_key("Acme Root", algorithm);
            Chain { root, ..Chain::new() }
                .check()
                .unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
            let issuer = Forger::with_key("Acme EK CA", algorithm);
            Chain { issuer, ..Chain::new() }
                .check()
                .unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        }
    }

    /// Kind B: every issuing CA of STMicroelectronics, and Intel's before ODCA.
    #[test]
    fn an_issuer_may_have_critical_policies_and_a_critical_usage_for_eks() {
        for policy in [ANY_POLICY, &[0x2A, 3]] {
            for usage in [EK_USAGE, ANY_USAGE] {
                let change = |ca: Forged| {
                    ca.with(policies(true, &[policy])).with(extended_key_usage(true, &[usage]))
                };
                Chain::new().issuer(change).check().unwrap();
            }
        }
    }

    /// Kind C: AMD's.
    #[test]
    fn an_issuers_name_may_be_of_another_string_type_case_and_spacing() {
        let chain = Chain::new();
        for other in
            [name_of(&[(3, PRINTABLE, "Acme EK CA")]), name_of(&[(3, UTF8, "ACME  EK CA ")])]
        {
            let issuer = Forger { name: other, key: Key::of(Algorithm::Ecdsa(256, 256)) };
            let certified = chain.root.certify(
                &Forged { subject: common_name("Acme EK CA"), ..Forged::ca() },
                &issuer.key.spki(),
            );
            check(&[issuer.certify(&Forged::ek(), &ek_spki()), certified], &chain.anchors())
                .unwrap();
        }
    }

    /// Kind D: Google Compute Engine's, and some makers' of firmware TPMs.
    #[test]
    fn what_an_ek_certificate_lacks_is_allowed_by_its_anchor_alone() {
        let chain = Chain::new();
        let bare = Forged { subject: common_name("instance 7"), ..Forged::ca() }
            .without(&[0x55, 0x1D, 19])
            .with(key_usage(0x20));
        let without_attributes = Forged::ek().without(&[0x55, 0x1D, 17]);
        let issuer = chain.issuer.certified_by(&chain.root, Forged::ca());
        let anchor = |allowances: &str| {
            let root = VendorCertificate::read(&chain.root.root()).unwrap();
            TrustAnchors::new([
                root,
                VendorCertificate::read_anchor(&issuer, allowances.parse().unwrap()).unwrap(),
            ])
        };
        for (certificate, needed) in
            [(&bare, "ek-usage,tpm-attributes"), (&without_attributes, "tpm-attributes")]
        {
            let certificate = [chain.issuer.certify(certificate, &ek_spki())];
            for allowed in ["", "ek-usage", "tpm-attributes", "ek-usage,tpm-attributes"] {
                let checked = check(&certificate, &anchor(allowed));
                let is_enough = needed.split(',').all(|name| allowed.contains(name));
                assert_eq!(checked.is_ok(), is_enough, "{needed} {allowed}: {checked:?}");
            }
        }
        // An allowance for another vendor does not apply here.
        let other = Forger::new("Other");
        let all = Allowances { ek_usage: true, tpm_attributes: true };
        let anchors = TrustAnchors::new([
            VendorCertificate::read(&chain.root.root()).unwrap(),
            VendorCertificate::read_anchor(&other.root(), all).unwrap(),
        ]);
        let sent = [chain.issuer.certify(&bare, &ek_spki()), issuer];
        assert_eq!(check(&sent, &anchors).unwrap_err().code(), ProblemCode::EkCertificateInvalid);
    }

    /// A usage for something else is not a missing usage.
    #[test]
    fn an_allowance_does_not_make_a_server_certificate_an_eks() {
        let chain = Chain::new();
        let all = Allowances { ek_usage: true, tpm_attributes: true };
        let anchors =
            TrustAnchors::new([VendorCertificate::read_anchor(&chain.root.root(), all).unwrap()]);
        for usage in [SERVER_AUTH, ANY_USAGE] {
            let server = chain
                .root
                .certify(&Forged::ek().with(extended_key_usage(false, &[usage])), &ek_spki());
            assert_eq!(
                check(&[server], &anchors).unwrap_err().code(),
                ProblemCode::EkCertificateInvalid
            );
        }
    }

    /// Kind E: AMD's Pluton CA, and STMicroelectronics' root under GlobalSign's.
    #[test]
    fn a_ca_that_another_signed_can_be_an_anchor() {
        let chain = Chain::new();
        let issuer = chain.issuer.certified_by(&chain.root, Forged::ca());
        let ek = [chain.issuer.certify(&Forged::ek(), &ek_spki())];
        let as_issuer = TrustAnchors::new([VendorCertificate::read(&issuer).unwrap()]);
        assert_eq!(check(&ek, &as_issuer).unwrap_err().code(), ProblemCode::EkCertificateUntrusted);
        let as_anchor =
            TrustAnchors::new([
                VendorCertificate::read_anchor(&issuer, Allowances::default()).unwrap()
            ]);
        assert_eq!(check(&ek, &as_anchor).unwrap().issuers(), ["CN=Acme EK CA"]);
        // Other certificates that its own issuer signed are not trusted.
        let sibling = Forger::new("Acme other CA");
        let others = [
            sibling.certify(&Forged::ek(), &ek_spki()),
            sibling.certified_by(&chain.root, Forged::ca()),
        ];
        assert_eq!(
            check(&others, &as_anchor).unwrap_err().code(),
            ProblemCode::EkCertificateUntrusted
        );
    }

    /// Kind G: Nuvoton's NPCT6xx, and other certificates of that time.
    #[test]
    fn what_can_be_forged_is_refused_with_a_sentence() {
        let sha1 = tlv(0x30, &[oid(&[&RSA[..], &[5]].concat()), tlv(5, &[])].concat());
        let md5 = tlv(0x30, &[oid(&[&RSA[..], &[4]].concat()), tlv(5, &[])].concat());
        let ecdsa_sha1 = tlv(0x30, &oid(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01]));
        for (algorithm, name) in [(sha1, "SHA-1"), (md5, "MD5"), (ecdsa_sha1, "SHA-1")] {
            let chain = Chain::new();
            let forged = Forged { algorithm: Some(algorithm.clone()), ..Forged::ek() };
            let leaf =
                chain.issuer.sign(&chain.issuer.to_be_signed(&forged, &ek_spki()), &algorithm);
            let mut certificates = chain.certificates();
            certificates[0] = leaf.into();
            let said = check(&certificates, &chain.anchors()).unwrap_err().to_string();
            assert_is_for_people(&said);
            assert!(
                said.contains("the EK certificate is signed with") && said.contains(name),
                "{said}"
            );

            let forged = Forged {
                algorithm: Some(algorithm.clone()),
                subject: chain.root.name.clone(),
                ..Forged::ca()
            };
            let root = chain
                .root
                .sign(&chain.root.to_be_signed(&forged, &chain.root.key.spki()), &algorithm);
            let said = VendorCertificate::read(&root).unwrap_err().to_string();
            assert!(said.contains("CN=Acme Root is signed with") && said.contains(name), "{said}");
        }
    }

    #[test]
    fn keys_that_nobody_can_rely_on_are_refused_with_a_sentence() {
        let explicit_curve = tlv(0x30, &[oid(EC_PUBLIC_KEY), tlv(0x30, &tlv(2, &[1]))].concat());
        let rsa = |bits: usize, exponent: &[u8]| {
            let modulus = [&[0][..], &vec![0xC1; bits / 8]].concat();
            let key = tlv(0x30, &[tlv(2, &modulus), tlv(2, exponent)].concat());
            spki(&tlv(0x30, &[oid(&[&RSA[..], &[1]].concat()), tlv(5, &[])].concat()), &key)
        };
        let curve = tlv(0x30, &[oid(EC_PUBLIC_KEY), oid(&[0x2B, 0x81, 0x04, 0, 0x0A])].concat());
        let chain = Chain::new();
        for (key, reason) in [
            (spki(&explicit_curve, &[4; 65]), "spells out the parameters of its key's curve"),
            (spki(&curve, &[4; 65]), "1.3.132.0.10"),
            (rsa(1024, &[1, 0, 1]), "RSA key of 1024 bits"),
            (rsa(8192, &[1, 0, 1]), "RSA key of 8192 bits"),
            (rsa(2048, &[1, 0, 0, 0, 1]), "public exponent"),
            (rsa(2048, &[1]), "public exponent"),
        ] {
            let certificate =
                chain.root.certify(&Forged { subject: common_name("Odd"), ..Forged::ca() }, &key);
            let said = VendorCertificate::read(&certificate).unwrap_err().to_string();
            assert!(
                said.starts_with("CN=Odd has") | said.starts_with("CN=Odd spells")
                    && said.contains(reason),
                "{said}"
            );
            assert_is_for_people(&said);
            // It is no issuer either if a device sends it.
            let odd = Forger { name: common_name("Odd"), key: Key::of(Algorithm::Ecdsa(256, 256)) };
            let said =
                check(&[odd.certify(&Forged::ek(), &ek_spki()), certificate], &chain.anchors())
                    .unwrap_err();
            assert!(said.to_string().contains(reason), "{said}");
        }
    }

    #[test]
    fn pss_with_other_parameters_than_one_hash_and_its_length_is_refused() {
        let chain = Chain {
            issuer: Forger::with_key("Acme EK CA", Algorithm::Rsa(Padding::Pss, 256)),
            ..Chain::new()
        };
        for odd in [pss(256, 384, 32), pss(256, 256, 20), pss(384, 384, 32)] {
            let forged = Forged { algorithm: Some(odd.clone()), ..Forged::ek() };
            let mut certificates = chain.certificates();
            certificates[0] =
                chain.issuer.sign(&chain.issuer.to_be_signed(&forged, &ek_spki()), &odd).into();
            assert_eq!(
                check(&certificates, &chain.anchors()).unwrap_err().code(),
                ProblemCode::EkCertificateUntrusted
            );
        }
    }
}

mod rules {
    use super::*;

    #[test]
    fn a_good_path_names_its_issuers_up_to_the_anchor() {
        assert_eq!(Chain::new().check().unwrap().issuers(), ["CN=Acme EK CA", "CN=Acme Root"]);
    }

    #[test]
    fn an_issuer_must_be_a_ca_that_signs_certificates() {
        let said = Chain::new().issuer(|ca| ca.with(basic_constraints(false, None))).refused();
        assert!(said.contains("CN=Acme EK CA is not a CA's"), "{said}");
        let said = Chain::new().issuer(|ca| ca.without(&[0x55, 0x1D, 19])).refused();
        assert!(said.contains("CN=Acme EK CA is not a CA's"), "{said}");
        let said = Chain::new().issuer(|ca| ca.with(key_usage(0x02))).refused();
        assert!(said.contains("CN=Acme EK CA may not sign certificates"), "{said}");
        Chain::new().issuer(|ca| ca.without(&[0x55, 0x1D, 15])).check().unwrap();
    }

    #[test]
    fn a_root_must_be_a_ca_that_signs_certificates() {
        let root = Forger::new("Acme Root");
        for odd in
            [Forged::ca().with(key_usage(0x02)), Forged::ca().with(basic_constraints(false, None))]
        {
            let certificate = root.certified_by(&root, odd);
            assert!(matches!(
                VendorCertificate::read(&certificate),
                Err(AnchorError::NoIssuer { .. })
            ));
            assert!(VendorCertificate::read_anchor(&certificate, Allowances::default()).is_err());
        }
    }

    #[test]
    fn an_issuer_for_other_uses_issues_no_ek_certificate() {
        for critical in [false, true] {
            let said = Chain::new()
                .issuer(|ca| ca.with(extended_key_usage(critical, &[SERVER_AUTH])))
                .refused();
            assert!(said.contains("CN=Acme EK CA is for other uses"), "{said}");
        }
    }

    #[test]
    fn path_lengths_are_kept_also_the_roots() {
        let length = |length| basic_constraints(true, Some(length));
        Chain::new().root(|ca| ca.with(length(1))).issuer(|ca| ca.with(length(0))).check().unwrap();
        let said = Chain::new().root(|ca| ca.with(length(0))).refused();
        assert!(said.contains("CN=Acme EK CA is below a CA whose pathLenConstraint"), "{said}");

        let chain = Chain::new().issuer(|ca| ca.with(length(0)));
        let lower = Forger::new("Lower CA");
        let certificates = [
            lower.certify(&Forged::ek(), &ek_spki()),
            lower.certified_by(&chain.issuer, Forged::ca()),
            chain.certificates()[1].clone(),
        ];
        let said = check(&certificates, &chain.anchors()).unwrap_err().to_string();
        assert!(said.contains("CN=Lower CA is below a CA whose pathLenConstraint"), "{said}");
    }

    /// cRLDistributionPoints says where to ask, and nobody is asked.
    #[test]
    fn critical_distribution_points_change_nothing() {
        let points = || extension(31, true, &tlv(0x30, &[]));
        Chain::new().issuer(|ca| ca.with(points())).ek(|ek| ek.with(points())).check().unwrap();
    }

    #[test]
    fn a_path_has_six_cas_between_ek_and_anchor_at_most() {
        for count in [6, 7] {
            let cas: Vec<_> =
                (0..=count).map(|number| Forger::new(&format!("CA {number}"))).collect();
            let below = cas.windows(2).map(|pair| pair[1].certified_by(&pair[0], Forged::ca()));
            let anchors = trusting([cas[0].root()].into_iter().chain(below));
            let outcome = check(&[cas[count].certify(&Forged::ek(), &ek_spki())], &anchors);
            match count {
                6 => _ = outcome.unwrap(),
                _ => assert!(outcome.unwrap_err().to_string().contains("more than 6 CAs")),
            }
        }
    }

    #[test]
    fn an_unknown_critical_extension_is_refused_wherever_it_is() {
        let unknown = || extension_of(&[0x2A, 3, 4], true, &tlv(5, &[]));
        let said = Chain::new().issuer(|ca| ca.with(unknown())).refused();
        assert!(said.contains("CN=Acme EK CA has the critical extension 1.2.3.4"), "{said}");
        let said = Chain::new().ek(|ek| ek.with(unknown())).refused();
        assert!(said.contains("critical extension 1.2.3.4"), "{said}");
        Chain::new()
            .issuer(|ca| ca.with(extension_of(&[0x2A, 3, 4], false, &tlv(5, &[]))))
            .check()
            .unwrap();
        let root = Forger::new("Acme Root");
        let said = VendorCertificate::read(&root.certified_by(&root, Forged::ca().with(unknown())))
            .unwrap_err();
        assert!(said.to_string().contains("1.2.3.4"), "{said}");
    }

    #[test]
    fn extensions_that_are_malformed_or_there_twice_are_refused() {
        for (id, value) in [
            (19, &[0x30, 0x80][..]),
            (15, &[3, 0]),
            (37, &[0x30, 0]),
            (30, &[0x30, 0]),
            (32, &[5, 0]),
        ] {
            let refused = Chain::new().ek(|ek| ek.with(extension(id, true, value))).refused();
            assert!(refused.contains("is malformed"), "{id}: {refused}");
        }
        let twice = Chain::new().ek(|mut ek| {
            ek.extensions.push(key_usage(0x20));
            ek
        });
        assert!(twice.refused().contains("it has the extension keyUsage (2.5.29.15) twice"));
    }

    /// A stranger may send 4 KiB for each certificate, and the CA reads them before it verifies
    /// their signatures.
    #[test]
    fn names_and_lists_longer_than_any_vendors_are_refused() {
        let policy: &[u8] = &[0x2A, 3];
        Chain::new().ek(|ek| ek.with(policies(false, &[policy; 64]))).check().unwrap();
        let names = |count: usize| extension(17, false, &tlv(0x30, &tlv(0x82, b"x").repeat(count)));
        for long in [
            policies(false, &[policy; 65]),
            extended_key_usage(false, &[EK_USAGE; 65]),
            names(65),
            name_constraints(&vec![directory_name(&common_name("x")); 65], &[]),
            extension(
                33,
                true,
                &tlv(0x30, &tlv(0x30, &[oid(policy), oid(policy)].concat()).repeat(65)),
            ),
        ] {
            assert!(
                Chain::new().ek(|ek| ek.with(long)).refused().contains("longer than any vendor's")
            );
        }
        let long_name = |mut ek: Forged| {
            ek.subject = common_name(&"x".repeat(1024));
            ek
        };
        assert!(Chain::new().ek(long_name).refused().contains("longer than any vendor's name"));
    }

    #[test]
    fn a_policy_that_is_demanded_goes_through_the_whole_path() {
        let demand = |ca: Forged| ca.with(extension(36, true, &tlv(0x30, &tlv(0x80, &[0]))));
        let through = |issuer: &'static [u8], ek: &'static [u8]| {
            Chain::new()
                .root(demand)
                .issuer(move |ca| ca.with(policies(true, &[issuer])))
                .ek(move |certificate| certificate.with(policies(false, &[ek])))
        };
        through(&[0x2A, 3], &[0x2A, 3]).check().unwrap();
        through(ANY_POLICY, &[0x2A, 3]).check().unwrap();
        assert!(through(&[0x2A, 3], &[0x2A, 4]).refused().contains("certificate policies"));
        assert!(Chain::new().root(demand).refused().contains("CN=Acme EK CA is not issued under"));

        let inhibit_any = |ca: Forged| demand(ca).with(extension(54, true, &tlv(2, &[0])));
        let chain = through(ANY_POLICY, &[0x2A, 3]).root(inhibit_any);
        assert!(chain.refused().contains("certificate policies"));
        let mapping = tlv(0x30, &tlv(0x30, &[oid(&[0x2A, 3]), oid(&[0x2A, 4])].concat()));
        let mapped = |ca: Forged| ca.with(extension(33, true, &mapping));
        through(&[0x2A, 3], &[0x2A, 4]).issuer(mapped).check().unwrap();
    }

    #[test]
    fn name_constraints_hold_for_all_below() {
        let acme = || directory_name(&name_of(&[(10, PRINTABLE, "acme")]));
        let subject = || name_of(&[(10, UTF8, "Acme"), (3, UTF8, "TPM 7")]);
        let constrained = |permitted: &[Vec<u8>], excluded: &[Vec<u8>], subject: Vec<u8>| {
            let constraints = name_constraints(permitted, excluded);
            // Without the TPM's attributes, because they are a name too.
            let chain = Chain::new().issuer(|ca| ca.with(constraints));
            let mut forged = Forged::ek().without(&[0x55, 0x1D, 17]);
            forged.subject = subject;
            let sent = [chain.issuer.certify(&forged, &ek_spki()), chain.certificates()[1].clone()];
            let all = Allowances { ek_usage: false, tpm_attributes: true };
            let root = VendorCertificate::read_anchor(&chain.root.root(), all).unwrap();
            check(&sent, &TrustAnchors::new([root])).map_err(|error| error.to_string())
        };
        constrained(&[acme()], &[], subject()).unwrap();
        let other = constrained(&[acme()], &[], name_of(&[(10, UTF8, "Other")])).unwrap_err();
        assert!(other.contains("do not permit"), "{other}");
        let excluded = constrained(&[], &[acme()], subject()).unwrap_err();
        assert!(excluded.contains("exclude"), "{excluded}");
        constrained(&[], &[acme()], name_of(&[(10, UTF8, "Other")])).unwrap();
        constrained(&[acme()], &[], tlv(0x30, &[])).unwrap();
        let unclear = constrained(&[], &[acme()], name_of(&[(10, UTF8, "Äcme")])).unwrap_err();
        assert!(unclear.contains("cannot be compared"), "{unclear}");

        // The name of the TPM counts too.
        let said = Chain::new().issuer(|ca| ca.with(name_constraints(&[acme()], &[]))).refused();
        assert!(said.contains("do not permit"), "{said}");
        // Constraints of the root count, too.
        let said = Chain::new().root(|ca| ca.with(name_constraints(&[acme()], &[]))).refused();
        assert!(said.contains("CN=Acme EK CA has a name"), "{said}");
    }

    #[test]
    fn names_of_a_form_that_is_constrained_and_not_compared_are_refused() {
        let dns = tlv(0x82, b"example.com");
        let chain = Chain::new()
            .issuer(|ca| ca.with(name_constraints(&[], &[tlv(0x82, b"other.example")])));
        chain.check().unwrap();
        let chain = chain.ek(|ek| {
            let names = [directory_name(&name_of(&[(3, UTF8, "x")])), dns].concat();
            ek.with(extension(17, false, &tlv(0x30, &names)))
        });
        let all = Allowances { ek_usage: false, tpm_attributes: true };
        let root = VendorCertificate::read_anchor(&chain.root.root(), all).unwrap();
        let said =
            check(&chain.certificates(), &TrustAnchors::new([root])).unwrap_err().to_string();
        assert!(said.contains("cannot be compared"), "{said}");
    }

    /// A subject may have an e-mail address (RFC 5280 §4.1.2.6).
    #[test]
    fn an_e_mail_address_in_a_subject_is_a_name_of_its_form() {
        let constrained = Chain::new()
            .issuer(|ca| ca.with(name_constraints(&[], &[tlv(0x81, b"other.example")])));
        constrained.check().unwrap();
        let email = [
            oid(&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x09, 0x01]),
            tlv(0x16, b"tpm@acme.example"),
        ];
        let said = constrained.ek(|mut ek| {
            ek.subject = tlv(0x30, &tlv(0x31, &tlv(0x30, &email.concat())));
            ek
        });
        assert!(said.refused().contains("cannot be compared"));
    }

    #[test]
    fn expiry_names_the_certificate_and_both_dates() {
        let expired = |mut forged: Forged| {
            forged.validity = ["100101000000Z", "210203040506Z"];
            forged
        };
        let early = |mut forged: Forged| {
            forged.validity = ["20550101000000Z", "20560101000000Z"];
            forged
        };
        let said = Chain::new().ek(expired).refused();
        assert!(
            said.contains("the EK certificate is valid only from 2010-01-01")
                && said.contains("2021-02-03"),
            "{said}"
        );
        assert!(said.contains("2027-01-15"), "{said}");
        let said = Chain::new().issuer(expired).refused();
        assert!(
            said.contains("the certificate of CN=Acme EK CA is valid only from 2010-01-01"),
            "{said}"
        );
        let said = Chain::new().issuer(early).refused();
        assert!(
            said.contains("2055-01-01")
                && said.contains("2056-01-01")
                && said.contains("not valid yet"),
            "{said}"
        );
        for chain in [Chain::new().ek(expired), Chain::new().issuer(early)] {
            assert_eq!(chain.check().unwrap_err().code(), ProblemCode::EkCertificateExpired);
        }
        // RFC 5280 §6.1.1 d: an anchor's validity is the operator's decision.
        Chain::new().root(expired).check().unwrap();
    }
}

mod issuers {
    use super::*;

    #[test]
    fn a_missing_issuer_is_named_and_where_it_may_be() {
        let uri = tlv(0x86, b"http://acme.example/ek-ca.crt");
        let access = tlv(0x30, &[oid(&[0x2B, 6, 1, 5, 5, 7, 48, 2]), uri].concat());
        let aia = extension_of(&[0x2B, 6, 1, 5, 5, 7, 1, 1], false, &tlv(0x30, &access));
        let chain = Chain::new().ek(|ek| ek.with(aia));
        let said = check(&chain.certificates()[..1], &chain.anchors()).unwrap_err().to_string();
        assert_is_for_people(&said);
        assert!(
            said.contains("CN=Acme EK CA") && said.contains("http://acme.example/ek-ca.crt"),
            "{said}"
        );
        assert!(said.contains("assay trust add"), "{said}");
        // The text also names a missing issuer further up.
        let said = check(&chain.certificates(), &trusting([])).unwrap_err().to_string();
        assert!(
            said.contains("the certificate of CN=Acme EK CA was issued by CN=Acme Root"),
            "{said}"
        );
    }

    #[test]
    fn key_identifiers_tell_issuers_of_one_name_apart() {
        let chain = Chain::new()
            .ek(|ek| ek.with(authority_key_id(b"right")))
            .issuer(|ca| ca.with(subject_key_id(b"wrong")));
        let said = chain.refused();
        assert!(said.contains("No certificate of that CA with the right key"), "{said}");
        chain.issuer(|ca| ca.with(subject_key_id(b"right"))).check().unwrap();
    }

    #[test]
    fn of_two_certificates_of_one_ca_the_one_that_leads_on_is_used() {
        let (chain, other) = (Chain::new(), Forger::new("Other Root"));
        let cross = chain.issuer.certified_by(&other, Forged::ca());
        let good = chain.certificates();
        for sent in [
            [good[0].clone(), cross.clone(), good[1].clone()],
            [good[0].clone(), good[1].clone(), cross.clone()],
        ] {
            check(&sent, &chain.anchors()).unwrap();
            check(&sent, &trusting([other.root()])).unwrap();
        }
        let expired = Forged { validity: ["100101000000Z", "110101000000Z"], ..Forged::ca() };
        let old = chain.issuer.certified_by(&chain.root, expired);
        check(&[good[0].clone(), old, good[1].clone()], &chain.anchors()).unwrap();
    }

    #[test]
    fn issuers_that_know_each_other_do_not_go_in_circles() {
        let (a, b) = (Forger::new("A"), Forger::new("B"));
        let sent = [
            a.certify(&Forged::ek(), &ek_spki()),
            a.certified_by(&b, Forged::ca()),
            b.certified_by(&a, Forged::ca()),
        ];
        let error = check(&sent, &Chain::new().anchors()).unwrap_err();
        assert_eq!(error.code(), ProblemCode::EkCertificateUntrusted);
        assert!(
            error
                .to_string()
                .contains("the certificate of CN=B has an issuer that is already in the path"),
            "{error}"
        );
    }

    #[test]
    fn what_is_around_a_signed_certificate_cannot_be_changed() {
        let chain = Chain::new();
        let good = chain.certificates();
        let anchors = chain.anchors();
        check(&good, &anchors).unwrap();
        let to_be_signed = chain.issuer.to_be_signed(&Forged::ek(), &ek_spki());
        let algorithm = chain.issuer.key.algorithm();
        let signed = chain.issuer.sign(&to_be_signed, &algorithm);
        // A signature must have no unused bits, its length and that of the whole must be in their
        // only form, and nothing may follow.
        let bit_string = HEADER + to_be_signed.len() + algorithm.len();
        let mut unused_bits = signed.clone();
        unused_bits[bit_string + 2] = 1;
        let signature = &signed[bit_string + 2..];
        let long = [&[3, 0x81, signature.len() as u8][..], signature].concat();
        let long = tlv(0x30, &[&to_be_signed[..], &algorithm, &long].concat());
        let other_algorithm = chain.issuer.sign(
            &to_be_signed,
            &Forger::with_key("x", Algorithm::Ecdsa(384, 384)).key.algorithm(),
        );
        let null_added =
            chain.issuer.sign(&to_be_signed, &tlv(0x30, &[&algorithm[2..], &[5, 0]].concat()));
        let trailing = tlv(0x30, &[&signed[HEADER..], &[5, 0]].concat());
        for changed in [unused_bits, long, other_algorithm, null_added, trailing] {
            let sent = [changed.into(), good[1].clone()];
            let error = check(&sent, &anchors).unwrap_err();
            assert_eq!(error.code(), ProblemCode::EkCertificateInvalid, "{error}");
            assert!(error.to_string().contains("changed it on its way"), "{error}");
        }
    }

    /// Tag and length of a certificate of more than 255 bytes.
    const HEADER: usize = 4;
}
