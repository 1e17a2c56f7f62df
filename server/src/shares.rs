//! The shares of a private key of age: any so many of them are the key, and fewer are nothing
//! (Shamir, "How to Share a Secret", 1979).

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, ensure};
use bech32::Bech32m;
use bech32::primitives::decode::CheckedHrpstring;
use blahaj::Sharks;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::age::Identity;
use crate::random::random;

/// How many shares there are, and how many of them are the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    threshold: u8,
    shares: u8,
}

impl Split {
    /// The most shares: as many as there are people whom anybody would ask.
    pub const MAX: u8 = 20;

    /// `threshold` of `shares`.
    ///
    /// # Errors
    /// One share would do, or they would never be enough.
    pub fn new(threshold: u8, shares: u8) -> Result<Self> {
        ensure!(
            2 <= threshold && threshold <= shares && shares <= Self::MAX,
            "{threshold} of {shares} shares: at least two must be needed, and no more than there \
             are, which are {} at most",
            Self::MAX
        );
        Ok(Self { threshold, shares })
    }

    /// How many are needed.
    pub(crate) fn threshold(self) -> u8 {
        self.threshold
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "any {} of {} shares", self.threshold, self.shares)
    }
}

/// One share. It shows itself as one line, which a person can type: a mistyped letter is noticed.
pub struct Share {
    threshold: u8,
    /// Names the key: shares of another one are not taken.
    set: [u8; SET],
    /// The number of the share, and a byte for each byte of the key. Wiped when dropped.
    point: Zeroizing<Vec<u8>>,
}

impl Share {
    /// The number of this share, from 1 on.
    pub fn number(&self) -> u8 {
        self.point[0]
    }

    /// The line that other programs of ours read.
    pub fn line(&self) -> Zeroizing<String> {
        let head = [&[VERSION, self.threshold][..], &self.set].concat();
        let bytes = Zeroizing::new([&head[..], &self.point].concat());
        let prefix = bech32::Hrp::parse(PREFIX).expect("a prefix of bech32");
        // 39 bytes are 63 characters; with the prefix and the check, 90 are the limit.
        let line = bech32::encode_upper::<Bech32m>(prefix, &bytes).expect("it is short enough");
        Zeroizing::new(line)
    }

    /// Finds the line of a share in a text; spaces within it do not count.
    ///
    /// # Errors
    /// There is none, or more than one, or it was mistyped.
    pub fn read(text: &str) -> Result<Self> {
        let lines = text.lines().map(|line| {
            let line = line.split_whitespace().collect::<String>();
            Zeroizing::new(line.to_ascii_lowercase())
        });
        let begins = format!("{PREFIX}1");
        let mut lines = lines.filter(|line| line.starts_with(&begins));
        let line = lines.next().with_context(|| {
            format!("there is no line that begins with {}", begins.to_uppercase())
        })?;
        ensure!(lines.next().is_none(), "there is more than one share; give each file by --share");
        let decoded = CheckedHrpstring::new::<Bech32m>(&line)
            .ok()
            .filter(|it| it.hrp().as_str() == PREFIX)
            .context("the line of the share was mistyped or cut off")?;
        let bytes = Zeroizing::new(decoded.byte_iter().collect::<Vec<u8>>());
        ensure!(
            bytes.len() == HEAD + POINT && bytes[0] == VERSION && bytes[1] >= 2 && bytes[HEAD] > 0,
            "it is a share of a kind that this program does not know"
        );
        Ok(Self {
            threshold: bytes[1],
            set: bytes[2..HEAD].try_into()?,
            point: Zeroizing::new(bytes[HEAD..].to_vec()),
        })
    }
}

/// Splits a private key. Each of the shares is needed by nobody, and any so many are the key.
///
/// # Errors
/// It is no usable key.
pub(crate) fn split(identity: &Identity, split: Split) -> Result<Vec<Share>> {
    let (set, mut rng) = (set_of(identity)?, random());
    let dealer = Sharks(split.threshold).dealer_rng(identity.secret(), &mut rng);
    let points = dealer.take(split.shares.into());
    let share = |point: blahaj::Share| Share {
        threshold: split.threshold,
        set,
        point: Zeroizing::new(Vec::from(&point)),
    };
    Ok(points.map(share).collect())
}

/// The private key that these are shares of.
///
/// # Errors
/// They are too few, or of several keys.
pub(crate) fn join(shares: &[Share]) -> Result<Identity> {
    let first = shares.first().context("it needs shares: give the file of each by --share")?;
    ensure!(
        shares.iter().all(|it| it.set == first.set && it.threshold == first.threshold),
        "these are shares of more than one key; those of before a split open nothing any more"
    );
    let numbers: BTreeSet<_> = shares.iter().map(Share::number).collect();
    ensure!(numbers.len() == shares.len(), "the same share was given twice");
    ensure!(
        shares.len() >= first.threshold.into(),
        "it needs {} shares, and here are {}",
        first.threshold,
        shares.len()
    );
    let points = shares.iter().map(|it| blahaj::Share::try_from(&it.point[..]));
    let points = points.collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::msg)?;
    let sharks = Sharks(first.threshold);
    let secret = sharks.recover(&points);
    let secret = secret.map(Zeroizing::new).map_err(|error| anyhow::anyhow!("{error}"))?;
    let identity = Identity::of(secret[..].try_into()?);
    // What whole shares make that were altered on purpose.
    ensure!(set_of(&identity)? == first.set, "a share was altered: together they are no key");
    Ok(identity)
}

/// Names a key to those who have only a share of it. It says nothing of the private half.
fn set_of(identity: &Identity) -> Result<[u8; SET]> {
    let digest = Sha256::digest(identity.recipient()?.key());
    Ok(digest[..SET].try_into()?)
}

/// What the line of a share begins with, before the 1 that ends a prefix in bech32.
const PREFIX: &str = "assay-share-";
const VERSION: u8 = 1;
const SET: usize = 4;
const HEAD: usize = 2 + SET;
const POINT: usize = 1 + 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn some(lines: &[Zeroizing<String>], which: &[usize]) -> Result<Identity> {
        let shares = which.iter().map(|it| Share::read(&lines[*it]));
        join(&shares.collect::<Result<Vec<_>>>()?)
    }

    fn lines(identity: &Identity, threshold: u8, shares: u8) -> Vec<Zeroizing<String>> {
        let shares = split(identity, Split::new(threshold, shares).unwrap()).unwrap();
        shares.iter().map(Share::line).collect()
    }

    #[test]
    fn any_three_of_five_shares_are_the_key_and_two_are_not() {
        let identity = Identity::generate();
        let lines = lines(&identity, 3, 5);
        for which in [&[0, 1, 2][..], &[4, 2, 0], &[1, 3, 4], &[0, 1, 2, 3, 4]] {
            assert_eq!(some(&lines, which).unwrap().secret(), identity.secret(), "{which:?}");
        }
        let refused = |which: &[usize]| some(&lines, which).unwrap_err().to_string();
        assert!(refused(&[0, 4]).contains("needs 3 shares, and here are 2"));
        assert!(refused(&[0, 4, 0]).contains("the same share was given twice"));
        assert!(refused(&[]).contains("--share"));
        assert!(lines.iter().all(|it| it.len() <= 90 && it.starts_with("ASSAY-SHARE-1")));
    }

    #[test]
    fn shares_of_two_splits_are_not_mixed_although_the_key_is_the_same_one() {
        let [one, other] = [Identity::generate(), Identity::generate()];
        let [mut ones, others] = [lines(&one, 2, 3), lines(&other, 2, 3)];
        ones.extend(others);
        let refused = some(&ones, &[0, 4]).unwrap_err().to_string();
        assert!(refused.contains("more than one key"), "{refused}");
        let mut again = lines(&one, 2, 3);
        again.extend(lines(&one, 2, 3));
        let refused = some(&again, &[0, 4]).unwrap_err().to_string();
        assert!(refused.contains("altered"), "{refused}");
    }

    #[test]
    fn a_share_is_read_as_people_write_it_and_a_mistyped_letter_is_noticed() {
        let lines = lines(&Identity::generate(), 2, 2);
        let line = &lines[0];
        let spaced: Vec<_> = line.as_bytes().chunks(5).map(String::from_utf8_lossy).collect();
        let text = format!("Share 1 of 2\n\n  {}  \n", spaced.join(" ").to_lowercase());
        assert_eq!(Share::read(&text).unwrap().number(), 1);
        for at in "ASSAY-SHARE-1".len()..line.len() {
            let mut typed = line.as_bytes().to_vec();
            typed[at] = if typed[at] == b'Q' { b'P' } else { b'Q' };
            assert!(Share::read(&String::from_utf8(typed).unwrap()).is_err(), "letter {at}");
        }
        assert!(Share::read(&line[..line.len() - 1]).is_err());
        assert!(Share::read("nothing").is_err());
        assert!(Share::read(&format!("{}\n{}", *lines[0], *lines[1])).is_err());
    }

    #[test]
    fn one_share_is_never_enough_and_none_is_beyond_reach() {
        for (threshold, shares) in [(0, 5), (1, 5), (6, 5), (2, 21), (2, 1)] {
            assert!(Split::new(threshold, shares).is_err(), "{threshold} of {shares}");
        }
        assert!(Split::new(2, 2).is_ok() && Split::new(20, 20).is_ok());
    }
}
