//! `assay-device key`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use assay_device::{Error, KeyFormat, export_key};
use clap::{Args, Subcommand, ValueEnum};

use super::{TpmArgs, options, print_line, show_step};

#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// Prints how another program can use the identity key, e.g. OpenSSL with the provider
    /// tpm2-openssl.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
}

#[derive(Args)]
pub(super) struct ExportArgs {
    /// The state directory. It is only read.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// handle: a URI of tpm2-openssl. tss2: a PEM file, for programs that read a key file. If
    /// 0x81000001 is free, this makes the storage root key persistent there, because the file needs
    /// it.
    #[arg(long)]
    format: Format,
    /// Where to write it: a file, which gets mode 0600, a device or a pipe. [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    tpm: TpmArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Handle,
    Tss2,
}

const EXPORT_EXAMPLES: &str = "Examples:
  assay-device key export --state /var/lib/assay-device --format handle
  assay-device key export --state /var/lib/assay-device --format tss2 --out device.key

The key has no password: whoever can use the TPM can use the key. Neither form has a secret that is
of use without this TPM.";

impl KeyCommand {
    pub(super) fn run(self) -> Result<(), Error> {
        let Self::Export(ExportArgs { state, format, out, tpm }) = self;
        let format = match format {
            Format::Handle => KeyFormat::Handle,
            Format::Tss2 => KeyFormat::Tss2,
        };
        let exported = export_key(options(state, tpm)?, format, &mut show_step)?;
        let Some(path) = out else { return print_line(exported.trim_end()) };
        let unwritable = |error: io::Error| Error::Usage(format!("{}: {error}", path.display()));
        write(&path, &exported).map_err(unwritable)
    }
}

/// Replaces the file as a whole, so that a reader finds the old or the new one.
fn write(path: &Path, contents: &str) -> io::Result<()> {
    if !may_be_replaced(path) {
        return OpenOptions::new().write(true).open(path)?.write_all(contents.as_bytes());
    }
    let mut new = path.to_path_buf().into_os_string();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(contents.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Not a device or a pipe, which other programs need as it is: root could put a file at the place
/// of `/dev/null`. `/dev/stdout` is a link that may lead to a file.
fn may_be_replaced(path: &Path) -> bool {
    !path.starts_with("/dev") && (path.is_file() || !path.exists())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::process::{Command, Stdio};

    use super::*;

    /// As root, `--out /dev/null` would else put a file where every program expects the device.
    #[test]
    fn pipe_is_written_to_and_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut reader = Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().unwrap();
        write(&pipe, "key").unwrap();
        let is_pipe = pipe.metadata().unwrap().file_type().is_fifo();
        if !is_pipe {
            reader.kill().unwrap();
        }
        assert_eq!(reader.wait_with_output().unwrap().stdout, b"key");
        assert!(is_pipe);
    }

    #[test]
    fn file_is_replaced_and_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("device.key");
        fs::write(&file, "of before, and longer").unwrap();
        write(&file, "key").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"key");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
