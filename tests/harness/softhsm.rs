//! SoftHSM: PKCS #11 tokens in a directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::tool::{run, tool};

/// A directory of tokens. Each has the user PIN [`SoftHsm::PIN`].
pub struct SoftHsm {
    dir: TempDir,
    configuration: PathBuf,
    /// The directories of the tokens.
    places: Vec<PathBuf>,
}

impl SoftHsm {
    /// The PIN of every token.
    pub const PIN: &str = "2468";
    /// Where Debian keeps the library.
    pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

    /// A directory with a token for each of these labels.
    pub fn new(labels: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let configuration = dir.path().join("softhsm2.conf");
        let tokens = dir.path().join("tokens");
        fs::create_dir(&tokens)?;
        let tokens = tokens.display();
        fs::write(
            &configuration,
            format!("directories.tokendir = {tokens}\nobjectstore.backend = file\n"),
        )?;
        let mut softhsm = Self { dir, configuration, places: Vec::new() };
        softhsm.write_pin(Self::PIN)?;
        for label in labels {
            let mut init = tool("softhsm2-util")?;
            init.args(["--init-token", "--free", "--so-pin", "1357", "--pin", Self::PIN]);
            run(init.args(["--label", label]).envs(softhsm.environment()))?;
            let places = fs::read_dir(softhsm.tokens())?;
            let places = places.map(|it| Ok(it?.path())).collect::<Result<Vec<_>>>()?;
            let new = places.into_iter().find(|it| !softhsm.places.contains(it));
            softhsm.places.push(new.context("a directory of the token")?);
        }
        Ok(softhsm)
    }

    /// What processes need in their environment that use it.
    pub fn environment(&self) -> [(&str, &OsStr); 1] {
        [("SOFTHSM2_CONF", self.configuration.as_os_str())]
    }

    /// The URI of a token, or of the key in it that has this label, with the file for the PIN.
    pub fn uri(&self, token: &str, key: Option<&str>) -> String {
        let pin = self.pin_file();
        let pin = pin.display();
        format!("{}&pin-source=file:{pin}", self.uri_without_pin(token, key))
    }

    /// The same without a file for the PIN.
    pub fn uri_without_pin(&self, token: &str, key: Option<&str>) -> String {
        let key = key.map_or_else(String::new, |key| format!(";object={key}"));
        format!("pkcs11:token={token}{key}?module-path={}", Self::MODULE)
    }

    /// The file that the URIs name.
    pub fn pin_file(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    /// Changes what is in that file.
    pub fn write_pin(&self, pin: &str) -> Result<()> {
        fs::write(self.pin_file(), format!("{pin}\n"))?;
        Ok(fs::set_permissions(self.pin_file(), fs::Permissions::from_mode(0o600))?)
    }

    /// Puts a private key in PKCS #8 into a token.
    pub fn import(&self, token: &str, label: &str, key: &Path) -> Result<()> {
        let mut import = tool("softhsm2-util")?;
        import.arg("--import").arg(key).args(["--token", token, "--label", label, "--id", "01"]);
        run(import.args(["--pin", Self::PIN]).envs(self.environment())).map(drop)
    }

    /// Where the tokens are.
    pub fn tokens(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    /// Takes the token out that was put in as this one, until it is put back.
    pub fn take_out(&self, number: usize) -> Result<TakenOut> {
        let place = self.places[number].clone();
        let kept = self.dir.path().join(format!("taken-out-{number}"));
        fs::rename(&place, &kept)?;
        Ok(TakenOut { place, kept })
    }
}

/// A token that was taken out.
pub struct TakenOut {
    place: PathBuf,
    kept: PathBuf,
}

impl TakenOut {
    /// Puts it back.
    pub fn put_back(self) -> Result<()> {
        Ok(fs::rename(self.kept, self.place)?)
    }
}
