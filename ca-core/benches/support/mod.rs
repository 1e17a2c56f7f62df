//! A CA and a device that meet in memory, and the bare cryptography that every CA needs to answer
//! that device.

#[path = "../../tests/pipeline/fixture.rs"]
#[expect(dead_code, reason = "the tests, which it is made for, use the rest")]
pub(crate) mod fixture;

mod hostile;
mod primitives;
mod world;

pub(crate) use hostile::Requests;
pub(crate) use primitives::Primitives;
pub(crate) use world::World;

/// The properties of a device on which the time depends.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) ek: Kind,
    pub(crate) ik: Kind,
    pub(crate) path: Path,
}

/// A kind of key. The vendor's keys are of the EK's kind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Rsa2048,
    P256,
    P384,
}

/// How the EK certificate leads to a root.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// The root signed it.
    Root,
    /// An intermediate signed it. The operator trusts the intermediate with the root, and hundreds
    /// of others.
    KnownIntermediate,
    /// An intermediate signed it, and the device sends the intermediate.
    SentIntermediate,
}

impl Case {
    pub(crate) const ALL: [Self; 7] = [
        Self::new(Kind::Rsa2048, Kind::P256, Path::Root),
        Self::new(Kind::Rsa2048, Kind::P256, Path::KnownIntermediate),
        Self::new(Kind::Rsa2048, Kind::P256, Path::SentIntermediate),
        Self::new(Kind::P256, Kind::P256, Path::Root),
        Self::new(Kind::P384, Kind::P256, Path::Root),
        Self::new(Kind::Rsa2048, Kind::Rsa2048, Path::Root),
        Self::new(Kind::Rsa2048, Kind::P384, Path::Root),
    ];

    const fn new(ek: Kind, ik: Kind, path: Path) -> Self {
        Self { ek, ik, path }
    }

    /// The flows that are measured in this case. What they share with the ticket flow costs the
    /// same in all cases.
    pub(crate) fn flows(self) -> &'static [Flow] {
        match self {
            Self { ik: Kind::P256, path: Path::Root, .. } => {
                &[Flow::Ticket, Flow::Sealed, Flow::SharedKey]
            }
            _ => &[Flow::Ticket],
        }
    }

    pub(crate) fn name(self, flow: Flow) -> String {
        let (ek, path) = (self.ek.name(), self.path.name());
        match flow {
            Flow::SharedKey => format!("{flow}, EK {ek} by {path}"),
            _ => format!("{flow}, EK {ek} by {path}, IK {}", self.ik.name()),
        }
    }
}

pub(crate) use assay_wire::Flow;

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "RSA-2048",
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        }
    }
}

impl Path {
    const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::KnownIntermediate => "known intermediate",
            Self::SentIntermediate => "sent intermediate",
        }
    }
}
