//! Where the TPM is: the TCTI strings we accept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A TCTI string (TCG TSS 2.0 TCTI Specification): how the TPM is reached. `Display` gives the
/// string itself.
///
/// | string | TPM |
/// |---|---|
/// | `device:PATH` | a kernel device; the default is `device:/dev/tpmrm0`, behind the kernel's resource manager |
/// | `swtpm:host=H,port=P` | swtpm on TCP; its control channel is not used |
/// | `swtpm:path=PATH` | swtpm on a Unix socket, likewise |
/// | `tabrmd`, `tabrmd:bus_name=N,bus_type=T` | the user-space resource manager, through libtss2 |
/// | `mssim:host=H,port=P` | the TCG reference simulator, through libtss2 |
/// | `tss2:device:PATH`, `tss2:swtpm:host=H,port=P`, `tss2:tabrmd`, `tss2:mssim:…` | any of these through libtss2 |
///
/// What goes through libtss2 needs the cargo feature `tss2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcti {
    text: String,
    address: Address,
}

/// What a TCTI string says: who speaks to the TPM, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Direct(Wire),
    /// A TCTI of libtss2, and its configuration.
    #[cfg(feature = "tss2")]
    Library(&'static str, String),
}

/// How our own commands reach the TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Device(PathBuf),
    Tcp(String, u16),
    Unix(PathBuf),
}

/// Why a string is not a TCTI we accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TctiError {
    /// The string asks for libtss2, and this build has none.
    #[error(
        "{0} goes through libtss2, which is not in this build; build it with the cargo feature \
         tss2, or use device:/dev/tpmrm0"
    )]
    WithoutLibrary(String),
    /// The string asks for libtss2 with something that libtss2 does not take.
    #[error("expected tss2: and one of {LIBRARY_FORMS}, but {0}")]
    MalformedForLibrary(String),
    /// Anything else.
    #[error(
        "expected device:PATH, swtpm:host=H,port=P, swtpm:path=PATH, tabrmd, mssim:host=H,port=P \
         or tss2:…, but {0}"
    )]
    Malformed(String),
}

impl Tcti {
    /// The string, as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the TPM is a kernel device.
    pub fn is_device(&self) -> bool {
        matches!(self.address, Address::Direct(Wire::Device(_)))
    }

    /// Whether the TPM is reached through libtss2.
    pub fn is_of_library(&self) -> bool {
        match self.address {
            Address::Direct(_) => false,
            #[cfg(feature = "tss2")]
            Address::Library(..) => true,
        }
    }

    /// The path of the kernel device, if the TPM is one.
    pub(crate) fn device_path(&self) -> Option<&Path> {
        match &self.address {
            Address::Direct(Wire::Device(path)) => Some(path),
            _ => None,
        }
    }

    /// Whether a resource manager keeps the objects and sessions of its users apart, and frees
    /// those of a process that ends.
    pub fn has_resource_manager(&self) -> bool {
        match &self.address {
            Address::Direct(Wire::Device(path)) => path.to_string_lossy().contains("tpmrm"),
            Address::Direct(Wire::Tcp(..) | Wire::Unix(_)) => false,
            #[cfg(feature = "tss2")]
            Address::Library(name, conf) => {
                *name == "tabrmd" || *name == "device" && conf.contains("tpmrm")
            }
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl Default for Tcti {
    fn default() -> Self {
        Self {
            text: format!("device:{DEFAULT_DEVICE}"),
            address: Address::Direct(Wire::Device(DEFAULT_DEVICE.into())),
        }
    }
}

impl FromStr for Tcti {
    type Err = TctiError;

    fn from_str(text: &str) -> Result<Self, TctiError> {
        let (name, conf) = text.split_once(':').unwrap_or((text, ""));
        let address = match name {
            "device" if conf.is_empty() => return Ok(Self::default()),
            "device" => Address::Direct(Wire::Device(conf.into())),
            "swtpm" => Address::Direct(swtpm(conf).map_err(TctiError::Malformed)?),
            "tss2" => library(conf)?,
            "tabrmd" | "mssim" => library(text)?,
            _ => return Err(TctiError::Malformed(format!("`{name}` is none of them"))),
        };
        Ok(Self { text: text.into(), address })
    }
}

fn swtpm(conf: &str) -> Result<Wire, String> {
    if let Some(path) = conf.strip_prefix("path=").filter(|path| !path.is_empty()) {
        return Ok(Wire::Unix(path.into()));
    }
    let value =
        |key: &str| conf.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    match (value("host"), value("port")) {
        (Some(host), Some(port)) if !host.is_empty() && conf.split(',').count() == 2 => {
            let port = port.parse().map_err(|_| format!("`{conf}` has no port number"))?;
            Ok(Wire::Tcp(host.into(), port))
        }
        _ => Err(format!("`{conf}` is neither host=H,port=P nor path=PATH")),
    }
}

/// Refuses what the crate `tss-esapi` would silently misread: it reads `swtpm:path=…` as localhost,
/// port 2321.
fn library(text: &str) -> Result<Address, TctiError> {
    let malformed = |why: &str| Err(TctiError::MalformedForLibrary(format!("`{text}` {why}")));
    let (name, conf) = text.split_once(':').unwrap_or((text, ""));
    let name = match name {
        "device" if conf.is_empty() => return library(&format!("device:{DEFAULT_DEVICE}")),
        "device" => "device",
        "swtpm" | "mssim" => {
            if !matches!(swtpm(conf), Ok(Wire::Tcp(..))) {
                return malformed("lacks host=H,port=P");
            }
            if name == "swtpm" { "swtpm" } else { "mssim" }
        }
        "tabrmd" => {
            let is_known =
                |pair: &str| pair.starts_with("bus_name=") || pair.starts_with("bus_type=");
            if !conf.is_empty() && !conf.split(',').all(is_known) {
                return malformed("has something other than bus_name=N,bus_type=T");
            }
            "tabrmd"
        }
        _ => return malformed("is none of them"),
    };
    through_library(name, conf)
}

#[cfg(feature = "tss2")]
fn through_library(name: &'static str, conf: &str) -> Result<Address, TctiError> {
    Ok(Address::Library(name, conf.into()))
}

#[cfg(not(feature = "tss2"))]
fn through_library(name: &'static str, _conf: &str) -> Result<Address, TctiError> {
    Err(TctiError::WithoutLibrary(name.into()))
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

const LIBRARY_FORMS: &str =
    "device:PATH, swtpm:host=H,port=P, mssim:host=H,port=P and tabrmd[:bus_name=N,bus_type=T]";
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

    const OF_LIBRARY: [&str; 6] = [
        "mssim:host=localhost,port=2321",
        "tabrmd",
        "tabrmd:bus_name=com.example,bus_type=session",
        "tss2:tabrmd",
        "tss2:device:/dev/tpm0",
        "tss2:swtpm:host=127.0.0.1,port=2321",
    ];

    #[cfg(feature = "tss2")]
    #[test]
    fn what_goes_through_libtss2_is_accepted() {
        for text in OF_LIBRARY {
            let tcti = text.parse::<Tcti>().unwrap();
            assert!(tcti.is_of_library() && tcti.as_str() == text, "{text}");
            assert_eq!(tcti.has_resource_manager(), text.contains("tabrmd"), "{text}");
        }
        assert!("tss2:device".parse::<Tcti>().unwrap().has_resource_manager());
    }

    #[cfg(not(feature = "tss2"))]
    #[test]
    fn what_goes_through_libtss2_is_refused_without_it_and_the_feature_named() {
        for text in OF_LIBRARY {
            let error = text.parse::<Tcti>().unwrap_err().to_string();
            assert!(
                error.contains("the cargo feature tss2") && error.contains("device:/dev/tpmrm0"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_libtss2_would_misunderstand_is_refused() {
        for text in [
            "tss2:swtpm:path=/run/swtpm.sock",
            "tss2:swtpm",
            "mssim",
            "mssim:host=localhost",
            "tabrmd:bus=session",
            "tss2:cmd:program",
            "tss2:",
            "tss2",
        ] {
            assert!(
                matches!(text.parse::<Tcti>(), Err(TctiError::MalformedForLibrary(_))),
                "{text}"
            );
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
