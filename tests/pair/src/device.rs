//! A device: its TPM, what it stored, and the run that is under way.

use std::time::Duration;

use assay_device_core::{
    DEFAULT_IK_HANDLE, Machine, Memory, ParentKind, ProvisionRequest, Provisioned, provision,
};
use assay_wire::{DeviceId, Scope};
use data_encoding::BASE64;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::op::Want;
use crate::tpm::{HmacKey, Tpm};

pub(crate) struct Device {
    pub(crate) tpm: Tpm,
    /// What the device stored, which outlives a loss of power.
    pub(crate) memory: Memory,
    pub(crate) run: Option<Run>,
    /// By how much its clock is wrong, in seconds.
    pub(crate) clock_error: i64,
    /// Whether the CA takes a certificate for a key that is in its TPM.
    pub(crate) has_good_key: bool,
    /// Whether the CA takes a shared key that is in its TPM.
    pub(crate) has_good_shared_key: bool,
    /// Every shared key that its TPM opened.
    pub(crate) keys: Vec<HmacKey>,
}

/// A run under way.
pub(crate) struct Run {
    pub(crate) machine: Machine<Provisioned>,
    /// The MQTT client id of its connection.
    pub(crate) client: Option<String>,
    /// Whether the device connects with what it gets.
    pub(crate) connects: bool,
}

impl Device {
    pub(crate) fn new(number: usize) -> Self {
        let (tpm, memory) = (Tpm::new(number), Memory::default());
        Self {
            tpm,
            memory,
            run: None,
            clock_error: 0,
            has_good_key: false,
            has_good_shared_key: false,
            keys: Vec::new(),
        }
    }

    /// TPM2_Clear.
    pub(crate) fn clear_tpm(&mut self) {
        self.tpm.clear();
        self.has_good_key = false;
        self.has_good_shared_key = false;
    }

    /// Begins a run. A run that is under way ends.
    pub(crate) fn begin(&mut self, request: ProvisionRequest, connects: bool, now: Duration) {
        let machine = provision(request, self.memory.clone(), now);
        self.run = Some(Run { machine, client: None, connects });
    }
}

pub(crate) fn request(scope: &Scope, want: Want) -> ProvisionRequest {
    ProvisionRequest {
        flow: Some(want.flow),
        again: want.again,
        ik_handle: want.second_handle.then_some(DEFAULT_IK_HANDLE + 1),
        parent: want.plain_srk.then_some(ParentKind::SrkP256),
        device_id: want.name.map(|name| name.text().parse().expect("a device id")),
        ..ProvisionRequest::new(scope.clone())
    }
}

/// A token that is signed with a shared key. The device shows it as its password.
pub(crate) fn token(key: &HmacKey, scope: &Scope, device_id: &DeviceId, expires_at: i64) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let resource = encode(&format!("{scope}/registrations/{device_id}"));
    let signature =
        encode(&BASE64.encode(&key.hmac(format!("{resource}\n{expires_at}").as_bytes())));
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires_at}&skn=registration")
}
