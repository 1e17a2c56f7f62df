//! Encrypts a file to recipients or with a passphrase, and opens it again, in the format of age
//! (age-encryption.org/v1, C2SP), for X25519 keys and scrypt.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::hmac;
use bech32::Hrp;
use bech32::primitives::decode::CheckedHrpstring;
use data_encoding::BASE64_NOPAD;
use scrypt::{Params, scrypt};
use zeroize::Zeroizing;

use crate::random_bytes;

/// A public key, to which a file is encrypted: `age1…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

/// A private key, which opens what is encrypted to its recipient: `AGE-SECRET-KEY-1…`.
pub struct Identity(Zeroizing<[u8; 32]>);

impl Recipient {
    /// The public key.
    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let key = bech32_key("age", text);
        Ok(Self(key.with_context(|| {
            format!("{text:?} is not a recipient of age: `age-keygen` prints one, age1…")
        })?))
    }
}

impl Identity {
    /// The identities in a file of `age-keygen`: one a line, beside comments.
    ///
    /// # Errors
    /// There is none, or a line is something else.
    pub fn read_all(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines().map(str::trim).filter(|it| !it.is_empty() && !it.starts_with('#'));
        let identities = lines.map(|line| {
            let key = bech32_key("age-secret-key-", &line.to_ascii_lowercase()).map(Zeroizing::new);
            // The text may be a secret, so the error does not show it.
            key.map(Self).context("a line is not an identity of age (AGE-SECRET-KEY-1…)")
        });
        let identities = identities.collect::<Result<Vec<_>>>()?;
        ensure!(!identities.is_empty(), "there is no identity of age (AGE-SECRET-KEY-1…)");
        Ok(identities)
    }

    /// A new one.
    pub(crate) fn generate() -> Self {
        Self(Zeroizing::new(random_bytes()))
    }

    /// Of this secret: see [`secret`](Self::secret).
    pub(crate) fn of(secret: [u8; 32]) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// What there is to be kept secret.
    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whom to encrypt to, so that this opens it.
    ///
    /// # Errors
    /// It is no usable key.
    pub(crate) fn recipient(&self) -> Result<Recipient> {
        Ok(Recipient(public(&self.key()?)?))
    }

    fn key(&self) -> Result<PrivateKey> {
        PrivateKey::from_private_key(&X25519, &*self.0).context("an unusable identity")
    }
}

/// What opens a file: the private key of a recipient, or a passphrase.
pub trait Opens {
    /// The file key of this stanza, if it is for whoever has this.
    ///
    /// # Errors
    /// The stanza is damaged.
    fn file_key(&self, stanza: &Stanza<'_>) -> Result<Option<FileKey>>;
}

/// Whom a file key is encrypted to: the arguments of a line of the header, and what follows it.
pub struct Stanza<'a> {
    arguments: &'a str,
    body: &'a str,
}

impl Opens for Identity {
    fn file_key(&self, stanza: &Stanza<'_>) -> Result<Option<FileKey>> {
        let Some(share) = stanza.arguments.strip_prefix("X25519 ") else { return Ok(None) };
        let (share, wrapped) = (decoded(share)?, decoded(stanza.body)?);
        let share = share[..].try_into().context("a recipient is damaged")?;
        let key = self.key()?;
        let ours = public(&key)?;
        FileKey::unwrap(&wrapping_key(&key, share, share, &ours)?, wrapped)
    }
}

/// A passphrase, wiped when dropped.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// The fewest characters.
    pub const MIN: usize = 12;

    /// The passphrase that this is.
    ///
    /// # Errors
    /// It is too short.
    pub fn new(text: Zeroizing<String>) -> Result<Self> {
        ensure!(
            text.chars().count() >= Self::MIN,
            "a passphrase has {} characters at least; six words of a list, chosen by dice, are good",
            Self::MIN
        );
        Ok(Self(text))
    }

    fn wrapping_key(&self, salt: &[u8; 16], log_n: u8) -> Result<LessSafeKey> {
        let params = Params::new(log_n, 8, 1).context("an unusable work factor")?;
        let salt = [&b"age-encryption.org/v1/scrypt"[..], salt].concat();
        let mut key = Zeroizing::new([0; 32]);
        scrypt(self.0.as_bytes(), &salt, &params, &mut *key).context("cannot derive a key")?;
        chacha(&key)
    }
}

impl Opens for Passphrase {
    fn file_key(&self, stanza: &Stanza<'_>) -> Result<Option<FileKey>> {
        let Some(arguments) = stanza.arguments.strip_prefix(SCRYPT) else { return Ok(None) };
        let (salt, log_n) = arguments.split_once(' ').context("the header is damaged")?;
        let salt = decoded(salt)?[..].try_into().context("the header is damaged")?;
        let log_n: u8 = log_n.parse().context("the header is damaged")?;
        // Whoever wrote the file chose how much memory and time this takes.
        ensure!(log_n <= MAX_WORK, "the passphrase has a work factor of {log_n}, above {MAX_WORK}");
        let file_key = FileKey::unwrap(&self.wrapping_key(&salt, log_n)?, decoded(stanza.body)?)?;
        Ok(Some(file_key.context("the passphrase is not that of this file")?))
    }
}

/// Whether a file begins like one that a passphrase opens.
pub fn has_passphrase(file: &[u8]) -> bool {
    file.starts_with(format!("{VERSION}\n-> {SCRYPT}").as_bytes())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// Encrypts what is written to it. What was written is whole only after [`finish`](Self::finish).
pub struct Encrypted<W> {
    to: W,
    payload: Payload,
    chunk: Vec<u8>,
}

impl<W: Write> Encrypted<W> {
    /// Begins a file that each of the recipients can open.
    ///
    /// # Errors
    /// It cannot be written, or a recipient is no point that a key can be agreed with.
    pub fn new(to: W, recipients: &[Recipient]) -> Result<Self> {
        let file_key = FileKey(random_bytes());
        let mut stanzas = String::new();
        for Recipient(theirs) in recipients {
            let ephemeral = PrivateKey::generate(&X25519).context("no random numbers")?;
            let share = public(&ephemeral)?;
            let wrapped = file_key.wrap(&wrapping_key(&ephemeral, theirs, &share, theirs)?)?;
            stanzas += &format!("-> X25519 {}\n{wrapped}\n", BASE64_NOPAD.encode(&share));
        }
        Self::begin(to, &file_key, &stanzas)
    }

    /// Begins a file that this passphrase opens.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn with_passphrase(to: W, passphrase: &Passphrase) -> Result<Self> {
        let (file_key, salt) = (FileKey(random_bytes()), random_bytes());
        let wrapped = file_key.wrap(&passphrase.wrapping_key(&salt, WORK)?)?;
        let salt = BASE64_NOPAD.encode(&salt);
        Self::begin(to, &file_key, &format!("-> {SCRYPT}{salt} {WORK}\n{wrapped}\n"))
    }

    fn begin(mut to: W, file_key: &FileKey, stanzas: &str) -> Result<Self> {
        let header = format!("{VERSION}\n{stanzas}---");
        let mac = hmac::sign(&file_key.mac_key()?, header.as_bytes());
        writeln!(to, "{header} {}", BASE64_NOPAD.encode(mac.as_ref()))?;
        let nonce: [u8; 16] = random_bytes();
        to.write_all(&nonce)?;
        Ok(Self { to, payload: file_key.payload(&nonce)?, chunk: Vec::with_capacity(CHUNK + TAG) })
    }

    /// Writes the end, without which nobody takes the file for whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.write_chunk(true)?;
        Ok(self.to)
    }

    fn write_chunk(&mut self, is_last: bool) -> io::Result<()> {
        self.payload.seal(&mut self.chunk, is_last)?;
        self.to.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

impl<W: Write> Write for Encrypted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits until it is known whether another follows: the last one is marked.
        if self.chunk.len() == CHUNK {
            self.write_chunk(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads what was encrypted. Nothing is given out that was altered, and an end that is missing is
/// an error.
pub struct Decrypted<R> {
    from: R,
    payload: Payload,
    chunk: Vec<u8>,
    given: usize,
    is_over: bool,
}

impl<R: BufRead> Decrypted<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// None of these opens it, or it was altered.
    pub fn new(mut from: R, keys: &[impl Opens]) -> Result<Self> {
        let (mut header, mut stanzas) = (String::new(), 0);
        let mut line = |header: &mut String| -> Result<String> {
            let begin = header.len();
            let mut limited = from.by_ref().take(MAX_LINE);
            limited.read_line(header).context("the header is not that of a file of age")?;
            let line = &header[begin..];
            ensure!(line.ends_with('\n') && header.len() < MAX_HEADER, "the header is cut off");
            Ok(header[begin..].trim_end_matches('\n').to_owned())
        };
        ensure!(line(&mut header)? == VERSION, "this is not version 1 of age's format");
        let (mut file_key, mut has_passphrase) = (None, false);
        let mac = loop {
            let before = header.len();
            let text = line(&mut header)?;
            if let Some(mac) = text.strip_prefix("--- ") {
                header.truncate(before + "---".len());
                break decoded(mac)?;
            }
            let Some(arguments) = text.strip_prefix("-> ") else { bail!("the header is damaged") };
            // The body ends with the first line that is not full.
            let mut body = String::new();
            loop {
                let text = line(&mut header)?;
                body += &text;
                if text.len() < 64 {
                    break;
                }
            }
            stanzas += 1;
            // Otherwise somebody could open it besides who knows the passphrase.
            let is_alone = stanzas == 1 || !(arguments.starts_with(SCRYPT) || has_passphrase);
            ensure!(is_alone, "a passphrase is not alone in the header");
            has_passphrase |= arguments.starts_with(SCRYPT);
            for key in keys {
                if file_key.is_none() {
                    file_key = key.file_key(&Stanza { arguments, body: &body })?;
                }
            }
        };
        let file_key = file_key.context(
            "it is encrypted to another recipient; give the identity of one of its recipients",
        )?;
        hmac::verify(&file_key.mac_key()?, header.as_bytes(), &mac)
            .context("the header was altered")?;
        let mut nonce = [0; 16];
        from.read_exact(&mut nonce).context("the file is cut off")?;
        let payload = file_key.payload(&nonce)?;
        Ok(Self { from, payload, chunk: Vec::new(), given: 0, is_over: false })
    }

    fn read_chunk(&mut self) -> io::Result<()> {
        self.chunk.clear();
        self.given = 0;
        self.from.by_ref().take((CHUNK + TAG) as u64).read_to_end(&mut self.chunk)?;
        self.is_over = self.from.fill_buf()?.is_empty();
        self.payload.open(&mut self.chunk, self.is_over).inspect_err(|_| {
            // Whoever reads on after the error gets nothing of it, and the error again.
            self.chunk.clear();
            self.is_over = false;
        })
    }
}

impl<R: BufRead> Read for Decrypted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.given == self.chunk.len() && !self.is_over {
            self.read_chunk()?;
        }
        let rest = &self.chunk[self.given..];
        let taken = rest.len().min(into.len());
        into[..taken].copy_from_slice(&rest[..taken]);
        self.given += taken;
        Ok(taken)
    }
}

/// What encrypts a file; it is new for each.
pub struct FileKey([u8; 16]);

impl FileKey {
    fn wrap(&self, key: &LessSafeKey) -> Result<String> {
        let mut wrapped = self.0.to_vec();
        key.seal_in_place_append_tag(zero_nonce(), Aad::empty(), &mut wrapped)
            .context("cannot wrap the file key")?;
        Ok(BASE64_NOPAD.encode(&wrapped))
    }

    fn unwrap(key: &LessSafeKey, wrapped: Vec<u8>) -> Result<Option<Self>> {
        let mut file_key = Zeroizing::new(wrapped);
        let opened = key.open_in_place(zero_nonce(), Aad::empty(), &mut file_key);
        Ok(opened.ok().and_then(|opened| (&*opened).try_into().ok()).map(Self))
    }

    fn mac_key(&self) -> Result<hmac::Key> {
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &*derived(&[], &self.0, b"header")?))
    }

    fn payload(&self, nonce: &[u8; 16]) -> Result<Payload> {
        Ok(Payload { key: chacha(&*derived(nonce, &self.0, b"payload")?)?, counter: 0 })
    }
}

impl Drop for FileKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// The chunks of a file, in their order: the STREAM construction. A counter and a mark of the last
/// chunk are the nonce, so none can be left out, repeated or moved.
struct Payload {
    key: LessSafeKey,
    counter: u64,
}

impl Payload {
    fn seal(&mut self, chunk: &mut Vec<u8>, is_last: bool) -> io::Result<()> {
        let sealed = self.key.seal_in_place_append_tag(self.nonce(is_last), Aad::empty(), chunk);
        self.counter += 1;
        sealed.map_err(|_| io::Error::other("cannot encrypt"))
    }

    /// After an error this waits for the same chunk, so nothing opens that comes after it.
    fn open(&mut self, chunk: &mut Vec<u8>, is_last: bool) -> io::Result<()> {
        let nonce = self.nonce(is_last);
        let damaged =
            |_| io::Error::new(io::ErrorKind::InvalidData, "it is cut off or was altered");
        let length = self.key.open_in_place(nonce, Aad::empty(), chunk).map_err(damaged)?.len();
        self.counter += 1;
        chunk.truncate(length);
        Ok(())
    }

    fn nonce(&self, is_last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.counter.to_be_bytes());
        nonce[11] = is_last.into();
        Nonce::assume_unique_for_key(nonce)
    }
}

fn wrapping_key(
    ours: &PrivateKey,
    theirs: &[u8; 32],
    share: &[u8; 32],
    recipient: &[u8; 32],
) -> Result<LessSafeKey> {
    let theirs = UnparsedPublicKey::new(&X25519, theirs);
    // This fails if the secret is zero: then the point is of small order, and anybody knows it.
    let unusable = anyhow::anyhow!("a recipient is not a usable key");
    let salt = [&share[..], recipient].concat();
    agree(ours, theirs, unusable, |secret| {
        chacha(&*derived(&salt, secret, b"age-encryption.org/v1/X25519")?)
    })
}

fn public(key: &PrivateKey) -> Result<[u8; 32]> {
    let public = key.compute_public_key().context("an unusable key")?;
    public.as_ref().try_into().context("an unusable key")
}

fn derived(salt: &[u8], secret: &[u8], label: &[u8]) -> Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    let prk = Salt::new(HKDF_SHA256, salt).extract(secret);
    let label = [label];
    let output = prk.expand(&label, HKDF_SHA256).context("cannot derive a key")?;
    output.fill(&mut *key).context("cannot derive a key")?;
    Ok(key)
}

fn chacha(key: &[u8; 32]) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).context("an unusable key")?;
    Ok(LessSafeKey::new(key))
}

/// Each wrapping key is used once.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn bech32_key(prefix: &str, text: &str) -> Result<[u8; 32]> {
    let decoded = CheckedHrpstring::new::<bech32::Bech32>(text)?;
    ensure!(decoded.hrp() == Hrp::parse(prefix)?, "it begins otherwise");
    let bytes: Vec<u8> = decoded.byte_iter().collect();
    Ok(bytes[..].try_into()?)
}

fn decoded(base64: &str) -> Result<Vec<u8>> {
    BASE64_NOPAD.decode(base64.as_bytes()).context("the header is damaged")
}

/// The first line of every such file.
pub const VERSION: &str = "age-encryption.org/v1";
const SCRYPT: &str = "scrypt ";
/// The binary logarithm of scrypt's N: 256 MiB, and about a second (age takes the same).
const WORK: u8 = 18;
/// The most that a file may ask for: 4 GiB (age takes the same).
const MAX_WORK: u8 = 22;
const CHUNK: usize = 64 * 1024;
const TAG: usize = 16;
const MAX_LINE: u64 = 4096;
const MAX_HEADER: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    // Of the examples of age's own tests (C2SP CCTV, `x25519`).
    const RECIPIENT: &str = "age1lvyvwawkr0mcnnnncaghunadrqkmuf9e6507x9y920xxpp866cnql7dp2z";

    fn identity() -> Identity {
        let text = "# created by hand\nAGE-SECRET-KEY-1XMWWC06LY3EE5RYTXM9MFLAZ2U56JJJ36S0MYPDRWSVLUL66MV4QX3S7F6\n";
        Identity::read_all(text).unwrap().remove(0)
    }

    fn recipient(identity: &Identity) -> Recipient {
        Recipient(public(&identity.key().unwrap()).unwrap())
    }

    fn encrypted(recipients: &[Recipient], content: &[u8]) -> Vec<u8> {
        let mut to = Encrypted::new(Vec::new(), recipients).unwrap();
        to.write_all(content).unwrap();
        to.finish().unwrap()
    }

    fn opened(bytes: &[u8], identity: Identity) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        Decrypted::new(bytes, &[identity])?.read_to_end(&mut content)?;
        Ok(content)
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.to_owned())).unwrap()
    }

    #[test]
    fn passphrase_opens_what_it_encrypted_and_no_other_does() {
        let mut to =
            Encrypted::with_passphrase(Vec::new(), &passphrase("correct horse battery")).unwrap();
        to.write_all(b"a key").unwrap();
        let file = to.finish().unwrap();
        assert!(has_passphrase(&file) && !has_passphrase(&encrypted(&[], b"")));
        let opened = |text: &str| {
            let mut content = Vec::new();
            Decrypted::new(&file[..], &[passphrase(text)])?.read_to_end(&mut content)?;
            Ok::<_, anyhow::Error>(content)
        };
        assert_eq!(opened("correct horse battery").unwrap(), b"a key");
        let refused = opened("correct horse batterz").unwrap_err().to_string();
        assert!(refused.contains("the passphrase is not"), "{refused}");
        assert!(Decrypted::new(&file[..], &[identity()]).is_err());
        assert!(Passphrase::new(Zeroizing::new("short".into())).is_err());
    }

    #[test]
    fn header_may_ask_for_no_more_memory_than_there_is_and_for_no_second_recipient() {
        let refused = |header: &str| {
            let error = Decrypted::new(header.as_bytes(), &[passphrase("correct horse battery")]);
            error.err().map(|it| it.to_string()).unwrap_or_default()
        };
        let (salt, body) = (BASE64_NOPAD.encode(&[1; 16]), BASE64_NOPAD.encode(&[2; 32]));
        let said = refused(&format!("{VERSION}\n-> scrypt {salt} 23\n{body}\n--- x\n"));
        assert!(said.contains("work factor of 23"), "{said}");
        let two = format!("{VERSION}\n-> X25519 {salt}\n{body}\n-> scrypt {salt} 10\n{body}\n");
        let said = refused(&two);
        assert!(said.contains("not alone"), "{said}");
    }

    #[test]
    fn content_of_any_length_comes_back() {
        let other: Recipient = RECIPIENT.parse().unwrap();
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let content: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let file = encrypted(&[other.clone(), recipient(&identity())], &content);
            assert_eq!(opened(&file, identity()).unwrap(), content, "{length}");
        }
    }

    #[test]
    fn what_is_cut_off_or_altered_anywhere_does_not_open() {
        let file = encrypted(&[recipient(&identity())], &[7; CHUNK + 5]);
        for length in [0, 10, 100, file.len() - CHUNK, file.len() - 21, file.len() - 1] {
            assert!(opened(&file[..length], identity()).is_err(), "{length}");
        }
        for at in (0..300).chain([file.len() - 30, file.len() - 1]) {
            let mut altered = file.clone();
            altered[at] ^= 1;
            assert!(opened(&altered, identity()).is_err(), "byte {at}");
        }
        // A whole chunk less, and the first chunk twice.
        let begin = file.len() - (CHUNK + 5 + 2 * TAG);
        assert!(opened(&file[..begin + CHUNK + TAG], identity()).is_err());
        let twice = [&file[..begin + CHUNK + TAG], &file[begin..]].concat();
        assert!(opened(&twice, identity()).is_err());
    }

    #[test]
    fn nothing_is_given_out_that_comes_after_an_altered_chunk() {
        let file = encrypted(&[recipient(&identity())], &[7; 3 * CHUNK]);
        let mut altered = file.clone();
        altered[file.len() - CHUNK - 2 * TAG] ^= 1;
        let mut reader = Decrypted::new(&altered[..], &[identity()]).unwrap();
        let (mut content, mut into) = (0, [0; CHUNK]);
        let mut errors = 0;
        for _ in 0..6 {
            match reader.read(&mut into) {
                Ok(length) => content += length,
                Err(_) => errors += 1,
            }
        }
        assert_eq!((content, errors), (CHUNK, 5));
    }

    #[test]
    fn another_identity_opens_nothing() {
        let file = encrypted(&[RECIPIENT.parse().unwrap()], b"secret");
        let error = opened(&file, identity()).unwrap_err().to_string();
        assert!(error.contains("another recipient"), "{error}");
    }

    #[test]
    fn text_that_is_no_key_is_refused_and_a_secret_is_not_repeated() {
        for text in ["", "age1", "age1qqq", &RECIPIENT[..60], &RECIPIENT.replace("cnql", "cnqa")] {
            assert!(text.parse::<Recipient>().is_err(), "{text}");
        }
        let error = Identity::read_all("AGE-SECRET-KEY-1SECRET").unwrap_err();
        assert!(!format!("{error:#}").contains("SECRET-KEY-1SECRET"));
        assert!(Identity::read_all("# nothing\n").is_err());
    }
}
