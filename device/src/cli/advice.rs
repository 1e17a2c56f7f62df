//! What people can do about an error, in terms of this program's commands and flags.

use assay_device::tpm::{KeyPurpose, Tcti, TpmError};
use assay_device::{Advice, CheckedSetting, Error, Setting};
use assay_wire::ProblemCode;

/// The text of an error, and what to do about it, if there is anything to do.
pub(crate) fn with_advice(error: &Error) -> String {
    match of(error) {
        Some(advice) => format!("{error}\n  What to do: {advice}"),
        None => error.to_string(),
    }
}

/// What to do about what a check of the doctor found.
pub(crate) fn of_check(advice: &Advice) -> Option<String> {
    match advice {
        Advice::Do(text) => Some((*text).to_owned()),
        Advice::Set(text, setting) => Some(format!("{text}: {}.", flag(*setting))),
        Advice::Error(error) => of(error),
    }
}

fn flag(setting: CheckedSetting) -> &'static str {
    match setting {
        CheckedSetting::Tcti => "--tcti",
        CheckedSetting::EkCertificate => "--ek-certificate",
        CheckedSetting::IdentityKey => "--ik",
        CheckedSetting::CaRoot => "--ca-root",
        CheckedSetting::Broker => "--broker",
    }
}

fn of(error: &Error) -> Option<String> {
    let text = match error {
        Error::UnknownKindOfEk(_) => "say the kind of EK with --ek.",
        Error::NoCertificate => {
            "use a token (`assay-device token`), or run `assay-device provision` with another \
             --flow."
        }
        Error::KeyGone { .. } => "run `assay-device provision`.",
        Error::KeyNotKept { .. } => {
            "use the handle (--format handle), or make another key: `assay-device provision \
             --again --ik-handle 0x81000201`."
        }
        Error::Refused { problem } | Error::Pending { problem, .. } => of_problem(problem.code),
        Error::LoginRefused { .. } => {
            "check this device's clock, then run `assay-device provision --again`: its answer says \
             whether the CA still knows this device. A key or certificate may be superseded, \
             revoked or disabled. Only the CA's built-in broker takes tokens of a shared key."
        }
        Error::Misconfigured { setting, .. } => return Some(of_setting(setting)),
        Error::Clock { .. } => {
            "set the clock; if the device has no clock, use --no-clock: the device then starts \
             from the date of its CA's root."
        }
        Error::NotProvisioned(_) => "run `assay-device provision`.",
        Error::NoSharedKey => "run `assay-device provision --flow shared-key`.",
        Error::Expired { .. } => {
            "run `assay-device provision`, which gets another certificate; if the clock is wrong, \
             set it first."
        }
        Error::BrokenState { .. } => {
            "run `assay-device provision`, which keeps a copy of the file and starts a new one."
        }
        Error::Tpm(error) => return of_tpm(error),
        Error::Usage(_)
        | Error::Unwell { .. }
        | Error::NotReached { .. }
        | Error::State { .. }
        | Error::Answer(_)
        | Error::Internal(_) => return None,
    };
    Some(text.to_owned())
}

/// What the people at the device or at the CA can do about a refusal.
fn of_problem(code: ProblemCode) -> &'static str {
    match code {
        ProblemCode::Malformed | ProblemCode::Oversize | ProblemCode::Unsupported => {
            "device and CA speak different versions of the protocol; update the older one."
        }
        ProblemCode::Busy | ProblemCode::Internal => "try again later.",
        ProblemCode::FlowNotOffered => {
            "choose another flow (--flow), or ask the operator to offer this one: flows in assay.toml, \
             and those of the device's group (assay group list)."
        }
        ProblemCode::EkOffTemplate => {
            "report this TPM's model: its EK has a shape that the CA does not know."
        }
        ProblemCode::EkWeak => {
            "this TPM's EK must not be trusted; update its firmware or replace it."
        }
        ProblemCode::EkNotEnrolled => {
            "give the EK certificate in a file (--ek-certificate), or ask the operator to enrol the EK: assay enroll add."
        }
        ProblemCode::EkCertificateInvalid => {
            "check that the file is the EK certificate of this TPM (--ek-certificate)."
        }
        ProblemCode::EkCertificateUntrusted => {
            "ask the operator to trust the TPM's vendor (assay trust add), and give missing issuers with --ek-certificate."
        }
        ProblemCode::EkCertificateExpired => {
            "check the clocks of device and CA; if they are right, ask the operator to enrol the EK itself: assay enroll add."
        }
        ProblemCode::EkCertificateMismatch => {
            "the EK certificate belongs to another TPM or another of its keys; choose the right one (--ek, --ek-certificate)."
        }
        ProblemCode::OtherEkOnRecord => {
            "show the EK that the operator knows; `assay-device ek` prints every EK with its id. To be another device with this EK, \
             name its kind: --ek."
        }
        ProblemCode::IkOffTemplate | ProblemCode::IkWeak => {
            "use another kind of identity key (--ik, --ik-handle)."
        }
        ProblemCode::CsrInvalid
        | ProblemCode::CsrSignatureInvalid
        | ProblemCode::CsrKeyMismatch => "report this as a fault of the device's software.",
        ProblemCode::ParentOffTemplate | ProblemCode::ParentWeak => {
            "use another kind of parent (--parent)."
        }
        ProblemCode::PlainSrk => {
            "leave out --parent srk-…; if this device needs a plain storage root key, ask the operator to allow it: \
             assay enroll add --plain-srk, or assay enroll update --plain-srk."
        }
        ProblemCode::ReprovisionRefused => {
            "ask the operator to permit it: assay enroll update --reprovision reissue."
        }
        ProblemCode::DeviceDisabled => {
            "ask the operator why; assay enroll enable lets the device in again."
        }
        ProblemCode::DeviceIdTaken | ProblemCode::DeviceIdNotEnrolled => {
            "ask for no device id, or have the operator enrol this EK with it: assay enroll add --device-id."
        }
        ProblemCode::Pending => {
            "have the operator approve this device: assay pending list, assay pending approve. Then run this again, or let \
             `assay-device run` wait."
        }
        ProblemCode::NotAdmitted => {
            "ask the operator for a group that admits this device: assay group list, then add or update."
        }
        ProblemCode::EkRegistered => {
            "ask for the device id that this TPM is registered under, or for none."
        }
        ProblemCode::ClaimExpired | ProblemCode::TicketRefused => {
            "try again; if it fails again, check the CA's clock, and that all its workers share one ticket key."
        }
        ProblemCode::ClockOff => "correct the clock of the device, or of the CA.",
        ProblemCode::CertificateNotInForce | ProblemCode::StatementRefused => {
            "provision the device anew: assay-device provision --again."
        }
        ProblemCode::QuotaExceeded => {
            "find out why this device makes new identity keys so often; it may try again later."
        }
        ProblemCode::Other(_) => "update this device's software: the CA is newer.",
    }
}

fn of_setting(setting: &Setting) -> String {
    let text = match setting {
        Setting::Address => "correct host and port in --broker.",
        Setting::BootstrapListener => {
            "devices are provisioned at the bootstrap listener (port 8883 by default), which asks \
             for no certificate; correct the port in --broker."
        }
        Setting::OperationalListener => {
            "provisioned devices speak at the operational listener (port 8884 by default); correct \
             the port in --broker."
        }
        Setting::SchemeWithTls { host, port } => {
            return format!("write --broker mqtts://{host}:{port}, or correct the port.");
        }
        Setting::PortWithoutTls => "correct the port; without TLS, nothing vouches for the broker.",
        Setting::TlsVersions => {
            "have the operator allow TLS 1.3, or 1.2 with ECDHE and AES-GCM or ChaCha20."
        }
        Setting::MqttVersion => "use a broker that speaks MQTT 5, or correct the port in --broker.",
        Setting::Scope => {
            "correct --scope (the CA's assay.toml names it) or --broker; if the broker is not the \
             built-in one, check its access list."
        }
        Setting::CaRoot => {
            "give the root.pem of the CA that runs this broker (--ca-root), which has a new root if this \
             device did not renew for long; or correct --broker."
        }
        Setting::BrokerName => {
            "use a name that the certificate has (--broker), or have the operator make a \
             certificate for this name: assay init --server-name."
        }
        Setting::BrokerCertificateOrClock => {
            "if this device's clock is wrong, set it; otherwise the operator must renew the \
             broker's certificate."
        }
        Setting::BrokerCertificate => "have the operator replace the broker's certificate.",
    };
    text.to_owned()
}

fn of_tpm(error: &TpmError) -> Option<String> {
    let text = match error {
        TpmError::Unreachable { tcti, .. } => of_tcti(tcti),
        TpmError::TimedOut { .. } => {
            "check that nothing else holds the TPM, or allow more time: --tpm-timeout."
        }
        TpmError::WrongPassword { hierarchy, .. } => {
            return Some(format!(
                "give the right password in a file (--{hierarchy}-auth-file) or the environment."
            ));
        }
        TpmError::HandleOccupied { handle, key, .. } => {
            return Some(format!(
                "choose another handle ({}), or remove the object if nobody needs it: \
                 tpm2_evictcontrol -c {handle:#010x}",
                handle_flag(*key)
            ));
        }
        TpmError::KeyWithPassword { key, .. } => {
            return Some(format!("choose another handle: {}.", handle_flag(*key)));
        }
        TpmError::OtherEk { .. } => {
            "if somebody replaced the TPM, use a new state directory: --state."
        }
        TpmError::Unreadable { .. } => {
            "give the certificate in a file (--ek-certificate), or the owner's password if the TPM \
             accepts it (--owner-auth-file)."
        }
        TpmError::Abandoned
        | TpmError::NotForThisTpm { .. }
        | TpmError::Unsupported(_)
        | TpmError::Refused { .. }
        | TpmError::BadArgument { .. }
        | TpmError::BadResponse { .. }
        | TpmError::Other { .. } => return None,
    };
    Some(text.to_owned())
}

fn of_tcti(tcti: &Tcti) -> &'static str {
    if tcti.is_of_library() {
        "check that it is running, and that libtss2's module for it is installed \
         (libtss2-tcti-…). TSS2_LOG=all+ERROR says more."
    } else if tcti.is_device() {
        "check that the device is there, and that this user may open it (group tss)."
    } else {
        "check that it is running."
    }
}

fn handle_flag(key: KeyPurpose) -> &'static str {
    match key {
        KeyPurpose::Identity => "--ik-handle",
        KeyPurpose::Hmac => "--hmac-handle",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use assay_wire::Problem;

    use super::*;

    /// One error of each kind whose advice has a flag or a command, with that flag or command.
    fn cases() -> Vec<(Error, &'static str)> {
        let at = || "text".to_owned();
        let setting = |setting| Error::Misconfigured { found: at(), setting };
        let refused = |code| Error::Refused { problem: Problem::new(code, at()) };
        let (operation, handle) = ("signing", 0x8100_0200);
        let occupied = |key| {
            let (wanted, found) = (at(), at());
            TpmError::HandleOccupied { handle, wanted, found, key }.into()
        };
        let locked = |key| TpmError::KeyWithPassword { operation, handle, key }.into();
        let no_tpm = |tcti: &str| {
            let tcti = tcti.parse().unwrap();
            TpmError::Unreachable { operation, tcti, reason: at() }.into()
        };
        vec![
            (Error::UnknownKindOfEk(at()), "--ek"),
            (Error::NoCertificate, "--flow"),
            (Error::KeyGone { key: "a key", handle }, "assay-device provision"),
            (refused(ProblemCode::FlowNotOffered), "--flow"),
            (refused(ProblemCode::EkNotEnrolled), "--ek-certificate"),
            (refused(ProblemCode::IkWeak), "--ik"),
            (Error::LoginRefused { reason: at() }, "assay-device provision --again"),
            (setting(Setting::Address), "--broker"),
            (setting(Setting::BootstrapListener), "--broker"),
            (setting(Setting::OperationalListener), "--broker"),
            (
                setting(Setting::SchemeWithTls { host: "ca.example".into(), port: 8883 }),
                "--broker mqtts://ca.example:8883",
            ),
            (setting(Setting::PortWithoutTls), "correct the port"),
            (setting(Setting::TlsVersions), "TLS 1.3"),
            (setting(Setting::MqttVersion), "--broker"),
            (setting(Setting::Scope), "--scope"),
            (setting(Setting::CaRoot), "--ca-root"),
            (setting(Setting::BrokerName), "--server-name"),
            (setting(Setting::BrokerCertificateOrClock), "clock"),
            (setting(Setting::BrokerCertificate), "operator"),
            (Error::Clock { clock: at(), evidence: at() }, "--no-clock"),
            (Error::NotProvisioned(at()), "assay-device provision"),
            (Error::NoSharedKey, "--flow shared-key"),
            (
                Error::Expired { path: at().into(), not_after: at(), clock: at() },
                "assay-device provision",
            ),
            (Error::BrokenState { path: at().into(), reason: at() }, "assay-device provision"),
            (no_tpm("device:/dev/tpm0"), "group tss"),
            (no_tpm("swtpm:host=localhost,port=2321"), "running"),
            (
                TpmError::TimedOut { operation, limit: Duration::from_secs(60) }.into(),
                "--tpm-timeout",
            ),
            (TpmError::WrongPassword { operation, hierarchy: "owner" }.into(), "--owner-auth-file"),
            (occupied(KeyPurpose::Identity), "--ik-handle"),
            (occupied(KeyPurpose::Hmac), "--hmac-handle"),
            (locked(KeyPurpose::Identity), "--ik-handle"),
            (locked(KeyPurpose::Hmac), "--hmac-handle"),
            (TpmError::OtherEk { operation }.into(), "--state"),
            (TpmError::Unreadable { index: 1 }.into(), "--owner-auth-file"),
        ]
    }

    #[test]
    fn errors_of_the_library_name_no_flag_and_no_command() {
        for (error, _) in cases() {
            let text = error.to_string();
            assert!(!text.contains(" --") && !text.contains("(--"), "{text}");
            assert!(!text.contains("assay-device ") && !text.contains("What to do"), "{text}");
        }
    }

    #[test]
    fn the_program_adds_what_to_do_with_its_flags() {
        for (error, advice) in cases() {
            let text = with_advice(&error);
            let (found, what_to_do) = text.split_once("\n  What to do: ").unwrap();
            assert_eq!(found, error.to_string());
            assert!(what_to_do.contains(advice), "{text}");
        }
    }

    #[test]
    fn error_that_says_all_gets_no_advice() {
        let error = Error::Usage("a token is valid for 86400 s at most".into());
        assert_eq!(with_advice(&error), error.to_string());
    }

    #[test]
    fn checks_of_the_doctor_name_the_flag_of_their_setting() {
        let advice = Advice::Set("correct the TPM's address", CheckedSetting::Tcti);
        assert_eq!(of_check(&advice).unwrap(), "correct the TPM's address: --tcti.");
        let advice = Advice::Error(Error::NotProvisioned(String::new()));
        assert!(of_check(&advice).unwrap().contains("assay-device provision"));
    }
}
