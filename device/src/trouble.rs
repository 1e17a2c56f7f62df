//! Why a broker was not reached: a trouble that passes, or a setting that is wrong.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};

use assay_mqtt::BrokerUrl;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use assay_mqtt::rumqttc::v5::{ConnectionError, StateError};
use rustls::{AlertDescription, CertificateError};

use crate::broker_certificate::BrokerCertificateFault;
use crate::error::{Error, Setting};

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may pass by itself, so another attempt may succeed.
    Passing(String),
    /// The other side closed the connection before it said anything. It may speak another protocol.
    Closed(String),
    /// What came does not belong to the protocol.
    Foreign(Error),
    /// It stays as it is until somebody changes a setting.
    Lasting(Error),
}

impl Trouble {
    pub(crate) fn misconfigured(found: impl Into<String>, setting: Setting) -> Self {
        Self::Lasting(Error::Misconfigured { found: found.into(), setting })
    }

    /// The reason, if the trouble may pass by itself; else the error. If the device may speak the
    /// wrong protocol, `probe` tries the other one first.
    pub(crate) fn examined(self, probe: impl FnOnce() -> Option<Error>) -> Result<String, Error> {
        match self {
            Self::Passing(reason) => Ok(reason),
            Self::Closed(reason) => probe().map_or(Ok(reason), Err),
            Self::Foreign(error) => Err(probe().unwrap_or(error)),
            Self::Lasting(error) => Err(error),
        }
    }

    /// The broker has already spoken MQTT with this device, so a wrong protocol is not the reason.
    pub(crate) fn in_conversation(self) -> Self {
        match self {
            Self::Closed(reason) => Self::Passing(reason),
            Self::Foreign(error) => Self::Passing(error.to_string()),
            other => other,
        }
    }

    /// Why a TLS connection for `purpose` failed.
    pub(crate) fn of_stream(error: &io::Error, broker: &BrokerUrl, purpose: Purpose) -> Self {
        match find::<rustls::Error>(error) {
            Some(error) => of_tls(error, broker, purpose),
            None if is_closed(error) => closed(broker),
            None => Self::Passing(format!("{broker}: {error}")),
        }
    }

    /// Why the connection for `purpose` failed.
    pub(crate) fn of(error: &ConnectionError, broker: &BrokerUrl, purpose: Purpose) -> Self {
        // rumqttc does not give this error as its `source`.
        let cause: &(dyn StdError + 'static) = match error {
            ConnectionError::MqttState(StateError::Deserialization(cause)) => cause,
            error => error,
        };
        if let Some(error) = find::<rustls::Error>(cause) {
            return of_tls(error, broker, purpose);
        }
        match (error, find::<io::Error>(cause)) {
            (ConnectionError::MqttState(StateError::ConnectionAborted), _) => closed(broker),
            (_, Some(error)) if is_closed(error) => closed(broker),
            // tokio's codec reports this if the stream ends within a packet. So something other
            // than MQTT began with bytes that look like a packet.
            (ConnectionError::MqttState(StateError::Deserialization(_)), Some(error))
                if error.kind() == ErrorKind::Other =>
            {
                foreign(broker, "MQTT 5")
            }
            (_, Some(error)) => Self::Passing(format!("{broker}: {error}")),
            (ConnectionError::ConnectionRefused(code), _) => of_refusal(*code, broker, purpose),
            (ConnectionError::Timeout(_), _) => Self::Passing(format!("{broker} did not answer")),
            (
                ConnectionError::MqttState(StateError::Deserialization(_))
                | ConnectionError::NotConnAck(_),
                _,
            ) => foreign(broker, "MQTT 5"),
            _ => Self::Passing(format!("{broker}: {error}")),
        }
    }
}

/// What a connection is for. It decides which listener of the broker the connection needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The bootstrap listener, which asks for no certificate.
    Bootstrap,
    /// The operational listener, by certificate or password.
    Operation,
}

/// The setting to check if somebody may have confused the two listeners.
pub(crate) fn listener_for(purpose: Purpose) -> Setting {
    match purpose {
        Purpose::Bootstrap => Setting::BootstrapListener,
        Purpose::Operation => Setting::OperationalListener,
    }
}

fn of_tls(error: &rustls::Error, broker: &BrokerUrl, purpose: Purpose) -> Trouble {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(fault)) => {
            match fault.0.downcast_ref::<BrokerCertificateFault>() {
                Some(fault) => fault
                    .lasting()
                    .map_or_else(|| Trouble::Passing(fault.to_string()), Trouble::Lasting),
                None => Trouble::Passing(error.to_string()),
            }
        }
        rustls::Error::InvalidMessage(_) => foreign(broker, "TLS"),
        rustls::Error::AlertReceived(alert) => of_alert(*alert, broker, purpose),
        rustls::Error::PeerIncompatible(_) => Trouble::misconfigured(
            format!("{broker} and this device have no form of TLS in common: {error}"),
            Setting::TlsVersions,
        ),
        error => Trouble::Passing(format!("{broker}: {error}")),
    }
}

/// The alerts that are about the device's certificate, or about a missing one (RFC 8446 §6.2).
fn of_alert(alert: AlertDescription, broker: &BrokerUrl, purpose: Purpose) -> Trouble {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, HandshakeFailure, UnknownCA, UnsupportedCertificate,
    };
    match (alert, purpose) {
        (CertificateRequired | HandshakeFailure | BadCertificate, Purpose::Bootstrap) => {
            Trouble::misconfigured(
                format!("{broker} asks for a certificate"),
                listener_for(purpose),
            )
        }
        (
            AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | HandshakeFailure
            | UnknownCA
            | UnsupportedCertificate,
            Purpose::Operation,
        ) => Trouble::Lasting(Error::LoginRefused { reason: format!("TLS alert {alert:?}") }),
        _ => Trouble::Passing(format!("{broker} ends the TLS handshake: {alert:?}")),
    }
}

/// MQTT 5.0, 3.2.2.2.
fn of_refusal(code: ConnectReturnCode, broker: &BrokerUrl, purpose: Purpose) -> Trouble {
    use ConnectReturnCode::{
        BadAuthenticationMethod, BadClientId, BadUserNamePassword, Banned,
        ClientIdentifierNotValid, NotAuthorized, RefusedProtocolVersion,
        UnsupportedProtocolVersion,
    };
    match (code, purpose) {
        (RefusedProtocolVersion | UnsupportedProtocolVersion, _) => {
            Trouble::misconfigured(format!("{broker} does not speak MQTT 5"), Setting::MqttVersion)
        }
        (
            BadAuthenticationMethod
            | BadClientId
            | BadUserNamePassword
            | Banned
            | ClientIdentifierNotValid
            | NotAuthorized,
            Purpose::Bootstrap,
        ) => Trouble::misconfigured(
            format!("{broker} lets nobody in without a certificate or a password ({code:?})"),
            listener_for(purpose),
        ),
        (BadClientId | ClientIdentifierNotValid, Purpose::Operation) => Trouble::misconfigured(
            format!(
                "{broker} accepts no client id that is a device id ({code:?}): it is the \
                 bootstrap listener, or it serves another scope"
            ),
            listener_for(purpose),
        ),
        (
            BadAuthenticationMethod | BadUserNamePassword | Banned | NotAuthorized,
            Purpose::Operation,
        ) => Trouble::Lasting(Error::LoginRefused { reason: format!("{code:?}") }),
        (code, _) => Trouble::Passing(format!("{broker} refuses the connection for now: {code:?}")),
    }
}

fn closed(broker: &BrokerUrl) -> Trouble {
    Trouble::Closed(format!("{broker} closed the connection"))
}

fn foreign(broker: &BrokerUrl, protocol: &str) -> Trouble {
    Trouble::Foreign(Error::Misconfigured {
        found: format!("what listens at {broker} does not speak {protocol}"),
        setting: Setting::Address,
    })
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
    )
}

/// The first error of a type in a chain of causes. An `io::Error` does not give the error in it as
/// its `source`.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
