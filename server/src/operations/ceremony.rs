//! What is done with a root key where it is, mostly on a machine without a network: it is made, it
//! certifies what other machines ask for, and it is split. A transcript says so each time.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::key::PublicKey;
use assay_ca_core::{Authority, CaKind, CaRequest};
use assay_pkcs11::Tokens;
use pem::Pem;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::age::{Identity, Passphrase};
use crate::issuing_files::Files;
use crate::issuing_keys::TokenPlace;
use crate::new_files::{PUBLIC, SECRET};
use crate::random::{random, random_bytes};
use crate::rfc3339;
use crate::root_files::{self, Root, STEM};
use crate::root_key::{self, Dice, ENCRYPTED, KeptRoot, RootKey, Unlock};
use crate::shares::{self, Share, Split};
use crate::transcript::{Transcript, Witness, Written, fingerprint};

/// Where the key of a new root is kept.
pub enum Keep {
    /// In a file that this passphrase opens.
    Passphrase(Passphrase),
    /// In a file that shares open.
    Shares(SharesTo),
    /// In a token.
    Token(TokenPlace),
}

/// How a key is split, and the new directory for the files with the shares.
pub struct SharesTo {
    /// How many there are, and how many are needed.
    pub split: Split,
    /// It is made.
    pub directory: PathBuf,
}

/// What a root is made as.
pub enum As<'a, 'b> {
    /// The first one of a CA, of this name.
    First(&'a str),
    /// The one after this one, which certifies it: devices follow. It has the same name, and the
    /// time.
    After(&'a Locked, &'a mut Unlock<'b>),
}

/// Makes a root in a new or empty directory, and nothing else of a CA. Rolls of dice are mixed into
/// a key that is in a file.
///
/// # Errors
/// The directory is not empty, the token failed, the root before cannot be opened, or the files
/// cannot be written.
pub fn init(
    path: &Path,
    made_as: As<'_, '_>,
    keep: Keep,
    dice: Option<&Dice>,
    present: &[Witness],
    now: OffsetDateTime,
) -> Result<Written> {
    // First, because it fails for want of names.
    let mut transcript = Transcript::begin("a root was made", present, now)?;
    // Before anything is made.
    let (name, before) = match made_as {
        As::First(name) => (name, None),
        As::After(before, unlock) => {
            ensure!(before.is_valid_at(now)?, "the root before is not valid now");
            ("", Some((before, before.open(unlock)?)))
        }
    };
    let files = new_directory(path)?;
    let kept = match keep {
        Keep::Token(place) => {
            let mut tokens = Tokens::default();
            let (uri, public) = place.take("root", &mut tokens, now)?;
            let key = RootKey::Token(tokens.key(std::slice::from_ref(&uri), public));
            (key, KeptRoot::Token(vec![uri]), None)
        }
        Keep::Passphrase(passphrase) => {
            let (key, pem) = new_key(dice)?;
            let file = root_key::with_passphrase(&pem, &passphrase)?;
            (RootKey::Here(key), KeptRoot::Encrypted(file), None)
        }
        Keep::Shares(to) => {
            let (key, pem) = new_key(dice)?;
            let file = split_to(&to, &pem)?;
            (RootKey::Here(key), KeptRoot::Encrypted(file), Some(to.split))
        }
    };
    let (key, kept, split) = kept;
    let is_in_token = matches!(kept, KeptRoot::Token(_));
    let (root, cross) = match &before {
        None => (Authority::root_with(name, key, now, &mut random())?, None),
        Some((_, before)) => {
            let (root, cross) = before.next_root_with(key, now, &mut random())?;
            (root, Some(cross))
        }
    };
    let certificate = CertificateDer::from_pem_slice(root.certificate().as_bytes())?;
    let (file, content) = match &kept {
        KeptRoot::Encrypted(file) => (format!("{STEM}{ENCRYPTED}"), file.clone()),
        KeptRoot::Token(uris) => (format!("{STEM}.pkcs11"), format!("{}\n", uris[0]).into()),
        KeptRoot::Clear(_) => bail!("a new root's key is never in clear"),
    };
    let randomness = match dice {
        _ if is_in_token => "the token's, if it made the key".to_owned(),
        None => "getrandom(2) of the operating system, through the generator of AWS-LC".to_owned(),
        Some(dice) => format!(
            "getrandom(2) of the operating system, 512 bits, and {} rolls of dice, mixed by \
             HKDF-SHA-256",
            dice.count()
        ),
    };
    transcript.line("random numbers", &randomness);
    tell_root(&mut transcript, &certificate, &kept)?;
    if let Some(split) = split {
        transcript.line("shares", &format!("{split} open it"));
    }
    if let (Some((before, _)), Some(cross)) = (&before, &cross) {
        transcript.part("Certified by the root before, for those who trust that one");
        tell_certificate(&mut transcript, &CertificateDer::from_pem_slice(cross.as_bytes())?)?;
        transcript.part("Root before");
        tell_certificate(&mut transcript, &before.root.certificate)?;
    }
    files.put(&file, &content, SECRET)?;
    let written = transcript.write(&files)?;
    if let Some(cross) = cross {
        files.put(CROSS, cross.as_bytes(), PUBLIC)?;
    }
    // Last: without it, the rest counts for nothing.
    files.put(&format!("{STEM}.pem"), root.certificate().as_bytes(), PUBLIC)?;
    Ok(written)
}

/// A root's directory, or that of a CA, whose key was not opened yet.
pub struct Locked {
    path: PathBuf,
    root: Root,
    kept: KeptRoot,
}

impl Locked {
    /// The newest root of this directory whose key is there, or is in the file `key`.
    ///
    /// # Errors
    /// There is none.
    pub fn find(path: &Path, key: Option<&Path>) -> Result<Self> {
        let roots = root_files::read(path)?;
        ensure!(
            !roots.is_empty(),
            "{} holds no root; `assay root init DIR` makes one, --dir says where it is",
            path.display()
        );
        for root in roots.into_iter().rev() {
            let kept = match key {
                Some(file) => Some(KeptRoot::read(file)?),
                None => KeptRoot::find(path, &root.name())?,
            };
            if let Some(kept) = kept {
                return Ok(Self { path: path.to_owned(), root, kept });
            }
        }
        bail!("no root's key is in {}; say --root-key FILE", path.display())
    }

    /// The root's name, and where its key is, for people.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn shown(&self) -> Result<String> {
        let (subject, not_after) = self.root.shown()?;
        let not_after = rfc3339::seconds(not_after.unix_timestamp());
        Ok(format!("{subject}, until {not_after}, key {}", self.kept.shown()))
    }

    fn is_valid_at(&self, now: OffsetDateTime) -> Result<bool> {
        let (_, own) = X509Certificate::from_der(&self.root.certificate)?;
        let validity = own.validity();
        Ok(validity.not_before.to_datetime() <= now && now <= validity.not_after.to_datetime())
    }

    fn open(&self, unlock: &mut Unlock<'_>) -> Result<Authority<RootKey>> {
        let certificate = &self.root.certificate;
        let name = self.root.name();
        let key = self.kept.open(certificate, unlock);
        key.and_then(|key| root_key::authority(certificate, key))
            .with_context(|| format!("the key of {name}.pem"))
    }

    /// Certifies what is asked for: issuing CAs and service CAs under this root. Returns the
    /// certificates in PEM, in the same order.
    ///
    /// # Errors
    /// The root is not valid now, a request has its name, or its key cannot be opened.
    pub fn sign(
        &self,
        requests: &Requests,
        unlock: &mut Unlock<'_>,
        present: &[Witness],
        now: OffsetDateTime,
    ) -> Result<(String, Written)> {
        let mut transcript = Transcript::begin("certificates were signed", present, now)?;
        let (_, own) = X509Certificate::from_der(&self.root.certificate)?;
        ensure!(
            self.is_valid_at(now)?,
            "the root is not valid now, by the clock of this machine: {}",
            rfc3339::seconds(now.unix_timestamp())
        );
        let root = self.open(unlock)?;
        tell_root(&mut transcript, &self.root.certificate, &self.kept)?;
        let mut certificates = String::new();
        for request in &requests.0 {
            let certificate = root.certify_request(request, now, &mut random())?;
            let der = CertificateDer::from_pem_slice(certificate.as_bytes())?;
            let (_, made) = X509Certificate::from_der(&der)?;
            ensure!(
                made.subject() != own.subject(),
                "the request has the name of the root; make it with another one"
            );
            transcript.part(match request.kind() {
                CaKind::Issuing => "Issuing CA, which certifies devices",
                CaKind::Service => {
                    "Service CA, which certifies brokers, workers, operators and backends"
                }
            });
            tell_certificate(&mut transcript, &der)?;
            transcript.line("request SHA-256", &hex::encode(request.sha256()));
            certificates += &certificate;
        }
        let written = transcript.write(&Files::open(&self.path)?)?;
        Ok((certificates, written))
    }

    /// Splits what opens the key: from now on shares open it, and nothing else. The key stays the
    /// same.
    ///
    /// # Errors
    /// The key is in a token or in another directory, cannot be opened, or the files cannot be
    /// written. Then what opened it still does.
    pub fn split(
        &self,
        to: &SharesTo,
        unlock: &mut Unlock<'_>,
        present: &[Witness],
        now: OffsetDateTime,
    ) -> Result<Written> {
        let mut transcript = Transcript::begin("the key of a root was split", present, now)?;
        let pem = self.kept.pem(unlock)?;
        let key = KeyPair::from_pem(&pem).context("the root's key is not PKCS #8")?;
        root_key::authority(&self.root.certificate, RootKey::Here(key))?;
        let encrypted = split_to(to, &pem)?;
        let (files, name) = (Files::open(&self.path)?, self.root.name());
        let kept = KeptRoot::Encrypted(encrypted.clone());
        tell_root(&mut transcript, &self.root.certificate, &kept)?;
        transcript.line("shares", &format!("{} open it", to.split));
        transcript.line("before", &format!("it was {}", self.kept.shown()));
        let written = transcript.write(&files)?;
        files.replace(&format!("{name}{ENCRYPTED}"), &encrypted, SECRET)?;
        files.remove(&format!("{name}.key"))?;
        Ok(written)
    }
}

/// Requests of one file.
#[derive(Clone, Debug)]
pub struct Requests(Vec<CaRequest>);

impl Requests {
    /// Reads requests, one or several, in PEM.
    ///
    /// # Errors
    /// There is none or there are too many, or one asks for something else than a root certifies.
    pub fn read(file: &Path) -> Result<Self> {
        let shown = file.display();
        let length = fs::metadata(file).map(|it| it.len());
        let length = length.with_context(|| format!("cannot read {shown}"))?;
        ensure!(length <= MAX_FILE, "{shown} is longer than any file with requests");
        let text = fs::read(file).with_context(|| format!("cannot read {shown}"))?;
        let blocks = pem::parse_many(&text).with_context(|| format!("{shown} is not PEM"))?;
        let is_request = |it: &&Pem| it.tag() == "CERTIFICATE REQUEST";
        ensure!(
            (1..=2).contains(&blocks.len()) && blocks.iter().all(|it| is_request(&it)),
            "{shown} holds something else than one or two requests (CERTIFICATE REQUEST)"
        );
        let checked = blocks.iter().map(|it| {
            CaRequest::check(it.contents()).with_context(|| format!("a request in {shown}"))
        });
        Ok(Self(checked.collect::<Result<_>>()?))
    }

    /// What is asked for, for people, a line each.
    pub fn shown(&self) -> Vec<String> {
        let shown = |request: &CaRequest| {
            let what = match request.kind() {
                CaKind::Issuing => "an issuing CA, for devices alone",
                CaKind::Service => "a service CA, for brokers, workers, operators and backends",
            };
            format!(
                "{what}: CN={}\n  key {}, SHA-256 {}\n  request SHA-256 {}",
                request.common_name(),
                request.key(),
                fingerprint(request.key().spki()),
                hex::encode(request.sha256())
            )
        };
        self.0.iter().map(shown).collect()
    }
}

/// A key, and the same in PEM.
fn new_key(dice: Option<&Dice>) -> Result<(KeyPair, Zeroizing<String>)> {
    let key = match dice {
        None => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?,
        Some(dice) => dice.key(&Zeroizing::new(random_bytes()))?,
    };
    let pem = Zeroizing::new(key.serialize_pem());
    Ok((key, pem))
}

/// Writes the shares of a new private key of age to a new directory, and returns a file that it
/// opens. Reads the shares again, and opens the file with those that come last: nobody finds out
/// years later that they do not.
fn split_to(to: &SharesTo, pem: &str) -> Result<Vec<u8>> {
    let identity = Identity::generate();
    let encrypted = root_key::with_identity(pem, &identity)?;
    let files = new_directory(&to.directory)?;
    let mut read = Vec::new();
    for share in shares::split(&identity, to.split)? {
        let number = share.number();
        let name = format!("share-{number}.txt");
        let text = format!(
            "Share {number} of the key of a root: {} open it.\nKeep it apart from the others, and \
             tell nobody.\n\n{}\n",
            to.split,
            *share.line()
        );
        files.put(&name, Zeroizing::new(text).as_bytes(), SECRET)?;
        read.push(Share::read(&files.read(&name)?.context("it was written")?)?);
    }
    read.reverse();
    read.truncate(to.split.threshold().into());
    let mut no_passphrase = || bail!("shares open it");
    let mut unlock = Unlock { shares: read, passphrase: &mut no_passphrase };
    let again = KeptRoot::Encrypted(encrypted.clone()).pem(&mut unlock)?;
    ensure!(*again == pem, "the shares that were written do not open the key");
    Ok(encrypted)
}

/// Makes a directory for its owner alone, which must not exist or be empty.
fn new_directory(path: &Path) -> Result<Files> {
    let shown = path.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {shown}"))?;
    let mut entries = fs::read_dir(path).with_context(|| format!("cannot read {shown}"))?;
    ensure!(entries.next().is_none(), "{shown} is not empty; choose a directory that is new");
    Files::open(path)
}

fn tell_root(
    transcript: &mut Transcript,
    certificate: &CertificateDer<'_>,
    kept: &KeptRoot,
) -> Result<()> {
    transcript.part("Root");
    tell_certificate(transcript, certificate)?;
    transcript.line("key is kept", &kept.shown());
    Ok(())
}

fn tell_certificate(transcript: &mut Transcript, der: &CertificateDer<'_>) -> Result<()> {
    let (_, parsed) = X509Certificate::from_der(der)?;
    let name = assay_wire::printable(&parsed.subject().to_string(), assay_wire::MAX_SHOWN);
    let key = PublicKey::from_spki(parsed.public_key().raw);
    transcript.line("name", &name);
    transcript.line("serial number", &parsed.raw_serial_as_string());
    let validity = parsed.validity();
    for (name, time) in [("valid from", validity.not_before), ("valid until", validity.not_after)] {
        transcript.line(name, &rfc3339::seconds(time.timestamp()));
    }
    transcript.line("SHA-256", &fingerprint(der));
    transcript.line("kind of key", &key.map_or_else(|it| it.to_string(), |it| it.to_string()));
    transcript.line("key SHA-256", &fingerprint(parsed.public_key().raw));
    Ok(())
}

/// The file with the certificate by which the root before vouches for a new one. In the directory of
/// a CA, it would be taken for one of the root of that name.
const CROSS: &str = "cross.pem";
/// In bytes. Two requests of RSA keys of 4096 bits have some 4000.
const MAX_FILE: u64 = 64 * 1024;
