//! Build script of the binaries: `--version` names the commit that they were built from.
//!
//! It reads Git's files itself, for not every machine that builds has `git`, and asks for no
//! network. A modified working tree is not told from a clean one: to know, each edit would have to
//! run this script.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed={COMMIT}");
    println!("cargo::rerun-if-changed=../build/version.rs");
    let version = env::var("CARGO_PKG_VERSION").expect("cargo says the version");
    let commit = match env::var(COMMIT) {
        Ok(commit) if !commit.is_empty() => Some(named(&commit).unwrap_or_else(|| {
            panic!(
                "{COMMIT} is {commit:?}; set it to a commit in 12 or more hexadecimal digits, or \
                 leave it unset"
            )
        })),
        _ => checked_out(),
    };
    let commit = commit.as_deref().unwrap_or("unknown commit");
    println!("cargo::rustc-env=ASSAY_VERSION={version} ({commit})");
}

/// The commit of the Git working tree that the workspace is; `None` if it is none, or in a form
/// that is unknown here.
fn checked_out() -> Option<String> {
    // Cargo runs the script in the package's directory.
    let git = git_directory(Path::new("../.git"))?;
    // Of a linked working tree, what is shared lies elsewhere (gitrepository-layout(5),
    // `commondir`).
    let common = match fs::read_to_string(git.join("commondir")) {
        Ok(common) => git.join(common.trim_end()),
        Err(_) => git.clone(),
    };
    let head = read(&git.join("HEAD"))?;
    match head.trim_end().strip_prefix("ref: ") {
        None => named(head.trim_end()),
        Some(reference) => loose(&common, reference).or_else(|| packed(&common, reference)),
    }
}

/// `.git` is a directory, or a file that says where it is.
fn git_directory(git: &Path) -> Option<PathBuf> {
    if git.is_dir() {
        return Some(git.to_owned());
    }
    let text = read(git)?;
    Some(git.parent()?.join(text.trim_end().strip_prefix("gitdir: ")?))
}

/// A branch with a file of its own. If it has none, the file's directory is watched, for the next
/// commit makes it.
fn loose(common: &Path, reference: &str) -> Option<String> {
    let file = common.join(reference);
    let commit = read(&file);
    if commit.is_none() {
        watch(file.ancestors().skip(1).find(|directory| directory.is_dir())?);
    }
    named(commit?.trim_end())
}

fn packed(common: &Path, reference: &str) -> Option<String> {
    let packed = read(&common.join("packed-refs"))?;
    packed.lines().find_map(|line| named(line.strip_suffix(reference)?.strip_suffix(' ')?))
}

/// A file's text; cargo runs this script again when it changes.
///
/// A file that is absent is not watched: cargo would take it for changed at every build.
fn read(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    watch(file);
    Some(text)
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

/// The first digits of a commit: enough to be the only one, in any repository of this size.
fn named(commit: &str) -> Option<String> {
    let is_commit = commit.len() >= DIGITS && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_commit.then(|| commit[..DIGITS].to_ascii_lowercase())
}

/// Where the commit stands if there is no Git: in an archive of the sources, or in a container.
const COMMIT: &str = "ASSAY_COMMIT";
const DIGITS: usize = 12;
