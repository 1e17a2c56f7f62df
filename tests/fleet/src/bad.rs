//! Requests that a CA must refuse, and the problem that each must be refused with.

use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use assay_wire::{Flow, ProblemCode};
use clap::ValueEnum;

/// What is wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Bad {
    /// Its first request ends one byte early.
    Truncated,
    /// Its first request is longer than a message may be.
    Oversize,
    /// Its EK certificate is by a vendor with the right names and other keys.
    UntrustedVendor,
    /// Its EK certificate is another device's.
    ForeignCertificate,
    /// Its IK, or its parent in the shared key flow, could leave the TPM.
    NotFixedTpm,
    /// Its parent is a plain storage root key.
    PlainSrk,
    /// Its certificate request is for another IK, and that IK signed it.
    ForeignCsr,
    /// One bit of its ticket is wrong.
    WrongTicket,
    /// It wants the reply to its first request sent to somebody else.
    ForeignResponseTopic,
}

impl Bad {
    /// The spelling of `--bad`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Oversize => "oversize",
            Self::UntrustedVendor => "untrusted-vendor",
            Self::ForeignCertificate => "foreign-certificate",
            Self::NotFixedTpm => "not-fixed-tpm",
            Self::PlainSrk => "plain-srk",
            Self::ForeignCsr => "foreign-csr",
            Self::WrongTicket => "wrong-ticket",
            Self::ForeignResponseTopic => "foreign-response-topic",
        }
    }

    /// What the CA must say; `None` if a flow has no such request.
    pub(crate) fn problem(self, flow: Flow) -> Option<ProblemCode> {
        match (self, flow) {
            (Self::Truncated | Self::ForeignResponseTopic, _) => Some(ProblemCode::Malformed),
            (Self::Oversize, _) => Some(ProblemCode::Oversize),
            (Self::UntrustedVendor, _) => Some(ProblemCode::EkCertificateUntrusted),
            (Self::ForeignCertificate, _) => Some(ProblemCode::EkCertificateMismatch),
            (Self::NotFixedTpm, Flow::Ticket | Flow::Sealed) => Some(ProblemCode::IkOffTemplate),
            (Self::NotFixedTpm, Flow::SharedKey) => Some(ProblemCode::ParentOffTemplate),
            (Self::PlainSrk, Flow::SharedKey) => Some(ProblemCode::PlainSrk),
            (Self::ForeignCsr, Flow::Ticket | Flow::Sealed) => Some(ProblemCode::CsrKeyMismatch),
            (Self::WrongTicket, Flow::Ticket | Flow::Sealed) => Some(ProblemCode::TicketRefused),
            (Self::ForeignCsr | Self::WrongTicket, Flow::SharedKey)
            | (Self::PlainSrk, Flow::Ticket | Flow::Sealed) => None,
        }
    }
}

/// `KIND=SHARE` of the command line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadShare {
    pub(crate) kind: Bad,
    /// From 0 to 1.
    pub(crate) share: f64,
}

impl FromStr for BadShare {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, share) = text.split_once('=').context("expected KIND=SHARE")?;
        let kind = Bad::from_str(kind, false).map_err(|_| {
            let kinds: Vec<_> = Bad::value_variants().iter().map(|kind| kind.name()).collect();
            anyhow::anyhow!("no such kind; there are {}", kinds.join(", "))
        })?;
        Ok(Self { kind, share: share_of_one(share)? })
    }
}

/// A number from 0 to 1.
pub(crate) fn share_of_one(text: &str) -> Result<f64> {
    let share: f64 = text.parse().context("not a number")?;
    ensure!((0.0..=1.0).contains(&share), "a share is a number from 0 to 1");
    Ok(share)
}

/// Spreads a share evenly over the places that are free, and takes them.
pub(crate) fn spread(share: f64, free: &mut [bool]) -> Vec<usize> {
    let all = free.len();
    let count = (share * all as f64).round() as usize;
    let places = (0..count).filter_map(|number| {
        let wanted = (2 * number + 1) * all / (2 * count);
        let place = (wanted..all).chain(0..wanted).find(|place| free[*place])?;
        free[place] = false;
        Some(place)
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_and_do_not_meet() {
        let mut free = [true; 40];
        let shares = [0.1, 0.1, 0.25, 0.5, 0.025].map(|share| spread(share, &mut free).len());
        assert_eq!((shares, free.iter().filter(|free| **free).count()), ([4, 4, 10, 20, 1], 1));
        assert_eq!(spread(0.5, &mut [true; 4]), [1, 3]);
        assert!(spread(0.0, &mut [true; 4]).is_empty());
    }

    #[test]
    fn kinds_read_back_from_their_names() {
        for kind in Bad::value_variants() {
            assert_eq!(format!("{}=0.5", kind.name()).parse::<BadShare>().unwrap().kind, *kind);
        }
        for text in ["truncated", "truncated=2", "truncated=-1", "rude=0.5"] {
            assert!(text.parse::<BadShare>().is_err(), "{text}");
        }
    }
}
