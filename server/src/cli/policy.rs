//! The options of an enrolment that `enroll add` and `enroll import` share.

use assay_ca_core::Reprovision;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use time::OffsetDateTime;

use assay_server::ek_list::Defaults;

/// What is agreed with devices about their return.
#[derive(Args)]
pub(crate) struct Policy {
    /// What a device gets that was provisioned before and now has a new key [default: reissue]
    #[arg(long, value_name = "POLICY")]
    reprovision: Option<ReprovisionArg>,
    /// The EK was made by one of Azure's SDKs from another template than the vendor's. Trust it
    /// although the device sends the certificate of the vendor's EK. RSA-2048 only
    #[arg(long)]
    legacy_dps_ek: bool,
    /// Send its shared key to a plain storage root key too, as Azure DPS does. An attacker who
    /// controls the device's software for a moment can get the shared key
    #[arg(long)]
    plain_srk: bool,
}

impl Policy {
    /// For EKs of which nothing else is said.
    pub(crate) fn defaults(&self) -> Defaults {
        Defaults {
            reprovision: self.reprovision.map(|policy| policy.0),
            legacy_dps_ek: self.legacy_dps_ek.then_some(true),
            plain_srk: self.plain_srk.then_some(true),
            added_at: OffsetDateTime::now_utc(),
        }
    }
}

/// [`Reprovision`], with words for `--help`.
#[derive(Clone, Copy)]
pub(crate) struct ReprovisionArg(pub(crate) Reprovision);

impl ValueEnum for ReprovisionArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [ReprovisionArg; Reprovision::ALL.len()] = {
            let [first, second, third] = Reprovision::ALL;
            [ReprovisionArg(first), ReprovisionArg(second), ReprovisionArg(third)]
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(match self.0 {
            Reprovision::Reissue => {
                "a new certificate or the next shared key; the old one ends when the new one is \
                 first used"
            }
            Reprovision::Reuse => {
                "the same shared key again; a new identity key gets a new certificate, because no \
                 old one fits it"
            }
            Reprovision::Never => "nothing: it is refused until an operator acts",
        }))
    }
}
