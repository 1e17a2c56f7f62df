//! What can happen: the operations that sequences are made of.

use std::time::Duration;

use assay_ca_core::Reprovision;
use assay_wire::Flow;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A device begins a run. A run that is under way ends.
    Provision {
        /// The device.
        device: usize,
        /// What it asks for.
        want: Want,
        /// After how many actions the run pauses; `None` lets it go to its end.
        pause: Option<u8>,
    },
    /// A device begins a run in which it asks the CA to renew its certificate, or for its next
    /// shared key. A run that is under way ends.
    Renew {
        /// The device.
        device: usize,
        /// Whether it waits until that is due.
        waits: bool,
        /// After how many actions the run pauses; `None` lets it go to its end.
        pause: Option<u8>,
        /// Whether the device connects with what it has then.
        connects: bool,
    },
    /// A device begins a run in which it gets a certificate for another identity key. A run that is
    /// under way ends.
    Rekey {
        /// The device.
        device: usize,
        /// After how many actions the run pauses; `None` lets it go to its end.
        pause: Option<u8>,
        /// Whether the device connects with what it has then.
        connects: bool,
    },
    /// Time passes until a device's certificate or shared key is due.
    WaitUntilDue(usize),
    /// A run that paused goes on for this many actions; `None` lets it go to its end.
    GoOn(usize, Option<u8>),
    /// A device loses its power. What it stored stays.
    PowerFails(usize),
    /// TPM2_Clear.
    ClearTpm(usize),
    /// A device forgets what it stored.
    LoseState(usize),
    /// A device connects with what it has in use.
    SignIn(usize),
    /// A device connects with a certificate that it has not confirmed.
    SignInUnconfirmed(usize),
    /// Somebody shows a token that is signed with a shared key of a device; 0 is the newest key.
    SignInWithOldKey(usize, u8),
    /// The operator enrols an EK.
    Enrol {
        /// The device with the EK.
        device: usize,
        /// The name that the operator gives, if any.
        name: Option<Name>,
        /// What happens when the device asks again.
        reprovision: Reprovision,
        /// Whether its shared key may be sent to a plain storage root key.
        plain_srk: bool,
    },
    /// The operator removes a device.
    Remove(usize),
    /// The operator disables a device.
    Disable(usize),
    /// The operator enables a device.
    Enable(usize),
    /// The operator changes what happens when a device asks again.
    SetPolicy(usize, Reprovision),
    /// The operator retires a device's shared key.
    RotateKey(usize),
    /// The operator puts another ticket key in place of the CA's.
    ChangeTicketKey,
    /// The CA restarts. It forgets what it has not recorded, and never answers those requests.
    RestartCa,
    /// The CA revokes what was not confirmed in time, and forgets what ended long ago.
    Prune,
    /// The CA takes this long to sign what it decides next.
    SlowSigner(Duration),
    /// The CA's clock is set to another time.
    StepCa(Step),
    /// A device's clock is set to another time.
    StepDevice(usize, Step),
    /// Time passes.
    Wait(Duration),
    /// A later message meets this fate. The number says how many other messages come before it.
    Fault(u8, Fate),
    /// Somebody sends an old message from the link to the CA again; 0 is the newest.
    Replay(u8),
    /// Somebody answers a claim that was on the link, with an invented ticket; 0 is the newest
    /// claim.
    Forge(u8),
    /// Somebody shows a device's EK with an identity key of his own.
    Impostor(usize, Flow),
    /// Somebody asks to renew a device's certificate, and adopts whatever waits, with statements
    /// that another key signed.
    ImpostorRenews(usize),
}

/// What a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The flow.
    pub flow: Flow,
    /// Whether it asks although it has a good credential.
    pub again: bool,
    /// Whether it connects at once with what it got.
    pub connects: bool,
    /// Whether it keeps its key at the second of two handles.
    pub second_handle: bool,
    /// Whether a shared key goes to a plain storage root key.
    pub plain_srk: bool,
    /// The name that it asks for, if any.
    pub name: Option<Name>,
}

/// The names that operators give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `pump-1`
    One,
    /// `pump-2`
    Two,
}

impl Name {
    /// The name as text.
    pub const fn text(self) -> &'static str {
        match self {
            Self::One => "pump-1",
            Self::Two => "pump-2",
        }
    }
}

/// A change of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forwards by this time.
    Forwards(Duration),
    /// Backwards by this time.
    Backwards(Duration),
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives at once and again later.
    Twice(Duration),
    /// It arrives later, after messages that were sent after it.
    Late(Duration),
    /// A bit of this byte changes.
    Corrupted(u8),
    /// The connection breaks instead.
    BreaksConnection,
    /// The broker answers a request with a lie. Any other message is lost.
    Answered,
}

impl Op {
    /// How many bytes make an operation.
    pub const LEN: usize = 4;

    /// The operation that four bytes stand for. Any four bytes stand for an operation, and smaller
    /// bytes for a simpler one. So shrinking the bytes of a sequence makes the sequence easier to
    /// read.
    pub fn from_bytes([kind, which, a, b]: [u8; Self::LEN]) -> Self {
        // Mostly the device whose EK is certified. Many operations on one device lead further than
        // a few on each of two.
        let device = usize::from(which & 3 == 3);
        let name = match which >> 2 & 3 {
            0 | 1 => None,
            2 => Some(Name::One),
            _ => Some(Name::Two),
        };
        match kind {
            216..240 => {
                let (waits, connects) = (a & 1 == 0, a & 6 == 6);
                return Self::Renew { device, waits, pause: actions(b), connects };
            }
            240..244 => return Self::WaitUntilDue(device),
            244..250 => {
                return Self::Rekey { device, pause: actions(b), connects: a & 6 == 6 };
            }
            250.. => return Self::ImpostorRenews(device),
            _ => {}
        }
        match kind % 48 {
            0..12 => {
                let flow = Flow::ALL[usize::from(a) % 3];
                let want = Want {
                    flow,
                    again: a & 0x80 != 0,
                    connects: a & 0x04 == 0,
                    second_handle: a & 0x60 == 0x60,
                    plain_srk: a & 0x18 == 0x18,
                    // Most devices ask for no name, and so for the name that is due.
                    name: name.filter(|_| which & 0xC0 == 0xC0),
                };
                Self::Provision { device, want, pause: actions(b) }
            }
            12..14 => Self::GoOn(device, actions(a)),
            14 => Self::PowerFails(device),
            15 => Self::ClearTpm(device),
            16 => Self::LoseState(device),
            17..19 => Self::SignIn(device),
            19 => Self::SignInUnconfirmed(device),
            20..22 => Self::SignInWithOldKey(device, a % 8),
            22..25 => {
                let reprovision = Reprovision::ALL[usize::from(a) % 3];
                Self::Enrol { device, name, reprovision, plain_srk: a & 0x80 != 0 }
            }
            25 => Self::Remove(device),
            26 => Self::Disable(device),
            27 => Self::Enable(device),
            28 => Self::SetPolicy(device, Reprovision::ALL[usize::from(a) % 3]),
            29..31 => Self::RotateKey(device),
            31 => Self::ChangeTicketKey,
            32 => Self::RestartCa,
            33 => Self::Prune,
            34 => Self::SlowSigner(duration(a)),
            35 => Self::StepCa(step(a)),
            36 => Self::StepDevice(device, step(a)),
            37 => Self::Wait(duration(a)),
            38..43 => Self::Fault(a % 8, fate(which, b)),
            43..45 => Self::Replay(a % 16),
            45 => Self::Forge(a % 4),
            _ => Self::Impostor(device, Flow::ALL[usize::from(a) % 3]),
        }
    }

    /// Whether the rules must be checked afterwards: the operation may change the CA's record, or
    /// what a device believes.
    pub(crate) fn may_change_the_record(&self) -> bool {
        !matches!(
            self,
            Self::PowerFails(_)
                | Self::ClearTpm(_)
                | Self::LoseState(_)
                | Self::ChangeTicketKey
                | Self::RestartCa
                | Self::SlowSigner(_)
                | Self::StepCa(_)
                | Self::StepDevice(..)
                | Self::Fault(..)
        )
    }

    /// The operations that bytes stand for, four bytes each. Bytes that are left over are ignored.
    pub fn sequence(bytes: &[u8]) -> Vec<Self> {
        bytes.as_chunks().0.iter().copied().map(Self::from_bytes).collect()
    }
}

/// Half of all runs go to their end.
fn actions(byte: u8) -> Option<u8> {
    byte.checked_sub(128).map(|number| number % 40)
}

fn duration(byte: u8) -> Duration {
    const SECONDS: [u64; 7] = [1, 25, 45, 200, 900, 3_600, 86_400];
    Duration::from_secs(SECONDS[usize::from(byte) % SECONDS.len()])
}

fn step(byte: u8) -> Step {
    if byte & 0x80 == 0 {
        Step::Forwards(duration(byte & 0x7F))
    } else {
        Step::Backwards(duration(byte & 0x7F))
    }
}

fn fate(byte: u8, detail: u8) -> Fate {
    match byte % 6 {
        0 => Fate::Lost,
        1 => Fate::Twice(duration(detail % 4)),
        2 => Fate::Late(duration(detail % 4)),
        3 => Fate::Corrupted(detail),
        4 => Fate::BreaksConnection,
        _ => Fate::Answered,
    }
}
