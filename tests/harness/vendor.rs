//! A TPM manufacturer: a root and an intermediate CA, and new TPMs with an EK certificate in NV
//! memory.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cache;
use crate::swtpm::{self, Swtpm, argument};
use crate::tool::{run, tool};

/// The manufacturer that the tests trust. Its TPMs are kept from one run to the next.
pub fn trusted_vendor() -> Result<VendorCa> {
    VendorCa::open(&cache::root()?.join(swtpm::version()?).join("trusted"), "Test TPM Vendor")
}

/// Another manufacturer, with its own keys and the *same* names. Only signatures distinguish it
/// from [`trusted_vendor`].
pub fn untrusted_vendor() -> Result<VendorCa> {
    VendorCa::open(&cache::root()?.join(swtpm::version()?).join("untrusted"), "Test TPM Vendor")
}

/// The kinds of EK that a TPM may have, by template and NV index of the TCG EK Credential Profile
/// 2.5.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EkKind {
    /// Template L-1, certificate at 0x01C00002.
    Rsa2048,
    /// Template L-2, certificate at 0x01C0000A.
    P256,
    /// Template H-3, certificate at 0x01C00016.
    P384,
    /// Template H-6, certificate at 0x01C0001C.
    Rsa3072,
}

impl EkKind {
    pub const ALL: [Self; 4] = [Self::Rsa2048, Self::P256, Self::P384, Self::Rsa3072];

    /// The spelling of `assay-device provision --ek`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa-2048",
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa3072 => "rsa-3072",
        }
    }

    /// The NV index of the certificate.
    pub fn certificate_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01C0_0002,
            Self::P256 => 0x01C0_000A,
            Self::P384 => 0x01C0_0016,
            Self::Rsa3072 => 0x01C0_001C,
        }
    }

    /// The handle at which swtpm_setup leaves the EK. It makes none for P-256.
    pub(crate) fn persistent_handle(self) -> Option<u32> {
        match self {
            Self::Rsa2048 => Some(0x8101_0001),
            Self::P256 => None,
            Self::P384 => Some(0x8101_0016),
            Self::Rsa3072 => Some(0x8101_001C),
        }
    }
}

/// A manufacturer's CA, in a directory of its own.
pub struct VendorCa {
    dir: PathBuf,
    /// The configuration of swtpm_setup. It contains the absolute path of `dir`, so it cannot be in
    /// a directory that is renamed.
    config: TempDir,
}

impl VendorCa {
    /// The manufacturer `name` in `dir`. Its keys are made now if `dir` does not exist.
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        cache::ensure(dir, |dir| found(dir, name))
            .with_context(|| format!("cannot found the TPM vendor {name}"))?;
        let config = tempfile::tempdir()?;
        let dir = std::path::absolute(dir)?;
        let (ca, conf) = (dir.display(), config.path().display());
        fs::write(
            config.path().join("localca.conf"),
            format!(
                "statedir = {ca}\nsigningkey = {ca}/intermediate.key\nissuercert = \
                 {ca}/intermediate.pem\ncertserial = {ca}/serial\n"
            ),
        )?;
        fs::write(
            config.path().join("localca.options"),
            "--platform-manufacturer Assay\n--platform-version 1.0\n--platform-model Bench\n",
        )?;
        fs::write(
            config.path().join("setup.conf"),
            format!(
                "create_certs_tool = {}\ncreate_certs_tool_config = \
                 {conf}/localca.conf\ncreate_certs_tool_options = \
                 {conf}/localca.options\nactive_pcr_banks = sha256\n",
                tool("swtpm_localca")?.get_program().display()
            ),
        )?;
        Ok(Self { dir, config })
    }

    pub fn root_pem(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    pub fn intermediate_pem(&self) -> PathBuf {
        self.dir.join("intermediate.pem")
    }

    /// The `number`th TPM of this `kind`, running. A number stands for the same EK in every run.
    /// Different numbers have different EKs.
    ///
    /// The TPM works on a copy of its factory state, so users of one number do not disturb each
    /// other.
    pub fn device(&self, kind: EkKind, number: usize) -> Result<Swtpm> {
        let factory = self.dir.join("devices").join(format!("{}-{number}", kind.name()));
        cache::ensure(&factory, |state| self.manufacture(kind, state)).with_context(|| {
            format!("cannot manufacture TPM {number} with an EK of kind {}", kind.name())
        })?;
        Swtpm::copy_of(&factory)
    }

    /// The first `count` TPMs of this `kind`, manufactured side by side.
    pub fn devices(&self, kind: EkKind, count: usize) -> Result<Vec<Swtpm>> {
        std::thread::scope(|scope| {
            let started: Vec<_> =
                (0..count).map(|number| scope.spawn(move || self.device(kind, number))).collect();
            started
                .into_iter()
                .map(|thread| thread.join().expect("no panic while manufacturing"))
                .collect()
        })
    }

    /// A certificate (DER) for the EK `public` (PEM), with the content and faults that
    /// `certificate` asks for.
    pub fn certify(&self, public: &str, certificate: &EkCertificate<'_>) -> Result<Vec<u8>> {
        let work = tempfile::tempdir()?;
        let path = |name: &str| work.path().join(name);
        fs::write(path("ek.pem"), public)?;
        fs::write(path("template"), certificate.template())?;
        run(tool("certtool")?
            .args(["--generate-certificate", "--outder", "--load-ca-certificate"])
            .arg(self.intermediate_pem())
            .arg("--load-ca-privkey")
            .arg(self.dir.join("intermediate.key"))
            .arg("--load-pubkey")
            .arg(path("ek.pem"))
            .arg("--template")
            .arg(path("template"))
            .arg("--outfile")
            .arg(path("ek.der")))?;
        Ok(fs::read(path("ek.der"))?)
    }

    /// Fills `state` with a new TPM that has one EK certificate.
    fn manufacture(&self, kind: EkKind, state: &Path) -> Result<()> {
        let rsa = if kind == EkKind::Rsa3072 { EkKind::Rsa3072 } else { EkKind::Rsa2048 };
        let mut setup = tool("swtpm_setup")?;
        setup
            .args(["--tpm2", "--create-ek-cert", "--overwrite", "--vmid", "assay", "--tpm-state"])
            .arg(state);
        setup.arg("--config").arg(self.config.path().join("setup.conf"));
        if rsa == EkKind::Rsa3072 {
            setup.args(["--rsa-keysize", "3072"]);
        }
        run(&mut setup)?;

        // swtpm_setup makes an RSA EK and a P-384 EK, but this TPM must have one EK.
        let tpm = Swtpm::on_state(state)?;
        for unwanted in [rsa, EkKind::P384].into_iter().filter(|made| *made != kind) {
            tpm.tpm2(&["nvundefine", "-C", "p", &argument(unwanted.certificate_index())])?;
            if let Some(handle) = unwanted.persistent_handle() {
                tpm.tpm2(&["evictcontrol", "-C", "o", "-c", &argument(handle)])?;
            }
        }
        if kind == EkKind::P256 {
            tpm.write_ek_certificate(kind, &self.certify_as_localca(&tpm.ek_public_pem(kind)?)?)?;
        }
        Ok(())
    }

    /// Makes the P-256 EK certificate as swtpm_setup would, which does not know this kind.
    fn certify_as_localca(&self, public: &str) -> Result<Vec<u8>> {
        let work = tempfile::tempdir()?;
        let pem = work.path().join("ek.pem");
        fs::write(&pem, public)?;
        let spki =
            run(tool("openssl")?.args(["pkey", "-pubin", "-outform", "DER", "-in"]).arg(pem))?
                .stdout;
        // SubjectPublicKeyInfo ends with the uncompressed point: 04, x, y (RFC 5480 section 2.2).
        let point = spki.last_chunk::<64>().context("the public key is not a P-256 point")?;
        let (x, y) = (hex(&point[..32]), hex(&point[32..]));
        run(tool("swtpm_localca")?
            .args([
                "--type",
                "ek",
                "--tpm2",
                "--vmid",
                "assay",
                "--ek",
                &format!("x={x},y={y},id=secp256r1"),
            ])
            .args([
                "--tpm-spec-family",
                "2.0",
                "--tpm-spec-level",
                "0",
                "--tpm-spec-revision",
                "164",
            ])
            .args([
                "--tpm-manufacturer",
                "id:00001014",
                "--tpm-model",
                "swtpm",
                "--tpm-version",
                "id:20191023",
            ])
            .arg("--dir")
            .arg(work.path())
            .arg("--configfile")
            .arg(self.config.path().join("localca.conf"))
            .arg("--optsfile")
            .arg(self.config.path().join("localca.options")))?;
        Ok(fs::read(work.path().join("ek.cert"))?)
    }
}

/// The content of an EK certificate. The default is what a manufacturer would write.
pub struct EkCertificate<'a> {
    /// Instants as `YYYY-MM-DD hh:mm:ss UTC`.
    pub not_before: &'a str,
    pub not_after: &'a str,
    /// Extended key usage; tcg-kp-EKCertificate by default.
    pub usage: Option<&'a str>,
    /// Whether the subject alternative name names the TPM's manufacturer, model and version.
    pub names_tpm: bool,
}

impl Default for EkCertificate<'_> {
    fn default() -> Self {
        Self {
            not_before: "2020-01-01 00:00:00 UTC",
            not_after: "2060-01-01 00:00:00 UTC",
            usage: Some("2.23.133.8.1"),
            names_tpm: true,
        }
    }
}

impl EkCertificate<'_> {
    /// A certtool template.
    fn template(&self) -> String {
        let mut template = format!(
            "cn = \"assay\"\nencryption_key\nactivation_date = \"{}\"\nexpiration_date = \"{}\"\n",
            self.not_before, self.not_after
        );
        if let Some(usage) = self.usage {
            let _ = writeln!(template, "key_purpose_oid = \"{usage}\"");
        }
        if self.names_tpm {
            let _ = writeln!(template, "add_critical_extension = \"2.5.29.17 0x{TPM_NAME}\"");
        }
        template
    }
}

/// Makes a root and the intermediate that signs EK certificates, as manufacturers have them.
fn found(dir: &Path, name: &str) -> Result<()> {
    let path = |file: &str| dir.join(file);
    fs::write(
        path("openssl.cnf"),
        "[req]\ndistinguished_name = name\nx509_extensions = ca\n[name]\n[ca]\nbasicConstraints = \
         critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\nsubjectKeyIdentifier = \
         hash\nauthorityKeyIdentifier = keyid\n",
    )?;
    let request = |role: &str, file: &str| -> Result<_> {
        let mut request = tool("openssl")?;
        request.args(["req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "7300", "-config"]);
        request.arg(path("openssl.cnf")).arg("-subj").arg(format!("/CN={name} {role}"));
        request
            .arg("-keyout")
            .arg(path(&format!("{file}.key")))
            .arg("-out")
            .arg(path(&format!("{file}.pem")));
        Ok(request)
    };
    run(&mut request("Root CA", "root")?)?;
    let mut intermediate = request("EK CA", "intermediate")?;
    run(intermediate.arg("-CA").arg(path("root.pem")).arg("-CAkey").arg(path("root.key")))?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// GeneralNames with one directoryName: TPM manufacturer id:00001014, model swtpm, version
/// id:20191023. These are the bytes that swtpm_localca writes (TCG EK Credential Profile 2.5
/// section 3.1.2, measured from swtpm 0.7.1).
const TPM_NAME: &str = "3046A444304231163014060567810502010C0B69643A30303030313031343110300E060567810502020C05737774706D\
                        31163014060567810502030C0B69643A3230313931303233";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_ek_comes_with_one_certificate_that_its_vendor_signed() -> Result<()> {
        let vendor = trusted_vendor()?;
        for kind in EkKind::ALL {
            let tpm = vendor.device(kind, 0)?;
            for other in EkKind::ALL {
                assert_eq!(
                    tpm.ek_certificate(other).is_ok(),
                    other == kind,
                    "{other:?} on a TPM of {kind:?}"
                );
            }
            assert_eq!(
                public_key_of(&tpm.ek_certificate(kind)?)?,
                tpm.ek_public_pem(kind)?,
                "{kind:?}"
            );
            assert!(verifies(&vendor, &tpm.ek_certificate(kind)?)?, "{kind:?}");
            assert!(!verifies(&untrusted_vendor()?, &tpm.ek_certificate(kind)?)?, "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn numbers_tell_devices_apart_and_find_them_again() -> Result<()> {
        let vendor = trusted_vendor()?;
        let ek = |number| vendor.device(EkKind::P256, number)?.ek_public_pem(EkKind::P256);
        assert_eq!(ek(0)?, ek(0)?);
        assert_ne!(ek(0)?, ek(1)?);
        Ok(())
    }

    #[test]
    fn a_certificate_can_be_replaced_by_an_expired_one() -> Result<()> {
        let vendor = trusted_vendor()?;
        let tpm = vendor.device(EkKind::Rsa2048, 0)?;
        let public = tpm.ek_public_pem(EkKind::Rsa2048)?;
        let expired =
            EkCertificate { not_after: "2021-01-01 00:00:00 UTC", ..EkCertificate::default() };
        for (certificate, valid) in [(EkCertificate::default(), true), (expired, false)] {
            tpm.write_ek_certificate(EkKind::Rsa2048, &vendor.certify(&public, &certificate)?)?;
            assert_eq!(verifies(&vendor, &tpm.ek_certificate(EkKind::Rsa2048)?)?, valid);
        }
        Ok(())
    }

    fn public_key_of(certificate: &[u8]) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(&file, certificate)?;
        let mut x509 = tool("openssl")?;
        x509.args(["x509", "-inform", "DER", "-noout", "-pubkey", "-in"]).arg(file.path());
        Ok(String::from_utf8(run(&mut x509)?.stdout)?)
    }

    fn verifies(vendor: &VendorCa, certificate: &[u8]) -> Result<bool> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(&file, certificate)?;
        let mut verify = tool("openssl")?;
        verify
            .arg("verify")
            .arg("-CAfile")
            .arg(vendor.root_pem())
            .arg("-untrusted")
            .arg(vendor.intermediate_pem());
        Ok(verify.arg(file.path()).output()?.status.success())
    }
}
