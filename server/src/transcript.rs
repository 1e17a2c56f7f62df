//! The transcript of an act with a root key, on which two people sign: who, when, with what, and the
//! fingerprints of all that was made.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::dated;
use crate::issuing_files::Files;
use crate::new_files::PUBLIC;
use crate::rfc3339;

/// A person who was present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness(String);

impl std::str::FromStr for Witness {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.trim();
        let fits = (1..=60).contains(&name.chars().count());
        if fits && assay_wire::printable(name, 60) == name {
            return Ok(Self(name.to_owned()));
        }
        Err("not a name: 1 to 60 printable characters")
    }
}

/// What is being written down.
pub(crate) struct Transcript {
    text: String,
    at: OffsetDateTime,
}

/// A transcript in its file.
#[derive(Clone, Debug)]
pub struct Written {
    /// The name of the file.
    pub file: String,
    /// SHA-256 of what is in it, in hexadecimal.
    pub sha256: String,
}

impl Transcript {
    /// Begins it: what is done, by whom, when, and on which machine with which program.
    ///
    /// # Errors
    /// Nobody is named, or the program cannot be read.
    pub(crate) fn begin(act: &str, present: &[Witness], at: OffsetDateTime) -> Result<Self> {
        ensure!(!present.is_empty(), "a transcript says who was present: --by NAME, for each");
        let program = fs::read("/proc/self/exe").context("cannot read this program")?;
        let kernel = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
            assay_wire::printable(text.trim(), 100)
        };
        let mut this = Self { text: "Transcript of an act with a root key\n".into(), at };
        this.part("What was done");
        this.line("act", act);
        let clock = rfc3339::seconds(at.unix_timestamp());
        this.line("when", &format!("{clock}, by the clock of this machine"));
        present.iter().for_each(|it| this.line("present", &it.0));
        this.part("With what");
        let (host, release) = (kernel("hostname"), kernel("osrelease"));
        this.line("machine", &format!("{host}, Linux {release}"));
        this.line("program", &format!("assay {}", env!("ASSAY_VERSION")));
        this.line("its SHA-256", &hex::encode(Sha256::digest(program)));
        Ok(this)
    }

    pub(crate) fn part(&mut self, heading: &str) {
        writeln!(self.text, "\n{heading}").expect("a string has room");
    }

    pub(crate) fn line(&mut self, name: &str, value: &str) {
        writeln!(self.text, "  {name:<16} {value}").expect("a string has room");
    }

    /// Ends it with the lines for two signatures, and writes it to a new file of this directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(mut self, files: &Files) -> Result<Written> {
        self.part("We were present, and compared every fingerprint on the screen with this page");
        for _ in 0..2 {
            let [name, signature] = ["_".repeat(28), "_".repeat(32)];
            write!(
                self.text,
                "\n  name {name}\n\n  signature {signature}  date {}\n",
                "_".repeat(16)
            )
            .expect("a string has room");
        }
        let name = dated::name("transcript", Some(self.at));
        let mut file = format!("{name}.txt");
        // Several acts may be of the same second.
        for number in 2.. {
            if files.read(&file)?.is_none() {
                break;
            }
            file = format!("{name}-{number}.txt");
        }
        files.put(&file, self.text.as_bytes(), PUBLIC)?;
        Ok(Written { file, sha256: hex::encode(Sha256::digest(&self.text)) })
    }
}

/// SHA-256 of a file that people compare, in hexadecimal.
pub(crate) fn fingerprint(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes))
}
