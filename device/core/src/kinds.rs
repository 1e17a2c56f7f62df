//! The kinds of key that a device uses, and their names on command lines and in files.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// Prints a kind as its name, and reads it back.
macro_rules! named_kind {
    ($kind:ty, $of:literal) => {
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $kind {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
                    let names = Self::ALL.map(Self::name).join(", ");
                    format!("not a kind of {}: expected one of {names}", $of)
                })
            }
        }
    };
}

named_kind!(EkKind, "EK");
named_kind!(IkKind, "IK");
named_kind!(ParentKind, "parent");

/// The kinds of endorsement key (EK). Each has one template. The templates of TCG are from the EK
/// Credential Profile 2.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkKind {
    /// Template L-2.
    P256,
    /// Template H-3.
    P384,
    /// Template L-1.
    Rsa2048,
    /// Template H-6.
    Rsa3072,
    /// Template L-1, but with an empty `unique`. Azure's C SDK for device provisioning makes this
    /// EK by mistake. It is not the key that the manufacturer certified, so it has no certificate.
    LegacyDps,
}

impl EkKind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::P256, Self::P384, Self::Rsa2048, Self::Rsa3072, Self::LegacyDps];
    /// The kinds that manufacturers certify, in the order in which a device tries them. Elliptic
    /// curves come first, because they are faster on every chip.
    pub const CERTIFIED: [Self; 4] = [Self::P256, Self::P384, Self::Rsa2048, Self::Rsa3072];

    /// The NV index of the certificate for such an EK (TCG EK Credential Profile 2.5, 2.2.1.4 and
    /// 2.2.1.5); `None` if nobody certifies EKs of this kind.
    pub const fn certificate_index(self) -> Option<u32> {
        match self {
            Self::P256 => Some(0x01C0_000A),
            Self::P384 => Some(0x01C0_0016),
            Self::Rsa2048 => Some(RSA_2048_CERTIFICATE),
            Self::Rsa3072 => Some(0x01C0_001C),
            Self::LegacyDps => None,
        }
    }

    /// The template's name in the TCG EK Credential Profile 2.5, annex B.
    pub const fn template(self) -> &'static str {
        match self {
            Self::P256 => "L-2",
            Self::P384 => "H-3",
            Self::Rsa2048 => "L-1",
            Self::Rsa3072 => "H-6",
            Self::LegacyDps => "L-1 with an empty unique",
        }
    }

    /// Its name on command lines and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::LegacyDps => "legacy-dps",
        }
    }
}

/// The NV index of the certificate for the EK of template L-1.
pub const RSA_2048_CERTIFICATE: u32 = 0x01C0_0002;

/// The kinds of identity key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IkKind {
    /// ECDSA with SHA-256. This is the default: it is fast on every chip, and every TLS version
    /// takes its signatures.
    P256,
    /// ECDSA with SHA-384.
    P384,
    /// RSASSA or RSAPSS with SHA-256.
    Rsa2048,
}

impl IkKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    /// Its name on command lines and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa2048 => "rsa-2048",
        }
    }
}

/// The kinds of parent that a CA can send an HMAC key to.
///
/// An *import parent* lets the TPM import and load keys, and nothing else. A plain storage root key
/// (SRK) has the default template of the TCG TPM v2.0 Provisioning Guidance, 7.5.1, and allows
/// every use: an attacker who controls the device's software for a moment can make the TPM give the
/// HMAC key away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentKind {
    /// An import parent. This is the default, because elliptic curves are fast on every chip.
    P256,
    /// An import parent for TPMs without P-256.
    Rsa2048,
    /// A plain storage root key.
    SrkP256,
    /// A plain storage root key, as Azure's SDKs use it.
    SrkRsa2048,
}

impl ParentKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::P256, Self::Rsa2048, Self::SrkP256, Self::SrkRsa2048];
    /// The storage root keys, in the order in which a device tries them.
    pub const SRKS: [Self; 2] = [Self::SrkP256, Self::SrkRsa2048];

    /// Whether it is a plain storage root key.
    pub const fn is_plain_srk(self) -> bool {
        matches!(self, Self::SrkP256 | Self::SrkRsa2048)
    }

    /// The import parent whose key is of the same kind.
    pub const fn import_parent(self) -> Self {
        match self {
            Self::P256 | Self::SrkP256 => Self::P256,
            Self::Rsa2048 | Self::SrkRsa2048 => Self::Rsa2048,
        }
    }

    /// Its name on command lines and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::Rsa2048 => "rsa-2048",
            Self::SrkP256 => "srk-p-256",
            Self::SrkRsa2048 => "srk-rsa-2048",
        }
    }
}

/// Which EK to show to a CA. For the CA, another EK is another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkChoice {
    /// The first EK with a certificate.
    Auto,
    /// The EK of this kind.
    Kind(EkKind),
}

impl FromStr for EkChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == AUTO { Ok(Self::Auto) } else { text.parse().map(Self::Kind) }
    }
}

impl fmt::Display for EkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad(AUTO),
            Self::Kind(kind) => kind.fmt(f),
        }
    }
}

const AUTO: &str = "auto";

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn kinds_read_back_from_their_names() {
        for kind in EkKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(kind.to_string().parse(), Ok(EkChoice::Kind(kind)));
        }
        for kind in IkKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for kind in ParentKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("auto".parse(), Ok(EkChoice::Auto));
        assert!(
            "rsa-1024".parse::<EkKind>().unwrap_err().contains("p-256, p-384, rsa-2048, rsa-3072")
        );
    }
}
