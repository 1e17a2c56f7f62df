//! What an operator does with vendors' certificates: add, check, narrow.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use assay_tests::{
    AssayDir, EkCertificate, EkKind, VendorCa, run, tool, trusted_vendor, untrusted_vendor,
};
use serde_json::Value;
use tempfile::TempDir;

/// A CA's directory, a vendor's files, and the certificate of one of its EKs.
struct Desk {
    dir: AssayDir,
    files: TempDir,
    vendor: VendorCa,
    ek: PathBuf,
}

impl Desk {
    fn new() -> Result<Self> {
        let (vendor, files) = (trusted_vendor()?, tempfile::tempdir()?);
        let ek = files.path().join("ek.der");
        fs::write(&ek, vendor.device(EkKind::P256, 0)?.ek_certificate(EkKind::P256)?)?;
        Ok(Self { dir: AssayDir::init()?, files, vendor, ek })
    }

    /// Exit status, standard output and error of `assay trust ...`.
    fn trust(&self, arguments: &[&str], files: &[&PathBuf]) -> Result<(i32, String, String)> {
        let output = self.dir.assay(&["trust"])?.args(arguments).args(files).output()?;
        let text = |bytes| String::from_utf8(bytes);
        Ok((output.status.code().context("it ended")?, text(output.stdout)?, text(output.stderr)?))
    }

    fn is_trusted(&self) -> Result<bool> {
        Ok(self.trust(&["check"], &[&self.ek])?.0 == 0)
    }

    fn pkcs7(&self, certificates: &[PathBuf]) -> Result<PathBuf> {
        let bundle = self.files.path().join("bundle.p7b");
        let mut openssl: Command = tool("openssl")?;
        openssl.args(["crl2pkcs7", "-nocrl", "-outform", "DER", "-out"]).arg(&bundle);
        certificates.iter().for_each(|certificate| _ = openssl.arg("-certfile").arg(certificate));
        run(&mut openssl)?;
        Ok(bundle)
    }

    fn fingerprint(&self, certificate: &PathBuf) -> Result<String> {
        let mut x509 = tool("openssl")?;
        let printed =
            run(x509.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(certificate))?
                .stdout;
        let printed = String::from_utf8(printed)?;
        Ok(printed.trim().split_once('=').context("a fingerprint")?.1.to_owned())
    }
}

#[test]
fn vendors_files_are_added_in_every_form_and_each_certificate_reported() -> Result<()> {
    let (root, issuer) = (trusted_vendor()?.root_pem(), trusted_vendor()?.intermediate_pem());
    let bundle = |desk: &Desk| -> Result<PathBuf> {
        let path = desk.files.path().join("bundle.pem");
        fs::write(&path, [fs::read(&issuer)?, fs::read(&root)?].concat())?;
        Ok(path)
    };
    let directory = |desk: &Desk| -> Result<PathBuf> {
        let path = desk.files.path().join("vendor");
        fs::create_dir(&path)?;
        fs::copy(&root, path.join("a.pem"))?;
        fs::copy(&issuer, path.join("b.pem"))?;
        fs::write(path.join("README"), "certificates of the vendor")?;
        Ok(path)
    };
    let p7b = |desk: &Desk| desk.pkcs7(&[root.clone(), issuer.clone()]);
    for form in 0..3 {
        let desk = Desk::new()?;
        let files = [bundle(&desk)?, directory(&desk)?, p7b(&desk)?];
        ensure!(!desk.is_trusted()?);
        let (status, _, said) = desk.trust(&["add"], &[&files[form]])?;
        ensure!(status == 0 && said.contains("root: CN=Test TPM Vendor Root CA"), "{said}");
        ensure!(
            said.contains("issuer: CN=Test TPM Vendor EK CA") && said.contains("RSA-3072"),
            "{said}"
        );
        ensure!(!said.contains("has no effect"), "whatever their order: {said}");
        let sha256 = desk.fingerprint(&root)?.replace(':', "").to_ascii_lowercase();
        ensure!(said.contains(&sha256), "{said}");
        ensure!(desk.is_trusted()?);
        let (status, lines, _) = desk.trust(&["add", "--json"], &[&root])?;
        let again: Value = serde_json::from_str(&lines)?;
        ensure!(
            status == 0 && again["result"] == "already there" && again["fingerprint"] == *sha256,
            "{lines}"
        );
    }
    Ok(())
}

#[test]
fn what_can_be_added_is_and_what_is_refused_says_why() -> Result<()> {
    let desk = Desk::new()?;
    let worker = desk.dir.path().join("worker.pem");
    let (status, _, said) = desk.trust(&["add"], &[&desk.vendor.root_pem(), &worker])?;
    ensure!(status == 1 && said.contains("root: ") && said.contains("is not a CA's"), "{said}");
    ensure!(
        desk.dir.assay(&["trust", "list"])?.output()?.stdout.windows(4).any(|part| part == b"root")
    );
    Ok(())
}

#[test]
fn an_issuer_without_its_root_is_said_to_count_for_nothing() -> Result<()> {
    let desk = Desk::new()?;
    let (status, _, said) = desk.trust(&["add"], &[&desk.vendor.intermediate_pem()])?;
    ensure!(
        status == 0 && said.contains("has no effect yet") && said.contains("Root CA"),
        "{said}"
    );
    let (status, said, _) = desk.trust(&["check"], &[&desk.ek])?;
    ensure!(status == 1 && said.contains("was issued by CN=Test TPM Vendor Root CA"), "{said}");
    Ok(())
}

#[test]
fn only_the_fingerprint_that_is_insisted_on_is_trusted() -> Result<()> {
    let desk = Desk::new()?;
    let (right, wrong) = (desk.vendor.root_pem(), untrusted_vendor()?.root_pem());
    let fingerprint = desk.fingerprint(&right)?;
    let insist = ["add", "--fingerprint", &fingerprint];
    let (status, _, said) = desk.trust(&insist, &[&wrong])?;
    ensure!(status == 1 && said.contains("nothing is added"), "{said}");
    let (status, _, said) =
        desk.trust(&insist, &[&wrong, &right, &desk.vendor.intermediate_pem()])?;
    ensure!(
        status == 1 && said.contains("another fingerprint"),
        "the other vendor's root is refused: {said}"
    );
    let listed =
        String::from_utf8(run(&mut desk.dir.assay(&["trust", "list", "--json"])?)?.stdout)?;
    ensure!(listed.lines().count() == 2, "root and issuer: {listed}");
    Ok(())
}

#[test]
fn at_a_terminal_nothing_is_trusted_before_it_is_shown_and_agreed_to() -> Result<()> {
    let desk = Desk::new()?;
    let issuer = desk.vendor.intermediate_pem();
    for (answer, is_added) in [("n", false), ("", false), ("y", true)] {
        // `script` gives the command a terminal.
        let add = desk.dir.assay(&["trust", "add"])?;
        let words = [add.get_program()]
            .into_iter()
            .chain(add.get_args())
            .map(|word| word.to_string_lossy().into_owned());
        let files = [desk.vendor.root_pem(), issuer.clone()].map(|file| file.display().to_string());
        let line = words.chain(files).collect::<Vec<_>>().join(" ");
        let mut script = tool("script")?;
        let script = script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        script.stdin.take().context("its input")?.write_all(format!("{answer}\n").as_bytes())?;
        let output = script.wait_with_output()?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(
            said.contains("root: CN=Test TPM Vendor Root CA") && said.contains("[y/N]"),
            "{said}"
        );
        ensure!(
            output.status.success() == is_added && said.contains("nothing is added") != is_added,
            "{said}"
        );
        ensure!(desk.is_trusted()? == is_added, "after {answer:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_certificate_with_another_signature_is_the_same() -> Result<()> {
    let desk = Desk::new()?;
    let issuer = desk.vendor.intermediate_pem();
    let mut x509 = tool("openssl")?;
    let mut altered = run(x509.args(["x509", "-outform", "DER", "-in"]).arg(&issuer))?.stdout;
    *altered.last_mut().context("a signature")? ^= 1;
    let twin = desk.files.path().join("twin.der");
    fs::write(&twin, altered)?;
    let removed_by = |certificate: &PathBuf| -> Result<()> {
        ensure!(desk.trust(&["remove", &desk.fingerprint(certificate)?], &[])?.0 == 0);
        let listed = run(&mut desk.dir.assay(&["trust", "list", "--json"])?)?.stdout;
        ensure!(listed.is_empty(), "{}", String::from_utf8_lossy(&listed));
        Ok(())
    };
    // Nobody verifies the signature of an anchor.
    desk.trust(&["add", "--anchor"], &[&issuer])?;
    let (_, _, said) = desk.trust(&["add", "--anchor"], &[&twin])?;
    ensure!(said.starts_with("already there"), "{said}");
    removed_by(&issuer)?;
    // An issuer's signature is verified when a path needs it. So a damaged issuer must not keep the
    // good one out.
    desk.trust(&["add"], &[&twin])?;
    desk.trust(&["add"], &[&issuer])?;
    desk.trust(&["add"], &[&desk.vendor.root_pem()])?;
    ensure!(desk.is_trusted()?);
    desk.trust(&["remove", &desk.fingerprint(&desk.vendor.root_pem())?], &[])?;
    removed_by(&twin)
}

#[test]
fn one_issuing_ca_can_be_trusted_instead_of_a_whole_vendor() -> Result<()> {
    let desk = Desk::new()?;
    let issuer = desk.vendor.intermediate_pem();
    let both = desk.pkcs7(&[desk.vendor.root_pem(), issuer.clone()])?;
    let (status, _, said) = desk.trust(&["add", "--anchor"], &[&both])?;
    ensure!(status == 1 && said.contains("choose one with --fingerprint"), "{said}");
    ensure!(desk.trust(&["add"], &[&issuer])?.0 == 0 && !desk.is_trusted()?);
    let (status, _, said) = desk.trust(&["add", "--anchor"], &[&issuer])?;
    ensure!(status == 0 && said.starts_with("anchor: CN=Test TPM Vendor EK CA"), "{said}");
    ensure!(desk.is_trusted()?);
    Ok(())
}

#[test]
fn what_ek_certificates_lack_is_allowed_with_the_anchor() -> Result<()> {
    let desk = Desk::new()?;
    let public = desk.vendor.device(EkKind::P256, 0)?.ek_public_pem(EkKind::P256)?;
    let bare = EkCertificate { usage: None, names_tpm: false, ..EkCertificate::default() };
    fs::write(&desk.ek, desk.vendor.certify(&public, &bare)?)?;
    let issuer = desk.vendor.intermediate_pem();
    desk.trust(&["add", "--anchor", "--allow-missing", "ek-usage"], &[&issuer])?;
    let (_, said, _) = desk.trust(&["check"], &[&desk.ek])?;
    ensure!(
        said.contains("lacks the TPM's manufacturer") || said.contains("has no extended key usage"),
        "{said}"
    );
    desk.trust(&["add", "--anchor", "--allow-missing", "ek-usage,tpm-attributes"], &[&issuer])?;
    ensure!(desk.is_trusted()?);
    let listed = String::from_utf8(run(&mut desk.dir.assay(&["trust", "list"])?)?.stdout)?;
    ensure!(listed.contains("anchor, without ek-usage,tpm-attributes"), "{listed}");
    let (status, _, said) = desk.trust(&["add", "--allow-missing", "ek-usage"], &[&issuer])?;
    ensure!(status == 2 && said.contains("--anchor"), "{said}");
    Ok(())
}

#[test]
fn a_check_names_the_path_or_what_is_missing() -> Result<()> {
    let desk = Desk::new()?;
    let (_, said, _) = desk.trust(&["check"], &[&desk.ek])?;
    ensure!(said.contains("the EK certificate was issued by CN=Test TPM Vendor EK CA"), "{said}");
    desk.dir.trust(&desk.vendor)?;
    let (_, said, _) = desk.trust(&["check", "--json"], &[&desk.ek])?;
    let verdict: Value = serde_json::from_str(&said)?;
    ensure!(
        verdict["trusted"] == true && verdict["path"][1] == "CN=Test TPM Vendor Root CA",
        "{said}"
    );
    ensure!(verdict["answer"] == "admit" && verdict["group"].is_string(), "{said}");
    let name = verdict["group"].as_str().unwrap_or_default();
    for (change, expected) in [
        (&["update", name, "--ask"][..], format!("; group {name} asks about it")),
        (&["remove", name], "; group vendors asks about it".to_owned()),
        (&["update", "vendors", "--refuse"], "; group vendors refuses it".to_owned()),
        (&["remove", "vendors"], "; in no group, so refused: assay group add".to_owned()),
    ] {
        run(&mut desk.dir.assay(&[&["group"][..], change].concat())?)?;
        let (status, said, _) = desk.trust(&["check"], &[&desk.ek])?;
        ensure!(status == 0 && said.contains(&expected), "{expected}: {said}");
    }
    // Another vendor with the same names.
    let other = Desk { dir: desk.dir, vendor: untrusted_vendor()?, ..Desk::new()? };
    fs::write(&other.ek, other.vendor.device(EkKind::P256, 0)?.ek_certificate(EkKind::P256)?)?;
    ensure!(!other.is_trusted()?);
    Ok(())
}

#[test]
fn a_check_says_when_an_enrolment_is_the_reason() -> Result<()> {
    let desk = Desk::new()?;
    run(desk.dir.assay(&["enroll", "add"])?.arg(&desk.ek))?;
    let (status, said, _) = desk.trust(&["check"], &[&desk.ek])?;
    let group = "which is enrolled; group enrolled admits it";
    ensure!(status == 0 && said.contains(group), "{said}");
    Ok(())
}

#[test]
fn a_bare_key_is_trusted_once_it_is_enrolled() -> Result<()> {
    let desk = Desk::new()?;
    let key = desk.files.path().join("ek.pem");
    let mut x509 = tool("openssl")?;
    fs::write(&key, run(x509.args(["x509", "-noout", "-pubkey", "-in"]).arg(&desk.ek))?.stdout)?;
    let (status, said, _) = desk.trust(&["check"], &[&key])?;
    ensure!(status == 1 && said.contains("`assay enroll add`"), "{said}");
    run(desk.dir.assay(&["enroll", "add"])?.arg(&key))?;
    let (status, said, _) = desk.trust(&["check"], &[&key])?;
    ensure!(status == 0 && said.contains("P-256, which is enrolled"), "{said}");
    Ok(())
}

#[test]
fn certificates_for_other_uses_are_not_enrolled() -> Result<()> {
    let desk = Desk::new()?;
    for certificate in ["server.pem", "worker.pem"] {
        let output =
            desk.dir.assay(&["enroll", "add"])?.arg(desk.dir.path().join(certificate)).output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(1) && said.contains("is not an EK's"),
            "{certificate}: {said}"
        );
    }
    Ok(())
}
