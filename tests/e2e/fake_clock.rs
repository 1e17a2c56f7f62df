//! A clock that tests set, for the processes that are given it: libfaketime sets only what a
//! process takes for the time of day.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

/// The clock of some processes. It runs as the machine's does, apart by an offset.
pub(crate) struct FakeClock {
    place: TempDir,
}

impl FakeClock {
    /// When every process has noticed that it was set. Nothing wakes a process that waits, as the
    /// kernel would.
    pub(crate) const NOTICED: Duration = Duration::from_millis(1_500);

    /// It is right at first.
    pub(crate) fn new() -> Result<Self> {
        let clock = Self { place: tempfile::tempdir()? };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it apart by so many seconds.
    pub(crate) fn set(&self, offset: i64) -> Result<()> {
        // A process may read the file at any moment.
        let fresh = self.place.path().join("fresh");
        fs::write(&fresh, format!("{offset:+}"))?;
        Ok(fs::rename(fresh, self.file())?)
    }

    /// What a process needs in its environment to have this clock.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 4] {
        [
            ("LD_PRELOAD", OsStr::new("/usr/$LIB/faketime/libfaketime.so.1").to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().into_os_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", OsStr::new("1").to_owned()),
            // libfaketime reads the file again when more whole seconds than these have begun.
            ("FAKETIME_CACHE_DURATION", OsStr::new("0").to_owned()),
        ]
    }

    /// The same command, with this clock.
    pub(crate) fn give_to(&self, mut command: Command) -> Command {
        command.envs(self.environment());
        command
    }

    fn file(&self) -> PathBuf {
        self.place.path().join("offset")
    }
}
