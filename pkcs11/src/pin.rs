//! Where a token's PIN comes from: a file, the environment, a credential of systemd, or a prompt.
//! Never a command line, which every user of the machine can read.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::failure::{Cause, Failure};
use crate::uri::Uri;

/// A PIN, wiped when dropped.
pub(crate) type Pin = Zeroizing<Vec<u8>>;

/// The PIN of this URI's token: from the file that the URI names, or else from the environment, from
/// systemd, or from whoever sits at the terminal.
///
/// # Errors
/// There is none.
pub(crate) fn pin_of(uri: &Uri) -> Result<Pin, Failure> {
    if let Some(file) = uri.pin_file() {
        return read(file);
    }
    if let Some(pin) = env::var_os(VARIABLE) {
        return checked(Zeroizing::new(pin.into_encoded_bytes()), VARIABLE);
    }
    if let Some(file) = credential() {
        return read(&file);
    }
    prompted(&uri.token().to_string())
}

/// Whether somebody at a terminal is asked for the PIN of this URI's token.
pub(crate) fn asks_somebody(uri: &Uri) -> bool {
    let is_known = || {
        let asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        asked.contains_key(&uri.token().to_string())
    };
    uri.pin_file().is_none()
        && env::var_os(VARIABLE).is_none()
        && credential().is_none()
        && io::stdin().is_terminal()
        && !is_known()
}

/// A file that systemd gave to the service (systemd.exec(5), `LoadCredential=`).
fn credential() -> Option<PathBuf> {
    let file = Path::new(&env::var_os("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
    file.exists().then_some(file)
}

fn read(file: &Path) -> Result<Pin, Failure> {
    let mut pin = Zeroizing::new(Vec::with_capacity(MAX_PIN + 2));
    let read = File::open(file).and_then(|it| it.take(MAX_PIN as u64 + 2).read_to_end(&mut pin));
    let shown = file.display();
    read.map_err(|error| Failure::new(Cause::NoPin, format_args!("cannot read {shown}: {error}")))?;
    if pin.last() == Some(&b'\n') {
        pin.pop();
    }
    checked(pin, &shown.to_string())
}

fn checked(pin: Pin, place: &str) -> Result<Pin, Failure> {
    match pin.len() {
        1..=MAX_PIN => Ok(pin),
        length => {
            let text = format!("{place} has {length} bytes, not 1 to {MAX_PIN}");
            Err(Failure::new(Cause::NoPin, text))
        }
    }
}

/// Asks for the PIN again next time: it was refused.
pub(crate) fn forget(uri: &Uri) {
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    asked.remove(&uri.token().to_string());
}

/// What was typed. A process that stays does not ask again when it connects again.
static ASKED: LazyLock<Mutex<HashMap<String, Pin>>> = LazyLock::new(Mutex::default);

/// Asks once for each token.
fn prompted(token: &str) -> Result<Pin, Failure> {
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pin) = asked.get(token) {
        return Ok(pin.clone());
    }
    if !io::stdin().is_terminal() {
        let advice = format!(
            "name a file (pin-source=file:/path in the URI), set {VARIABLE}, or give a service the \
             credential {CREDENTIAL}"
        );
        return Err(Failure::new(Cause::NoPin, advice));
    }
    let pin = rpassword::prompt_password(format!("PIN of token {token}: "));
    let pin = pin.map_err(|error| Failure::new(Cause::NoPin, error))?;
    let pin = checked(Zeroizing::new(pin.into_bytes()), "what was typed")?;
    asked.insert(token.to_owned(), pin.clone());
    Ok(pin)
}

/// The variable with the PIN. The process with the vendor's library does not get it.
pub(crate) const VARIABLE: &str = "ASSAY_PKCS11_PIN";
/// The name of systemd's credential with the PIN.
const CREDENTIAL: &str = "assay-pkcs11-pin";
/// In bytes. PKCS #11 leaves the limit to tokens; the longest known are below this.
const MAX_PIN: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pkcs11_pin_file_holds_one_line_of_a_bounded_length() {
        let file = |content: &[u8]| {
            let path = env::temp_dir().join(format!("assay-pin-{}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            let read = read(&path);
            std::fs::remove_file(&path).unwrap();
            read
        };
        for (content, pin) in [("1234", "1234"), ("1234\n", "1234"), ("12\n34\n", "12\n34")] {
            assert_eq!(file(content.as_bytes()).unwrap().as_slice(), pin.as_bytes());
        }
        for content in ["", "\n", &"1".repeat(MAX_PIN + 1)] {
            assert_eq!(file(content.as_bytes()).unwrap_err().cause, Cause::NoPin, "{content:?}");
        }
        assert!(file("1".repeat(MAX_PIN).as_bytes()).is_ok());
        assert_eq!(read(Path::new("/none")).unwrap_err().cause, Cause::NoPin);
    }
}
