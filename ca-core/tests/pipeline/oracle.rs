//! Random certificate paths that we and OpenSSL check. The two must agree.
//!
//! Each path is honest except for up to three oddities at random places. RFC 5280 §6.1 leaves no
//! choice about them, so if one accepts a path and the other refuses it, one of them is at fault.
//! `ASSAY_FUZZ_PATHS` says how many paths are tried.

use std::fs;
use std::path::Path;
use std::process::Command;

use assay_ca_core::EkCheck;
use rand_core::Rng;
use rustls_pki_types::CertificateDer;

use crate::fixture::*;
use crate::forge::*;

/// A change that makes a certificate of a path odd.
#[derive(Clone, Copy, Debug)]
enum Oddity {
    PathLength(u8),
    NoCa,
    NoBasicConstraints,
    Usage(u8),
    NoUsage,
    Policy(u8),
    AnyPolicy,
    RequirePolicy(u8),
    InhibitAny(u8),
    Permitted(&'static str),
    Excluded(&'static str),
    UnknownCritical,
    UnknownUncritical,
    Expired,
    ToCome,
    KeyIds,
    WrongKeyId,
}

/// Random numbers that are the same when a failure is repeated.
fn below(rng: &mut CountingRng, limit: usize) -> usize {
    rng.next_u32() as usize % limit
}

fn oddity(rng: &mut CountingRng) -> Oddity {
    use Oddity::*;
    let number = below(rng, 3) as u8;
    let name = ["Level 1", "Level 2", "Other"][below(rng, 3)];
    let all = [
        PathLength(number),
        NoCa,
        NoBasicConstraints,
        // digitalSignature; keyCertSign; cRLSign
        Usage([0x80, 0x04, 0x02][below(rng, 3)]),
        NoUsage,
        Policy(number),
        AnyPolicy,
        RequirePolicy(number),
        InhibitAny(number),
        Permitted(name),
        Excluded(name),
        UnknownCritical,
        UnknownUncritical,
        Expired,
        ToCome,
        KeyIds,
        WrongKeyId,
    ];
    all[below(rng, all.len())]
}

impl Oddity {
    fn of(self, certificate: Forged, level: u8) -> Forged {
        let other = extension(99, true, &tlv(5, &[]));
        let constraint = |name: &str| vec![directory_name(&common_name(name))];
        match self {
            Self::PathLength(length) => certificate.with(basic_constraints(true, Some(length))),
            Self::NoCa => certificate.with(basic_constraints(false, None)),
            Self::NoBasicConstraints => certificate.without(&[0x55, 0x1D, 19]),
            Self::Usage(bits) => certificate.with(key_usage(bits)),
            Self::NoUsage => certificate.without(&[0x55, 0x1D, 15]),
            Self::Policy(number) => certificate.with(policies(false, &[&[0x2A, number]])),
            Self::AnyPolicy => certificate.with(policies(true, &[ANY_POLICY])),
            Self::RequirePolicy(skip) => {
                certificate.with(extension(36, true, &tlv(0x30, &tlv(0x80, &[skip]))))
            }
            Self::InhibitAny(skip) => certificate.with(extension(54, true, &tlv(2, &[skip]))),
            Self::Permitted(name) => certificate.with(name_constraints(&constraint(name), &[])),
            Self::Excluded(name) => certificate.with(name_constraints(&[], &constraint(name))),
            Self::UnknownCritical => certificate.with(other),
            Self::UnknownUncritical => certificate.with(extension(99, false, &tlv(5, &[]))),
            Self::Expired => Forged { validity: ["200101000000Z", "210101000000Z"], ..certificate },
            Self::ToCome => Forged { validity: ["400101000000Z", "450101000000Z"], ..certificate },
            Self::KeyIds => certificate
                .with(subject_key_id(&[level]))
                .with(authority_key_id(&[level.saturating_sub(1)])),
            Self::WrongKeyId => certificate.with(authority_key_id(&[0x77])),
        }
    }
}

/// The path from the root to the EK.
fn random_path(rng: &mut CountingRng) -> (Vec<(usize, Oddity)>, Vec<CertificateDer<'static>>) {
    let issuers = below(rng, 4);
    let cas: Vec<_> = (0..=issuers).map(|level| Forger::new(&format!("Level {level}"))).collect();
    let oddities: Vec<_> =
        (0..below(rng, 4)).map(|_| (below(rng, issuers + 2), oddity(rng))).collect();
    let odd = |level: usize, honest: Forged| {
        let here = oddities.iter().filter(|(at, _)| *at == level);
        here.fold(honest, |certificate, (_, oddity)| oddity.of(certificate, level as u8))
    };
    let mut path = vec![cas[0].certified_by(&cas[0], odd(0, Forged::ca()))];
    for level in 1..=issuers {
        path.push(cas[level].certified_by(&cas[level - 1], odd(level, Forged::ca())));
    }
    let spki = SoftwareEk::golden("p256").key().spki();
    path.push(cas[issuers].certify(&odd(issuers + 1, Forged::ek()), &spki));
    (oddities, path)
}

fn we_take(path: &[CertificateDer<'static>]) -> Result<(), String> {
    let root =
        assay_ca_core::VendorCertificate::read(&path[0]).map_err(|error| error.to_string())?;
    let anchors = assay_ca_core::TrustAnchors::new([root]);
    let sent: Vec<_> = path[1..].iter().rev().cloned().collect();
    let check = EkCheck::of(&sent, &anchors, now()).map_err(|error| error.to_string())?;
    check.path.map(drop).map_err(|error| error.to_string())
}

fn openssl_takes(path: &[CertificateDer<'static>], dir: &Path) -> Result<(), String> {
    let pem = |certificates: &[CertificateDer<'_>]| {
        let lines = certificates.iter().map(|der| {
            let text = data_encoding::BASE64.encode(der);
            let lines: Vec<_> =
                text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
            format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                lines.join("\n")
            )
        });
        lines.collect::<String>()
    };
    let file = |name: &str, certificates: &[CertificateDer<'_>]| {
        let file = dir.join(name);
        fs::write(&file, pem(certificates)).unwrap();
        file
    };
    let (root, last) = (file("root.pem", &path[..1]), file("ek.pem", &path[path.len() - 1..]));
    let issuers = file("issuers.pem", &path[1..path.len() - 1]);
    let mut verify = Command::new("openssl");
    // Accept any policy (RFC 5280 §6.1.1 c).
    verify
        .args([
            "verify",
            "-policy_check",
            "-policy",
            "2.5.29.32.0",
            "-attime",
            &now().unix_timestamp().to_string(),
            "-CAfile",
        ])
        .arg(root);
    if path.len() > 2 {
        verify.arg("-untrusted").arg(issuers);
    }
    let output = verify
        .arg(last)
        .output()
        .expect("`openssl` is not installed: run `apt-get install openssl`");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// Where the two may differ, with the reason. Any other difference is a fault.
fn may_differ(oddities: &[(usize, Oddity)], last: usize) -> bool {
    oddities.iter().any(|(level, oddity)| match oddity {
        // An anchor's validity is the operator's decision (RFC 5280 §6.1.1 d). OpenSSL checks it.
        Oddity::Expired | Oddity::ToCome => *level == 0,
        // An anchor's demands on policies apply (RFC 5937 §3). OpenSSL looks only at those of
        // certificates below it.
        Oddity::RequirePolicy(_) | Oddity::InhibitAny(_) => *level == 0,
        // We do not check who may have issued an anchor.
        Oddity::WrongKeyId => *level == 0,
        // We refuse a root that does not say that it is a CA's.
        Oddity::NoBasicConstraints if *level == 0 => true,
        // That an EK's certificate is not a CA's is our rule. We asked OpenSSL for any purpose.
        Oddity::PathLength(_) => *level == last,
        // OpenSSL checks an EK's basicConstraints only with -x509_strict.
        Oddity::NoBasicConstraints | Oddity::NoCa => *level == last,
        _ => false,
    })
}

#[test]
fn openssl_agrees_about_every_random_path() {
    let count =
        std::env::var("ASSAY_FUZZ_PATHS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let dir = std::env::temp_dir().join(format!("assay-oracle-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let mut rng = CountingRng::new();
    let (mut taken, mut compared, mut differ) = (0, 0, Vec::new());
    for number in 0..count {
        let (oddities, path) = random_path(&mut rng);
        if may_differ(&oddities, path.len() - 1) {
            continue;
        }
        compared += 1;
        let (ours, theirs) = (we_take(&path), openssl_takes(&path, &dir));
        taken += usize::from(ours.is_ok());
        if ours.is_ok() != theirs.is_ok() {
            differ.push(format!(
                "{number}: {oddities:?} of {}: we {ours:?}, OpenSSL {theirs:?}",
                path.len()
            ));
        }
    }
    fs::remove_dir_all(&dir).unwrap();
    assert!(differ.is_empty(), "{}\n{} of {compared}", differ.join("\n"), differ.len());
    assert!(taken * 10 > compared && taken * 10 < compared * 9, "{taken} of {compared} are taken");
}
