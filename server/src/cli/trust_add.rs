//! `assay trust add`: what a vendor's files hold, shown before it is trusted.

use std::io::{IsTerminal, stderr, stdin};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use assay_ca_core::{Allowances, Role};
use assay_server::operations::groups;
use assay_server::operations::trust::{self, Found, Good, Wish};
use assay_server::rfc3339;
use assay_store::Store;
use clap::Args;

use super::table;

#[derive(Args)]
#[command(after_help = "\
Each certificate is reported: root (it signed itself, and is trusted), issuer (it helps to build \
                        paths to a root or an anchor), anchor
(it is trusted no matter who signed it), already there, or refused with the reason. Then, at a terminal, \
                        you are asked before any is trusted,
unless you named a fingerprint. What can be added is added.
Exit status: 1 if a certificate was refused.

Examples:
  assay --dir ca trust add --admit vendor-root.pem vendor-issuing-cas.p7b
  assay --dir ca trust add tpm-ca-certificates/
  assay --dir ca trust add --fingerprint 12:34:… vendor-root.der
  assay --dir ca trust add --anchor pluton-ica.der
  assay --dir ca trust add --anchor --allow-missing ek-usage,tpm-attributes cloud-ca.pem")]
pub(crate) struct Add {
    /// PEM, DER, PKCS #7, bundles of them, and directories
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Trust this CA itself, no matter who signed it. Use this for a CA that is not self-signed, or
    /// to trust one issuing CA instead of a whole vendor
    #[arg(long)]
    anchor: bool,
    /// What EK certificates under the anchor may lack: ek-usage, tpm-attributes, or both with a
    /// comma in between
    #[arg(
        long,
        value_name = "WHAT",
        requires = "anchor",
        default_value = "",
        hide_default_value = true
    )]
    allow_missing: Allowances,
    /// Admit every EK under these roots and anchors, without asking: each gets a group, see `assay
    /// group list`. Otherwise a new CA asks about each device, see `assay pending`
    #[arg(long)]
    admit: bool,
    /// Trust no root or anchor but the one with this SHA-256 fingerprint; may be given several
    /// times
    #[arg(long = "fingerprint", value_name = "SHA256", value_parser = fingerprint)]
    fingerprints: Vec<[u8; 32]>,
    /// Print one JSON object a certificate on standard output
    #[arg(long)]
    json: bool,
}

impl Add {
    pub(crate) fn run(self, store: &mut dyn Store) -> Result<()> {
        let wish = Wish {
            anchor: self.anchor.then_some(self.allow_missing),
            fingerprints: self.fingerprints.clone(),
        };
        let found = wish.examine(store, &self.files)?;
        found.iter().for_each(|found| self.report(found));
        let good = found.iter().filter_map(|found| found.content.as_ref().ok());
        let new: Vec<_> = good.filter(|good| good.is_new).collect();
        self.ask(&new)?;
        trust::trust(store, new)?;
        if self.admit {
            let good = found.iter().filter_map(|found| found.content.as_ref().ok());
            for name in groups::admit_vendors(store, good)? {
                eprintln!("admitted: every EK under it, by group {name}");
            }
        }
        for reason in trust::incomplete(store, &found)? {
            eprintln!("{}", table::printable(&format!("has no effect yet: {reason}")));
        }
        let refused = found.iter().filter(|found| found.content.is_err()).count();
        ensure!(refused == 0, "refused: {refused}; the other certificates are added");
        Ok(())
    }

    /// Asks whoever sits at a terminal. A script has read the vendor's fingerprint before, or
    /// trusts its files.
    fn ask(&self, new: &[&Good]) -> Result<()> {
        let trusted = new.iter().filter(|good| good.vendor.role() != Role::Issuer).count();
        if trusted == 0
            || !self.fingerprints.is_empty()
            || !stdin().is_terminal()
            || !stderr().is_terminal()
        {
            return Ok(());
        }
        eprint!(
            "Every EK that leads to a root or anchor named above will be trusted{}. Go on? [y/N] ",
            if self.admit { ", and admitted" } else { "" }
        );
        let mut answer = String::new();
        stdin().read_line(&mut answer)?;
        ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing is added");
        Ok(())
    }

    fn report(&self, Found { place, fingerprint, content }: &Found) {
        let good = content.as_ref().ok();
        let result = match good {
            None => "refused",
            Some(good) if good.is_new => trust::kind(good.vendor.role()),
            Some(_) => "already there",
        };
        let fingerprint =
            good.map_or(*fingerprint, |good| Some(good.row.fingerprint)).map(hex::encode);
        let not_after = good.map(|good| rfc3339::seconds(good.row.not_after));
        if self.json {
            let line = serde_json::json!({
                "file": place,
                "result": result,
                "reason": content.as_ref().err(),
                "subject": good.map(|good| good.vendor.subject()),
                "fingerprint": fingerprint,
                "not_after": not_after,
                "key": good.map(|good| good.vendor.key()),
            });
            table::print_json(&line);
            return;
        }
        let line = match content {
            Ok(good) => {
                let (subject, key) = (good.vendor.subject(), good.vendor.key());
                let (until, sha256) =
                    (not_after.unwrap_or_default(), fingerprint.unwrap_or_default());
                format!("{result}: {subject}\n  {key}, until {until}, SHA-256 {sha256}")
            }
            Err(reason) => format!("refused: {place}: {reason}"),
        };
        line.lines().for_each(|line| eprintln!("{}", table::printable(line)));
    }
}

/// Reads a fingerprint as `openssl x509 -fingerprint` or `sha256sum` prints it.
fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let bytes = hex::decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| {
        "a SHA-256 fingerprint has 64 hexadecimal digits, with colons in between or without"
            .to_owned()
    })
}
