//! Tokens: what a device with a shared key signs in with, in the form of Azure's shared access
//! signatures.

use std::fmt;
use std::time::Duration;

use assay_wire::{DeviceId, Scope};
use data_encoding::BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::clock::Clock;
use crate::error::Error;
use crate::tpm::TpmError;

/// User name and password for MQTT. Anybody who has the token can sign in as the device until the
/// token expires. Debug output does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// MQTT client id and user name.
    pub device_id: DeviceId,
    /// The password.
    pub password: String,
    /// Until when it is valid, in seconds since 1970-01-01T00:00:00Z.
    pub expires_at: u64,
}

impl Token {
    /// The longest lifetime that a CA accepts.
    pub const MAX_LIFETIME: Duration = Duration::from_hours(24);
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} until {}, ..)", self.device_id, self.expires_at)
    }
}

/// When a token expires. If the clock is wrong, the CA refuses the token as expired, or as valid
/// for too long.
pub(crate) fn expiry(clock: &Clock, lifetime: Duration) -> u64 {
    clock.now().as_secs() + lifetime.as_secs()
}

/// `hmac` is HMAC-SHA-256 under the device's key.
pub(crate) fn sign(
    scope: &Scope,
    device_id: &DeviceId,
    expires_at: u64,
    hmac: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, TpmError>,
) -> Result<Token, Error> {
    let resource = encode(&format!("{scope}/registrations/{device_id}"));
    let signature =
        encode(&BASE64.encode(&hmac(format!("{resource}\n{expires_at}").into_bytes())?));
    let password = format!(
        "SharedAccessSignature sr={resource}&sig={signature}&se={expires_at}&skn=registration"
    );
    Ok(Token { device_id: device_id.clone(), password, expires_at })
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// All except the unreserved characters (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The lifetime of a token for one connection, with room for clocks that disagree.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn token(device_id: &str) -> Token {
        let key =
            ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"thirty-two bytes of key material");
        let hmac = |data: Vec<u8>| Ok(ring::hmac::sign(&key, &data).as_ref().to_vec());
        sign(&"default".parse().unwrap(), &device_id.parse().unwrap(), 1_790_000_000, hmac).unwrap()
    }

    /// Computed by Python's hmac, base64 and urllib.parse.quote(safe='').
    #[test]
    fn token_is_that_of_other_software() {
        let expected = "SharedAccessSignature \
                        sr=default%2Fregistrations%2Fpump-17&\
                        sig=xsIhYc1X04t4Y5U0tJF6BjGAmmOuFTA7PHIRTnLYx8Q%3D&se=1790000000&\
                        skn=registration";
        assert_eq!(token("pump-17").password, expected);
    }

    #[test]
    fn everything_but_unreserved_characters_is_encoded() {
        assert!(
            token("a-b.c_d:E9").password.contains("sr=default%2Fregistrations%2Fa-b.c_d%3AE9&")
        );
        assert_eq!(encode("~+/= &%"), "~%2B%2F%3D%20%26%25");
    }

    #[test]
    fn a_token_does_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", token("pump-17")), "Token(pump-17 until 1790000000, ..)");
    }
}
