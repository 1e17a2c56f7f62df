//! What a TPM says of itself.

use tpm2_protocol::data::{TpmCap, TpmRc, TpmuCapabilities};
use tpm2_protocol::frame::{
    TpmGetCapabilityCommand, TpmGetCapabilityResponse, TpmGetTestResultCommand,
    TpmGetTestResultResponse, TpmSelfTestCommand, TpmSelfTestResponse,
};

use super::command::Direct;
use super::parts::CommandError;
use super::response_code::ResponseCode;

impl Direct<'_> {
    /// TPM2_GetCapability (TPM 2.0 Part 3, 30.2).
    pub(super) fn read_properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>, CommandError> {
        let command = TpmGetCapabilityCommand {
            handles: [],
            cap: TpmCap::TpmProperties,
            property: first.into(),
            property_count: MAX_PROPERTIES.into(),
        };
        let answer: TpmGetCapabilityResponse = self.run(&command, &[], &[])?;
        let TpmuCapabilities::TpmProperties(found) = answer.capability_data.data else {
            return Err(CommandError::BadResponse("another capability than its properties".into()));
        };
        let properties = found.iter().map(|each| (each.property.value(), each.value.value()));
        // The TPM also lists the next group.
        Ok(properties.filter(|(tag, _)| tag & GROUP == first & GROUP).collect())
    }

    /// TPM2_SelfTest (TPM 2.0 Part 3, 10.2) of what was not tested yet, and TPM2_GetTestResult
    /// (10.4).
    pub(super) fn test(&mut self) -> Result<(), CommandError> {
        let TpmSelfTestResponse { .. } =
            self.run(&TpmSelfTestCommand { handles: [], full_test: false.into() }, &[], &[])?;
        let TpmGetTestResultResponse { test_result, .. } =
            self.run(&TpmGetTestResultCommand { handles: [] }, &[], &[])?;
        match test_result {
            TpmRc::Fmt0(base) if base.value() == 0 => Ok(()),
            failed => Err(CommandError::Refused(ResponseCode(failed.value()))),
        }
    }
}

/// The most that the library can read from one answer. A group has fewer.
pub(super) const MAX_PROPERTIES: u32 = 64;
/// A group's number is everything except the last byte of a tag (TPM 2.0 Part 2, 6.13: PT_GROUP).
pub(super) const GROUP: u32 = 0xFFFF_FF00;
