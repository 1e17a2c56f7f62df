//! The options that name a device: its TPM, its state directory, and whom it trusts.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use assay_device::tpm::{HierarchyPasswords, Password, Tcti, TctiError};
use assay_device::{Device, DeviceOptions, Error, read_certificates};
use clap::Args;

#[derive(Args, Clone)]
pub(super) struct DeviceArgs {
    /// The CA's root certificate, PEM or DER. The certificates of the broker and of the device must
    /// lead to it.
    #[arg(long, value_name = "FILE")]
    pub(super) ca_root: PathBuf,
    /// For a device without a clock. The device assumes that the time is not before the first day
    /// of the CA's root, and of any certificate that the CA signed. It may accept an expired
    /// certificate.
    #[arg(long)]
    pub(super) no_clock: bool,
    /// The state directory; made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub(super) state: PathBuf,
    #[command(flatten)]
    pub(super) tpm: TpmArgs,
}

#[derive(Args, Clone)]
pub(super) struct TpmArgs {
    /// How to reach the TPM: device:PATH, swtpm:host=H,port=P or swtpm:path=PATH. An agent built
    /// with libtss2 also takes tabrmd, mssim:host=H,port=P, and tss2: before any of these.
    #[arg(long, default_value_t = Tcti::default(), value_parser = parse_tcti)]
    pub(super) tcti: Tcti,
    /// File with the TPM's owner password. A newline at its end does not count. Without the file,
    /// the environment variable ASSAY_OWNER_AUTH is used.
    #[arg(long, value_name = "FILE")]
    pub(super) owner_auth_file: Option<PathBuf>,
    /// File with the TPM's endorsement password. Without the file, the environment variable
    /// ASSAY_ENDORSEMENT_AUTH is used.
    #[arg(long, value_name = "FILE")]
    pub(super) endorsement_auth_file: Option<PathBuf>,
    /// How long one call to the TPM may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) tpm_timeout: u64,
}

pub(super) fn open(args: DeviceArgs) -> Result<Device, Error> {
    let ca_roots = read_certificates(&args.ca_root)?;
    Device::open(DeviceOptions {
        ca_roots,
        no_clock: args.no_clock,
        ..options(args.state, args.tpm)?
    })
}

pub(super) fn options(state: PathBuf, args: TpmArgs) -> Result<DeviceOptions, Error> {
    Ok(DeviceOptions {
        passwords: passwords(&args)?,
        tcti: args.tcti,
        tpm_timeout: Duration::from_secs(args.tpm_timeout),
        state,
        ca_roots: Vec::new(),
        no_clock: false,
    })
}

pub(super) fn passwords(args: &TpmArgs) -> Result<HierarchyPasswords, Error> {
    Ok(HierarchyPasswords {
        owner: password(args.owner_auth_file.as_deref(), "ASSAY_OWNER_AUTH")?,
        endorsement: password(args.endorsement_auth_file.as_deref(), "ASSAY_ENDORSEMENT_AUTH")?,
    })
}

/// Reads a password from a file or the environment. It is never on the command line, which every
/// user of the machine can read.
pub(super) fn password(file: Option<&Path>, variable: &str) -> Result<Password, Error> {
    let (source, mut password) = match file {
        Some(file) => {
            let unreadable =
                |error: io::Error| Error::Usage(format!("{}: {error}", file.display()));
            (file.display().to_string(), fs::read(file).map_err(unreadable)?)
        }
        None => (variable.into(), env::var_os(variable).unwrap_or_default().into_vec()),
    };
    if file.is_some() && password.ends_with(b"\n") {
        password.pop();
    }
    Password::new(password).ok_or_else(|| {
        Error::Usage(format!("{source}: a TPM password has at most {} bytes", Password::MAX))
    })
}

pub(super) fn parse_tcti(text: &str) -> Result<Tcti, String> {
    text.parse().map_err(|error| match error {
        TctiError::WithoutLibrary(_) => {
            format!("{error}: cargo build --release -p assay-device --features tss2")
        }
        error => error.to_string(),
    })
}

#[cfg(all(test, not(feature = "tss2")))]
mod tests {
    use super::*;

    #[test]
    fn way_through_libtss2_that_is_not_built_in_is_refused_with_the_command_that_builds_it() {
        let error = parse_tcti("tabrmd").unwrap_err();
        assert!(error.contains("cargo build --release -p assay-device --features tss2"), "{error}");
        assert_eq!(parse_tcti("device:/dev/tpm0").unwrap().as_str(), "device:/dev/tpm0");
    }
}
