//! Opens a connection to a TPM, by the way that its TCTI string says.

use std::io;

use super::command::Direct;
use super::commands::Connection;
#[cfg(feature = "tss2")]
use super::library::Library;
use super::parts::CommandError;
use super::transport::Transport;
use crate::tpm::password::HierarchyPasswords;
use crate::tpm::tcti::{Address, Tcti};

/// Opens a connection as the TCTI string says.
pub(super) fn open<'a>(
    tcti: &Tcti,
    passwords: &'a HierarchyPasswords,
) -> Result<Box<Connection<'a>>, CommandError> {
    match tcti.address() {
        #[cfg(feature = "tss2")]
        Address::Library(name, conf) => Ok(Box::new(Library::open(name, conf, passwords)?)),
        Address::Direct(wire) => Ok(Box::new(Direct::open(wire, passwords)?)),
    }
}

/// Whether there is something to connect to.
pub(super) fn reaches(tcti: &Tcti) -> io::Result<()> {
    match tcti.address() {
        #[cfg(feature = "tss2")]
        Address::Library(name, conf) => {
            match Library::open(name, conf, &HierarchyPasswords::default()) {
                Err(CommandError::Io(error)) => Err(error),
                Err(error) => Err(io::Error::other(error)),
                Ok(_) => Ok(()),
            }
        }
        Address::Direct(wire) => Transport::open(wire).map(drop),
    }
}
