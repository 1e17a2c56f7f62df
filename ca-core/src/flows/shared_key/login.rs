//! A device that shows a token and is still welcome.

use assay_wire::{DeviceId, EkId, Scope};
use time::OffsetDateTime;

use super::key::MasterSecret;
use super::token::{AuthenticatedDevice, Token, TokenRefused};
use crate::Rejection;
use crate::ek::assurance::Assurance;
use crate::profile::{Offered, SharedKeyFlow};
use crate::readmission::Welcome;
use crate::records::{Records, SharedKeyHolder};
use crate::secret::Overlapping;

/// A device that may connect, by a token of its shared key.
#[derive(Clone, Debug)]
pub struct Login {
    device: AuthenticatedDevice,
    welcome: Welcome,
    assurance: Assurance,
    decided_at: OffsetDateTime,
}

impl Login {
    /// Decides on a token that may be from `holder`'s EK. `records` is what is on record about that
    /// EK.
    pub fn decide(
        offered: Offered<SharedKeyFlow>,
        token: &Token,
        holder: &SharedKeyHolder,
        scope: &Scope,
        masters: &Overlapping<MasterSecret>,
        records: &Records,
        now: OffsetDateTime,
    ) -> Result<Self, LoginRefused> {
        let SharedKeyHolder { ek_id, assurance } = *holder;
        let welcome = Welcome::decide(ek_id, token.device_id(), assurance, records)?;
        let generations = records.accepted_generations();
        let device = AuthenticatedDevice::verify(
            offered,
            token.clone(),
            scope,
            masters,
            ek_id,
            &generations,
            now,
        )?;
        Ok(Self { device, welcome, assurance, decided_at: now })
    }

    /// The device's id.
    pub fn device_id(&self) -> &DeviceId {
        self.welcome.device_id()
    }

    /// When the token expires.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.device.expires_at()
    }

    /// What must be on record before the device is let in. `None` if the device is registered and
    /// has used this generation of its key before.
    pub fn first_use(&self, records: &Records) -> Option<FirstUse> {
        let used = records.shared_key.filter(|key| key.is_used).map(|key| key.generation);
        let is_first = used != Some(self.device.generation()) || records.registration.is_none();
        is_first.then(|| FirstUse { login: self.clone() })
    }
}

/// The first use of a generation of a shared key: it registers the device, and retires older
/// generations.
#[derive(Clone, Debug)]
pub struct FirstUse {
    login: Login,
}

impl FirstUse {
    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(
        ek_id: EkId,
        device_id: DeviceId,
        assurance: Assurance,
        generation: u32,
        decided_at: OffsetDateTime,
    ) -> Self {
        let device =
            AuthenticatedDevice::unchecked(device_id.clone(), ek_id, generation, decided_at);
        let welcome = Welcome::unchecked(device_id);
        Self { login: Login { device, welcome, assurance, decided_at } }
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.login.device.ek_id()
    }

    /// The device's id.
    pub fn device_id(&self) -> &DeviceId {
        self.login.device_id()
    }

    /// Why the EK was trusted.
    pub fn assurance(&self) -> Assurance {
        self.login.assurance
    }

    /// When the CA decided on the token.
    pub fn decided_at(&self) -> OffsetDateTime {
        self.login.decided_at
    }

    /// The generation of the shared key.
    pub fn generation(&self) -> u32 {
        self.login.device.generation()
    }
}

/// Why a token is refused. The device learns only that it is; the text is for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefused {
    /// The token is not good.
    #[error(transparent)]
    Token(#[from] TokenRefused),
    /// The device is not welcome, or the scope does not offer the flow.
    #[error(transparent)]
    Rejection(#[from] Rejection),
    /// No shared key was ever offered under this device id.
    #[error("no shared key was offered to {device_id}")]
    NoKey {
        /// The device id in the token.
        device_id: DeviceId,
    },
}
