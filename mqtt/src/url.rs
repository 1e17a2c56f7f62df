//! Where a broker is: `mqtt://host[:port]` or `mqtts://host[:port]`.

use std::fmt;
use std::str::FromStr;

/// The address of a broker and whether to speak TLS with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    tls: bool,
    host: String,
    port: u16,
}

impl BrokerUrl {
    /// Like [`from_str`](Self::from_str), but for the operational listener: the default port with
    /// TLS is 8884, as in `assay serve`.
    pub fn operational(text: &str) -> Result<Self, BrokerUrlError> {
        Self::parse(text, OPERATIONAL)
    }

    /// The operational listener of the same host, with TLS, at its default port.
    pub fn beside_operational(&self) -> Self {
        Self { tls: true, host: self.host.clone(), port: OPERATIONAL }
    }

    /// Host name or IPv4 address. The broker's certificate must carry it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port. If the URL has none, it is 1883, or with TLS 8883 (IANA).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection is encrypted and the broker authenticated.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

/// The text is not the URL of a broker.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a broker URL: {0:?}; expected mqtts://host[:port], or mqtt://host[:port] without TLS")]
pub struct BrokerUrlError(String);

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        Self::parse(text, BOOTSTRAP)
    }
}

impl BrokerUrl {
    fn parse(text: &str, tls_port: u16) -> Result<Self, BrokerUrlError> {
        let error = || BrokerUrlError(text.to_owned());
        let (scheme, authority) = text.split_once("://").ok_or_else(error)?;
        let (tls, default_port) = match scheme {
            "mqtt" => (false, 1883),
            "mqtts" => (true, tls_port),
            _ => return Err(error()),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| error())?),
            None => (authority, default_port),
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_host) {
            return Err(error());
        }
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// secure-mqtt, registered by IANA.
const BOOTSTRAP: u16 = 8883;
const OPERATIONAL: u16 = 8884;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_port_that_is_left_out_depends_on_the_listener() {
        for (text, bootstrap, operational) in [
            ("mqtts://broker.example", 8883, 8884),
            ("mqtts://broker.example:443", 443, 443),
            ("mqtt://broker.example", 1883, 1883),
        ] {
            assert_eq!(text.parse::<BrokerUrl>().unwrap().port(), bootstrap);
            assert_eq!(BrokerUrl::operational(text).unwrap().port(), operational);
        }
    }

    #[test]
    fn operational_listener_is_expected_on_the_same_host() {
        for text in ["mqtts://broker.example:18883", "mqtt://broker.example"] {
            let found = text.parse::<BrokerUrl>().unwrap().beside_operational();
            assert_eq!(found.to_string(), "mqtts://broker.example:8884");
        }
    }

    #[test]
    fn urls_print_with_their_port() {
        for (text, printed) in [
            ("mqtt://localhost", "mqtt://localhost:1883"),
            ("mqtts://broker.example/", "mqtts://broker.example:8883"),
            ("mqtts://127.0.0.1:18883", "mqtts://127.0.0.1:18883"),
        ] {
            assert_eq!(text.parse::<BrokerUrl>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn other_texts_are_not_broker_urls() {
        for text in [
            "",
            "localhost",
            "http://localhost",
            "mqtts://",
            "mqtt://host:99999",
            "mqtt://user@host",
            "mqtt://h/x",
        ] {
            assert!(text.parse::<BrokerUrl>().is_err(), "{text}");
        }
    }
}
