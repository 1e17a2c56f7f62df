//! `cargo xtask real-tpms`: the CA's verdict on real vendors' certificates, beside the expected
//! one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{AssayDir, tool};
use clap::Args;
use serde_json::Value;
use tempfile::TempDir;

#[derive(Args)]
#[command(after_help = "\
What a file should be follows from its name, and from the column `kind` of DIR/index.md if there \
                        is one:
  root-*    a root: `assay trust add` takes it as one
  ica-*     an issuer, which must lead to a root or an anchor of DIR if OpenSSL says so
  anchor-*  a CA that `assay trust add --anchor` takes, and no root
  ek-*      an EK certificate: `assay enroll add` reads it, and `assay trust check` trusts it if \
                        and only if OpenSSL does
Files of kind G are signed with an algorithm that can be forged. The CA must refuse each with a \
                        sentence.

Example:
  cargo xtask real-tpms ../shared/realfiles")]
pub(crate) struct Arguments {
    /// A directory of certificates as vendors published them
    dir: PathBuf,
}

pub(crate) fn run(Arguments { dir }: &Arguments) -> Result<()> {
    let files = Files::read(dir)?;
    let ca = AssayDir::init()?;
    let mut rows = Vec::new();
    for file in files.of("root-") {
        rows.push(judge_ca(&ca, &files, file, &[], "root")?);
    }
    for file in files.of("anchor-") {
        // Without --anchor, the certificate only helps to build paths. With --anchor, the CA trusts
        // it.
        rows.push(judge_ca(&ca, &files, file, &[], "issuer")?);
        rows.push(judge_ca(&ca, &files, file, &["--anchor"], "anchor")?);
    }
    for file in files.of("ica-") {
        rows.push(judge_ca(&ca, &files, file, &[], "issuer")?);
    }
    let oracle = OpenSsl::new(&files)?;
    for file in files.of("ica-") {
        rows.push(judge_path(&ca, &oracle, file)?);
    }
    for file in files.of("ek-") {
        rows.push(judge_form(&ca, file)?);
        rows.push(judge_ek(&ca, &files, &oracle, file)?);
    }
    ensure!(
        !rows.is_empty(),
        "{} holds no file whose name begins with root-, ica-, anchor- or ek-",
        dir.display()
    );
    print(&rows);
    let wrong = rows.iter().filter(|row| !row.is_right).count();
    ensure!(wrong == 0, "wrong outcomes: {wrong} of {}", rows.len());
    Ok(())
}

/// What was asked about a file, and the answer.
struct Row {
    file: String,
    kind: String,
    asked: &'static str,
    expected: String,
    outcome: String,
    is_right: bool,
}

fn print(rows: &[Row]) {
    let file = rows.iter().map(|row| row.file.len()).max().unwrap_or_default();
    let kind = rows.iter().map(|row| row.kind.len()).max().unwrap_or_default().max(4);
    println!(
        "{:<file$}  {:<kind$}  {:<11}  {:<12}  {:<5}  outcome",
        "file", "kind", "asked", "expected", ""
    );
    for Row { file: name, kind: of_kind, asked, expected, outcome, is_right } in rows {
        let verdict = if *is_right { "ok" } else { "WRONG" };
        println!(
            "{name:<file$}  {of_kind:<kind$}  {asked:<11}  {expected:<12}  {verdict:<5}  {outcome}"
        );
    }
}

/// The files of the directory, and the kinds that its index gives them.
struct Files {
    paths: Vec<PathBuf>,
    kinds: BTreeMap<String, String>,
}

impl Files {
    fn read(dir: &Path) -> Result<Self> {
        let entries =
            fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        let index = fs::read_to_string(dir.join("index.md")).unwrap_or_default();
        // | file | bytes | source | kind |
        let kinds = index.lines().filter_map(|line| {
            let [_, file, .., kind, _] = line.split('|').map(str::trim).collect::<Vec<_>>()[..]
            else {
                return None;
            };
            Some((file.to_owned(), kind.to_owned()))
        });
        Ok(Self { paths, kinds: kinds.collect() })
    }

    fn of(&self, prefix: &str) -> impl Iterator<Item = &Path> {
        self.paths
            .iter()
            .map(PathBuf::as_path)
            .filter(move |path| name_of(path).starts_with(prefix))
    }

    fn kind(&self, file: &Path) -> String {
        self.kinds.get(&name_of(file)).cloned().unwrap_or_default()
    }

    /// Whether a file is signed with an algorithm that can be forged: the kind G.
    fn is_forgeable(&self, file: &Path) -> bool {
        self.kind(file).split(", ").any(|kind| kind == "G")
    }
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn judge_ca(
    ca: &AssayDir,
    files: &Files,
    file: &Path,
    options: &[&str],
    expected: &str,
) -> Result<Row> {
    let output = ca.assay(&["trust", "add", "--json"])?.args(options).arg(file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(line.lines().next().unwrap_or_default())
        .with_context(|| format!("`assay trust add --json {}`: {line}{said}", file.display()))?;
    let result = report["result"].as_str().unwrap_or_default().to_owned();
    let reason = report["reason"].as_str().unwrap_or_default();
    let expected = if files.is_forgeable(file) { "refused" } else { expected };
    let outcome = if reason.is_empty() { result.clone() } else { format!("{result}: {reason}") };
    Ok(Row {
        file: name_of(file),
        kind: files.kind(file),
        asked: if options.is_empty() { "trust add" } else { "--anchor" },
        expected: expected.to_owned(),
        is_right: result == expected && is_for_people(reason),
        outcome,
    })
}

/// Checks whether a path leads from an issuer to an anchor.
fn judge_path(ca: &AssayDir, oracle: &OpenSsl, file: &Path) -> Result<Row> {
    let output = ca.assay(&["trust", "check", "--json"])?.arg(file).output()?;
    verdict_row(&output.stdout, file, String::new(), oracle.trusts(file)?)
}

fn judge_form(ca: &AssayDir, file: &Path) -> Result<Row> {
    let output = ca.assay(&["enroll", "add"])?.arg(file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let first = said.lines().next().unwrap_or_default().to_owned();
    let is_right = output.status.success();
    if is_right {
        // Later checks must trust the EK for its certificate, or not at all.
        let ek = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assay_tests::run(&mut ca.assay(&["enroll", "remove", &ek])?)?;
    }
    Ok(Row {
        file: name_of(file),
        kind: String::new(),
        asked: "enroll add",
        expected: "enrolled".into(),
        is_right,
        outcome: first,
    })
}

fn judge_ek(ca: &AssayDir, files: &Files, oracle: &OpenSsl, file: &Path) -> Result<Row> {
    let output = ca.assay(&["trust", "check", "--json"])?.arg(file).output()?;
    let expected = !files.is_forgeable(file) && oracle.trusts(file)?;
    verdict_row(&output.stdout, file, files.kind(file), expected)
}

fn verdict_row(line: &[u8], file: &Path, kind: String, expected: bool) -> Result<Row> {
    let verdict: Value =
        serde_json::from_slice(line).with_context(|| format!("{}: no verdict", file.display()))?;
    let word = |trusted| if trusted { "trusted" } else { "not trusted" };
    let is_trusted = verdict["trusted"].as_bool().context("a verdict")?;
    let reason = verdict["reason"].as_str().unwrap_or_default();
    let path = verdict["path"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>();
    Ok(Row {
        file: name_of(file),
        kind,
        asked: "trust check",
        expected: word(expected).to_owned(),
        is_right: is_trusted == expected && is_for_people(reason),
        outcome: format!("{}: {reason}{}", word(is_trusted), path.join(" → ")),
    })
}

/// Whether a reason is written for people. A dump of a library's types is not.
fn is_for_people(reason: &str) -> bool {
    ["Context", "::", " { ", "UnixTime", "Some("].iter().all(|dump| !reason.contains(dump))
}

/// OpenSSL's verdict. OpenSSL knows certificate policies and name constraints no better than we do,
/// but we did not write it.
struct OpenSsl {
    work: TempDir,
}

impl OpenSsl {
    /// Gives OpenSSL all CA certificates of the directory.
    fn new(files: &Files) -> Result<Self> {
        let work = tempfile::tempdir()?;
        let bundle = |name: &str, prefixes: &[&str]| -> Result<()> {
            let mut pem = String::new();
            for file in prefixes.iter().flat_map(|prefix| files.of(prefix)) {
                pem += &pem_of(&fs::read(file)?, work.path())?;
            }
            Ok(fs::write(work.path().join(name), pem)?)
        };
        bundle("anchors", &["root-", "anchor-"])?;
        bundle("issuers", &["ica-"])?;
        Ok(Self { work })
    }

    fn trusts(&self, file: &Path) -> Result<bool> {
        let der = plain(&fs::read(file)?)?;
        let leaf = self.work.path().join("leaf.pem");
        fs::write(&leaf, pem_of(&der, self.work.path())?)?;
        let mut verify = tool("openssl")?;
        // EK certificates have a critical alternative name with a directory name in it. OpenSSL
        // does not use this extension, and would refuse it.
        verify.args(["verify", "-partial_chain", "-ignore_critical"]);
        verify.arg("-CAfile").arg(self.work.path().join("anchors"));
        verify.arg("-untrusted").arg(self.work.path().join("issuers")).arg(&leaf);
        Ok(verify.output()?.status.success())
    }
}

fn pem_of(der: &[u8], work: &Path) -> Result<String> {
    let file = work.join("one.der");
    fs::write(&file, der)?;
    let output =
        assay_tests::run(tool("openssl")?.args(["x509", "-inform", "DER", "-in"]).arg(&file))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The certificate alone: taken out of Intel's JSON, or without the bytes that follow it in an NV
/// dump. OpenSSL reads neither form.
fn plain(file: &[u8]) -> Result<Vec<u8>> {
    let der = match serde_json::from_slice::<Value>(file) {
        Ok(answer) => {
            base64url(answer["certificate"].as_str().context("an answer has a certificate")?)?
        }
        Err(_) => file.to_vec(),
    };
    match der[..] {
        [0x30, 0x82, high, low, ..] => {
            let length = 4 + usize::from(u16::from_be_bytes([high, low]));
            Ok(der[..length.min(der.len())].to_vec())
        }
        _ => bail!("it is no certificate in DER"),
    }
}

fn base64url(text: &str) -> Result<Vec<u8>> {
    let text = text.trim_end_matches("%3D").trim_end_matches('=');
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for c in text.bytes() {
        let value =
            BASE64URL.iter().position(|known| *known == c).context("it is not base64url")?;
        (bits, count) = (bits << 6 | value as u32, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Ok(bytes)
}

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
