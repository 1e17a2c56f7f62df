//! A place for the files of a CA that is being made, beside where they will be.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::new_files::{NewFiles, ours};

/// A directory in the CA's directory, for this user alone. It is removed when this is dropped; if
/// the process is killed before, whoever makes a CA there next removes it.
pub(crate) struct Staging {
    held: File,
    place: PathBuf,
}

impl NewFiles<'_> {
    /// A place that is empty. The file system of the CA's directory has the room that its files
    /// need, and nobody keeps it for others to read, as a shared directory for temporary files may
    /// be.
    pub(crate) fn staging(&self) -> Result<Staging> {
        let place = self.directory.join(NAME);
        DirBuilder::new().mode(0o700).create(&place)?;
        Staging::hold(place)
    }
}

impl Staging {
    /// Holds a directory that was just made. The owner of the CA's directory may be another user,
    /// who could put a link in its place.
    fn hold(place: PathBuf) -> Result<Self> {
        let staging = Self { held: File::open(&place)?, place };
        let (held, named) = (staging.held.metadata()?, fs::symlink_metadata(&staging.place)?);
        ensure!(
            held.uid() == ours()?.0 && (held.dev(), held.ino()) == (named.dev(), named.ino()),
            "somebody else changes the directory meanwhile"
        );
        Ok(staging)
    }

    /// The same directory, whatever is put in its place.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd()))
    }

    /// Removes what a process that was killed has left in a CA's directory.
    pub(crate) fn remove(directory: &Path) -> io::Result<()> {
        // It follows no link.
        match fs::remove_dir_all(directory.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.place);
    }
}

/// No file of a CA has a name that begins with a point.
const NAME: &str = ".unpacked";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::directory::Directory;

    #[test]
    fn two_commands_do_not_make_a_ca_in_one_directory_at_once() {
        let parent = tempfile::tempdir().unwrap();
        let other = File::open(parent.path()).unwrap();
        other.lock().unwrap();
        let refused = Directory::create(parent.path(), "Test", &[]).unwrap_err().to_string();
        assert!(refused.contains("another command"), "{refused}");
        other.unlock().unwrap();
        Directory::create(parent.path(), "Test", &[]).unwrap();
    }

    #[test]
    fn place_is_for_its_user_alone_and_gone_afterwards() {
        let parent = tempfile::tempdir().unwrap();
        let files = NewFiles::of(parent.path()).unwrap();
        let staging = files.staging().unwrap();
        fs::write(staging.path().join("root.key"), "key").unwrap();
        let place = parent.path().join(NAME);
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read(place.join("root.key")).unwrap(), b"key");
        drop(staging);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_left_is_removed_and_nothing_that_a_link_leads_to() {
        let (parent, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("file"), "content").unwrap();
        symlink(other.path(), parent.path().join(NAME)).unwrap();
        assert!(Staging::hold(parent.path().join(NAME)).is_err());
        symlink(other.path(), parent.path().join(NAME)).unwrap();
        Staging::remove(parent.path()).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        assert!(other.path().join("file").exists());
    }
}
