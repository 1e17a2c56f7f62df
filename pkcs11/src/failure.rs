//! Why a token did not do what it was asked for.

use std::fmt;

use minicbor::{Decode, Encode};

/// What went wrong, and what the library said.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failure {
    /// The kind.
    #[n(0)]
    pub cause: Cause,
    /// More of it, for people.
    #[n(1)]
    text: String,
}

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Cause {
    /// The library cannot be loaded, or does not begin its work.
    #[n(0)]
    Module,
    /// No token is as the URI says.
    #[n(1)]
    NoToken,
    /// More than one is.
    #[n(2)]
    SeveralTokens,
    /// The token has no such key.
    #[n(3)]
    NoKey,
    /// It has more than one.
    #[n(4)]
    SeveralKeys,
    /// The key is of a kind that is not used here, or is not the one of the certificate.
    #[n(5)]
    OtherKey,
    /// There is no PIN to log in with, or it cannot be read.
    #[n(6)]
    NoPin,
    /// The token refused the PIN, or another one wrong PIN would lock it. Nobody tries again.
    #[n(7)]
    PinRefused,
    /// The token has no room for another key.
    #[n(8)]
    Full,
    /// The token or its library failed.
    #[n(9)]
    Token,
    /// The library's process ended.
    #[n(10)]
    Ended,
    /// No answer came in time.
    #[n(11)]
    Slow,
    /// The token makes no key of this kind.
    #[n(12)]
    Unfit,
}

impl Failure {
    pub(crate) fn new(cause: Cause, text: impl fmt::Display) -> Self {
        Self { cause, text: printable(&text.to_string()) }
    }

    /// What a process said went wrong: its library may say anything.
    pub(crate) fn sanitized(self) -> Self {
        Self::new(self.cause, self.text)
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.cause {
            Cause::Module => "the PKCS #11 library cannot be used",
            Cause::NoToken => "the token is not there",
            Cause::SeveralTokens => "more than one token is as the URI says; add serial=",
            Cause::NoKey => "the token has no such key",
            Cause::SeveralKeys => "the token has more than one such key; add id=",
            Cause::OtherKey => "the token's key is not usable here",
            Cause::NoPin => "there is no PIN for the token",
            Cause::PinRefused => "the PIN is refused, and is not tried again",
            Cause::Full => "the token has no room for another key",
            Cause::Token => "the token failed",
            Cause::Ended => "the process of the PKCS #11 library ended",
            Cause::Slow => "the token does not answer",
            Cause::Unfit => "the token makes no such keys",
        };
        f.write_str(what)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

/// A few lines of text without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).take(MAX_TEXT).collect()
}

/// Characters of what a library says.
const MAX_TEXT: usize = 300;
