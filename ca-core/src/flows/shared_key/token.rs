//! A token, with which a device with a shared key connects. Azure calls this form a shared access
//! signature.
//!
//! `SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn=registration`, with the
//! fields in any order. The resource is `{scope}/registrations/{device id}`, percent-encoded. The
//! expiry is in seconds since 1970, in decimal. The signature is the percent-encoded base64 of the
//! HMAC-SHA-256 of the resource as it was sent, a line feed, and the expiry.

use std::fmt;

use assay_wire::{DeviceId, EkId, Limit, Scope};
use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use subtle::ConstantTimeEq;
use time::{Duration, OffsetDateTime};

use super::key::MasterSecret;
use crate::flows::mac::CLOCK_SKEW;
use crate::profile::{Offered, SharedKeyFlow};
use crate::secret::Overlapping;

/// How far ahead the expiry of a token may be. The time is short, because anybody who sees a token
/// can use it, and a device makes a new one for every connection.
pub const TOKEN_LIFETIME: Duration = Duration::days(1);

/// A token that can be read. Nothing in it has been checked.
#[derive(Clone)]
pub struct Token {
    scope: Scope,
    device_id: DeviceId,
    expires_at: OffsetDateTime,
    signed: String,
    signature: [u8; SIGNATURE_BYTES],
}

impl Token {
    /// Reads the user name and the password of an MQTT CONNECT.
    ///
    /// The caller checks that the client id is the device's, too.
    pub fn parse(user_name: &str, password: &[u8]) -> Result<Self, TokenRefused> {
        if password.len() > MAX_TOKEN {
            return Err(TokenRefused::Oversize(Limit { length: password.len(), limit: MAX_TOKEN }));
        }
        let text = std::str::from_utf8(password).ok().and_then(|text| text.strip_prefix(PREFIX));
        let fields = Fields::parse(text.ok_or(TokenRefused::NoToken)?)?;
        if fields.key_name != KEY_NAME {
            return Err(TokenRefused::KeyName { found: fields.key_name.to_owned() });
        }
        let (scope, device_id) = parse_resource(fields.resource)?;
        if user_name != device_id.as_str() {
            return Err(TokenRefused::UserName { device_id });
        }
        Ok(Self {
            scope,
            device_id,
            expires_at: parse_expiry(fields.expiry)?,
            signed: format!("{}\n{}", fields.resource, fields.expiry),
            signature: parse_signature(fields.signature)?,
        })
    }

    /// The device id in the token. The caller needs it to look up the EK before it
    /// [verifies](AuthenticatedDevice::verify) the token.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }
}

impl fmt::Debug for Token {
    /// Leaves out the signature, with which anybody can log in for as long as the token is valid.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, device_id, expires_at, .. } = self;
        write!(f, "Token({scope}, {device_id}, until {expires_at}, ..)")
    }
}

/// A device that has its shared key: the token is for this scope, for this device, in time, and
/// signed by that key.
///
/// The key is in the TPM with the EK, or in the CA. Does not establish who sends the token: anybody
/// who saw it can show it again until it expires, so it must travel over TLS only, and to the CA
/// only. Does not establish that the device is still welcome: the caller reads that from
/// [`Records`](crate::Records), as for every other request, and ends the connection once the
/// operator disables the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticatedDevice {
    device_id: DeviceId,
    ek_id: EkId,
    generation: u32,
    expires_at: OffsetDateTime,
}

impl AuthenticatedDevice {
    /// Checks a token: its scope, its lifetime, its expiry, its signature.
    ///
    /// `ek` is the EK that the token's device is registered with. `generations` are the
    /// [accepted](crate::Records::accepted_generations) generations of its key. All others are
    /// retired.
    pub fn verify(
        _offered: Offered<SharedKeyFlow>,
        token: Token,
        scope: &Scope,
        masters: &Overlapping<MasterSecret>,
        ek: EkId,
        generations: &[u32],
        now: OffsetDateTime,
    ) -> Result<Self, TokenRefused> {
        let Token { scope: claimed, device_id, expires_at, signed, signature } = token;
        if claimed != *scope {
            return Err(TokenRefused::AnotherScope { claimed, scope: scope.clone() });
        }
        if expires_at > now + TOKEN_LIFETIME + CLOCK_SKEW {
            return Err(TokenRefused::TooLongLived { expires_at, now });
        }
        // Subtracting from `now` is safe. Adding to `expires_at` could overflow the calendar.
        if now - CLOCK_SKEW >= expires_at {
            return Err(TokenRefused::Expired { expires_at, now });
        }
        // The record does not say from which secret a generation was derived.
        let signs = |generation: &u32| {
            masters.accepted().any(|master| {
                let key = master.key(scope, &device_id, &ek, *generation);
                bool::from(key.hmac(signed.as_bytes()).ct_eq(&signature))
            })
        };
        match generations.iter().copied().find(signs) {
            Some(generation) => Ok(Self { device_id, ek_id: ek, generation, expires_at }),
            None => {
                Err(TokenRefused::SignatureWrong { device_id, generations: generations.to_vec() })
            }
        }
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(
        device_id: DeviceId,
        ek_id: EkId,
        generation: u32,
        expires_at: OffsetDateTime,
    ) -> Self {
        Self { device_id, ek_id, generation, expires_at }
    }

    /// The device.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    /// The EK whose TPM has the key.
    pub fn ek_id(&self) -> EkId {
        self.ek_id
    }

    /// The generation whose key signed the token.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// When the token expires.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.expires_at
    }
}

/// Why a token is refused.
///
/// Its text names the check and the compared values. It holds nothing secret: no signature, and
/// nothing that may be a password of another kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum TokenRefused {
    #[error("the token's length is {0}")]
    Oversize(Limit),
    #[error("the password is not a token: it does not begin with `{PREFIX}`")]
    NoToken,
    #[error("field {position} of the token is not sr, sig, se or skn")]
    FieldUnknown { position: usize },
    #[error("the token has the field {field} more than once")]
    FieldRepeated { field: &'static str },
    #[error("the token lacks the field {field}")]
    FieldMissing { field: &'static str },
    #[error("the token's skn is {found:?}, not {KEY_NAME:?}")]
    KeyName { found: String },
    #[error(
        "the token's sr is {found:?}, which is not the percent-encoding of a scope, \
         {RESOURCE_INFIX} and a device id"
    )]
    Resource { found: String },
    #[error("the token is for device {device_id}, but the user name is another one")]
    UserName { device_id: DeviceId },
    #[error("the token's se is {found:?}, not a time in seconds since 1970 in decimal")]
    Expiry { found: String },
    #[error("the token's sig is not the base64 of {SIGNATURE_BYTES} bytes")]
    Signature,
    #[error("the token is for scope {claimed}, this is {scope}")]
    AnotherScope { claimed: Scope, scope: Scope },
    #[error("the token is valid until {expires_at}, more than {} hours from now; it is {now}", TOKEN_LIFETIME.whole_hours())]
    TooLongLived { expires_at: OffsetDateTime, now: OffsetDateTime },
    #[error("the token expired at {expires_at}; the time is {now}")]
    Expired { expires_at: OffsetDateTime, now: OffsetDateTime },
    #[error(
        "the token is not signed by the key of device {device_id}; generations {generations:?} of \
         the key are in force"
    )]
    SignatureWrong { device_id: DeviceId, generations: Vec<u32> },
}

/// The fields as they were sent.
struct Fields<'a> {
    resource: &'a str,
    signature: &'a str,
    expiry: &'a str,
    key_name: &'a str,
}

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> Result<Self, TokenRefused> {
        let [mut resource, mut signature, mut expiry, mut key_name] = [None; 4];
        for (at, pair) in text.split('&').enumerate() {
            let (field, place, value) = match pair.split_once('=') {
                Some(("sr", value)) => ("sr", &mut resource, value),
                Some(("sig", value)) => ("sig", &mut signature, value),
                Some(("se", value)) => ("se", &mut expiry, value),
                Some(("skn", value)) => ("skn", &mut key_name, value),
                _ => return Err(TokenRefused::FieldUnknown { position: at + 1 }),
            };
            if place.replace(value).is_some() {
                return Err(TokenRefused::FieldRepeated { field });
            }
        }
        let required =
            |field, value: Option<&'a str>| value.ok_or(TokenRefused::FieldMissing { field });
        Ok(Self {
            resource: required("sr", resource)?,
            signature: required("sig", signature)?,
            expiry: required("se", expiry)?,
            key_name: required("skn", key_name)?,
        })
    }
}

fn parse_resource(resource: &str) -> Result<(Scope, DeviceId), TokenRefused> {
    let parse = || {
        let decoded = percent_decode_str(resource).decode_utf8().ok()?;
        let (scope, device_id) = decoded.split_once(RESOURCE_INFIX)?;
        Some((scope.parse().ok()?, device_id.parse().ok()?))
    };
    parse().ok_or_else(|| TokenRefused::Resource { found: resource.to_owned() })
}

/// Without a sign or leading zeros, so that a time has only one spelling.
fn parse_expiry(expiry: &str) -> Result<OffsetDateTime, TokenRefused> {
    let parse = || {
        let seconds: i64 = expiry.parse().ok().filter(|seconds| *seconds >= 0)?;
        let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
        (seconds.to_string() == expiry).then_some(time)
    };
    parse().ok_or_else(|| TokenRefused::Expiry { found: expiry.to_owned() })
}

fn parse_signature(signature: &str) -> Result<[u8; SIGNATURE_BYTES], TokenRefused> {
    let encoded: Vec<u8> = percent_decode_str(signature).collect();
    let decoded = BASE64.decode(&encoded).map_err(|_| TokenRefused::Signature)?;
    decoded.try_into().map_err(|_| TokenRefused::Signature)
}

const PREFIX: &str = "SharedAccessSignature ";
/// Azure's name for the key that a registration gives. There is no other kind.
const KEY_NAME: &str = "registration";
const RESOURCE_INFIX: &str = "/registrations/";
/// Length of an HMAC-SHA-256.
const SIGNATURE_BYTES: usize = 32;
/// The longest token that percent-encodes only what it must has 434 bytes: scope and device id have
/// their longest length, every character of the device id is a colon, and the signature's base64 is
/// of `+` and `/`.
const MAX_TOKEN: usize = 512;
