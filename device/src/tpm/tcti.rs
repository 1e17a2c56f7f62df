//! Where the TPM is: the TCTI strings we accept.

use std::fmt;
use std::str::FromStr;

/// A checked TCTI string (TCG TSS 2.0 TCTI Specification): how the TPM is reached. Printed, it is the string itself.
///
/// | string | TPM |
/// |---|---|
/// | `device:PATH` | a kernel device; the default is `device:/dev/tpmrm0`, behind the kernel's resource manager |
/// | `swtpm:host=H,port=P` | swtpm on TCP; its control channel must be on port P + 1 |
/// | `mssim:host=H,port=P` | the TCG reference simulator on TCP |
/// | `tabrmd`, `tabrmd:bus_name=N,bus_type=T` | the user-space resource manager |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcti(String);

/// Why a string is not a TCTI we accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TctiError {
    /// A unix socket was asked for.
    #[error(
        "unix sockets are not supported: the TPM library would silently connect to TCP port 2321 instead; start swtpm with \
         `--server type=tcp,port=P --ctrl type=tcp,port=P+1` and use swtpm:host=127.0.0.1,port=P"
    )]
    UnixSocket,
    /// Anything else.
    #[error("expected device:PATH, swtpm:host=H,port=P, mssim:host=H,port=P or tabrmd, but {0}")]
    Malformed(String),
}

impl Tcti {
    /// The string, as the TSS understands it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the TPM is a kernel device.
    pub fn is_device(&self) -> bool {
        self.0.starts_with("device:")
    }

    /// Whether a resource manager keeps the objects and sessions of its users apart, and frees them when a user dies.
    pub fn has_resource_manager(&self) -> bool {
        self.0.starts_with("tabrmd") || self.0.strip_prefix("device:").is_some_and(|path| path.contains("tpmrm"))
    }
}

impl Default for Tcti {
    fn default() -> Self {
        Self("device:/dev/tpmrm0".into())
    }
}

impl FromStr for Tcti {
    type Err = TctiError;

    fn from_str(text: &str) -> Result<Self, TctiError> {
        let malformed = |why: String| TctiError::Malformed(why);
        let (name, conf) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "device" if conf.is_empty() => return Ok(Self::default()),
            "device" => {}
            "swtpm" | "mssim" => {
                let (host, port) = (value(conf, "host"), value(conf, "port"));
                if value(conf, "path").is_some() {
                    return Err(TctiError::UnixSocket);
                }
                if conf.split(',').count() != 2 || host.is_none_or(str::is_empty) {
                    return Err(malformed(format!("`{conf}` is not host=H,port=P")));
                }
                if port.is_none_or(|port| port.parse::<u16>().is_err()) {
                    return Err(malformed(format!("`{conf}` has no port number")));
                }
            }
            "tabrmd" => {
                let known = |pair: &str| pair.starts_with("bus_name=") || pair.starts_with("bus_type=");
                if !conf.is_empty() && !conf.split(',').all(known) {
                    return Err(malformed(format!("`{conf}` is not bus_name=N,bus_type=T")));
                }
            }
            _ => return Err(malformed(format!("`{name}` is none of them"))),
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn value<'a>(conf: &'a str, key: &str) -> Option<&'a str> {
    conf.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_accepted() {
        for text in [
            "device:/dev/tpmrm0",
            "device:/dev/tpm0",
            "swtpm:host=127.0.0.1,port=2321",
            "mssim:port=2321,host=localhost",
            "tabrmd",
            "tabrmd:bus_name=com.example,bus_type=session",
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
    }

    #[test]
    fn a_unix_socket_is_refused_with_the_reason() {
        let error = "swtpm:path=/run/swtpm.sock".parse::<Tcti>().unwrap_err();
        assert_eq!(error, TctiError::UnixSocket);
        assert!(error.to_string().contains("host=127.0.0.1,port=P"));
    }

    #[test]
    fn what_the_tpm_library_would_silently_replace_by_a_default_is_refused() {
        for text in
            ["swtpm", "swtpm:", "swtpm:port=1", "swtpm:host=,port=1", "swtpm:host=a,port=x", "mssim:host=a", "tpm", ""]
        {
            assert!(matches!(text.parse::<Tcti>(), Err(TctiError::Malformed(_))), "{text}");
        }
    }
}
