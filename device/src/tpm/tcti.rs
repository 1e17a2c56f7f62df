//! Where the TPM is: the TCTI strings we accept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A TCTI string (TCG TSS 2.0 TCTI Specification): how the TPM is reached. Printed, it is the string itself.
///
/// | string | TPM |
/// |---|---|
/// | `device:PATH` | a kernel device; the default is `device:/dev/tpmrm0`, behind the kernel's resource manager |
/// | `swtpm:host=H,port=P` | swtpm on TCP; its control channel is not used |
/// | `swtpm:path=PATH` | swtpm on a Unix socket, likewise |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcti {
    text: String,
    address: Address,
}

/// What a TCTI string says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Device(PathBuf),
    Tcp(String, u16),
    Unix(PathBuf),
}

/// Why a string is not a TCTI we accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TctiError {
    /// The user-space resource manager was asked for.
    #[error("tabrmd is not supported: the kernel's resource manager does the same; use device:/dev/tpmrm0")]
    Tabrmd,
    /// The TCG reference simulator was asked for.
    #[error("mssim is not supported: use swtpm, with swtpm:host=H,port=P or swtpm:path=PATH")]
    Mssim,
    /// Anything else.
    #[error("expected device:PATH, swtpm:host=H,port=P or swtpm:path=PATH, but {0}")]
    Malformed(String),
}

impl Tcti {
    /// The string, as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the TPM is a kernel device.
    pub fn is_device(&self) -> bool {
        matches!(self.address, Address::Device(_))
    }

    /// The path of the kernel device, if the TPM is one.
    pub(crate) fn device_path(&self) -> Option<&Path> {
        match &self.address {
            Address::Device(path) => Some(path),
            _ => None,
        }
    }

    /// Whether a resource manager keeps the objects and sessions of its users apart, and frees them when a user dies.
    pub fn has_resource_manager(&self) -> bool {
        matches!(&self.address, Address::Device(path) if path.to_string_lossy().contains("tpmrm"))
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl Default for Tcti {
    fn default() -> Self {
        Self { text: format!("device:{DEFAULT_DEVICE}"), address: Address::Device(DEFAULT_DEVICE.into()) }
    }
}

impl FromStr for Tcti {
    type Err = TctiError;

    fn from_str(text: &str) -> Result<Self, TctiError> {
        let (name, conf) = text.split_once(':').unwrap_or((text, ""));
        let address = match name {
            "device" if conf.is_empty() => return Ok(Self::default()),
            "device" => Address::Device(conf.into()),
            "swtpm" => swtpm(conf).map_err(TctiError::Malformed)?,
            "tabrmd" => return Err(TctiError::Tabrmd),
            "mssim" => return Err(TctiError::Mssim),
            _ => return Err(TctiError::Malformed(format!("`{name}` is none of them"))),
        };
        Ok(Self { text: text.into(), address })
    }
}

fn swtpm(conf: &str) -> Result<Address, String> {
    if let Some(path) = conf.strip_prefix("path=").filter(|path| !path.is_empty()) {
        return Ok(Address::Unix(path.into()));
    }
    let value = |key: &str| conf.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    match (value("host"), value("port")) {
        (Some(host), Some(port)) if !host.is_empty() && conf.split(',').count() == 2 => {
            let port = port.parse().map_err(|_| format!("`{conf}` has no port number"))?;
            Ok(Address::Tcp(host.into(), port))
        }
        _ => Err(format!("`{conf}` is neither host=H,port=P nor path=PATH")),
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

const DEFAULT_DEVICE: &str = "/dev/tpmrm0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_accepted() {
        for text in [
            "device:/dev/tpmrm0",
            "device:/dev/tpm0",
            "swtpm:host=127.0.0.1,port=2321",
            "swtpm:port=2321,host=localhost",
            "swtpm:path=/run/swtpm.sock",
        ] {
            assert_eq!(text.parse::<Tcti>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_device_without_path_is_the_one_behind_the_resource_manager() {
        assert_eq!("device".parse(), Ok(Tcti::default()));
        assert!(Tcti::default().has_resource_manager());
        assert!(!"device:/dev/tpm0".parse::<Tcti>().unwrap().has_resource_manager());
        assert!(!"swtpm:host=::1,port=1".parse::<Tcti>().unwrap().has_resource_manager());
        assert!(!"swtpm:path=/tmp/tpmrm0".parse::<Tcti>().unwrap().has_resource_manager());
    }

    #[test]
    fn what_is_no_longer_supported_is_refused_with_what_to_use_instead() {
        for (text, instead) in [
            ("mssim:host=localhost,port=2321", "swtpm:host=H,port=P"),
            ("tabrmd", "device:/dev/tpmrm0"),
            ("tabrmd:bus_name=com.example,bus_type=session", "device:/dev/tpmrm0"),
        ] {
            let error = text.parse::<Tcti>().unwrap_err().to_string();
            assert!(error.contains("not supported") && error.contains(instead), "{error}");
        }
    }

    #[test]
    fn what_leaves_the_address_open_is_refused() {
        for text in [
            "swtpm",
            "swtpm:",
            "swtpm:port=1",
            "swtpm:host=,port=1",
            "swtpm:host=a,port=x",
            "swtpm:host=a,port=65536",
            "swtpm:host=a,port=1,path=/b",
            "swtpm:path=",
            "tpm",
            "",
        ] {
            assert!(matches!(text.parse::<Tcti>(), Err(TctiError::Malformed(_))), "{text}");
        }
    }
}
