//! X.509 certificates of EKs and of their issuers, as far as decisions on trust need them (RFC
//! 5280).

mod certificate;
pub(crate) use certificate::{AltName, Certificate, EkUsage, parse_certificate};

mod name;
pub(crate) use name::{Name, attribute_of};

mod path;
pub(crate) use path::{Broken, Purpose, Rule, check_path};

mod policies;

mod signature;
pub(crate) use signature::Unsupported;
