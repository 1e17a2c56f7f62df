//! Distinguished names, compared as RFC 5280 §7.1 says: regardless of string type, case and white
//! space.

use std::fmt;

use assay_wire::printable;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Name};

use crate::oid;

/// A distinguished name.
///
/// Two names are equal as RFC 5280 §7.1 says: if they have the same number of relative names, in
/// the same order, each with the same attributes.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    raw: Vec<u8>,
    /// One for each relative name. Equal bytes mean equal names.
    prepared: Vec<Vec<u8>>,
}

impl Name {
    /// Reads a Name in DER; `None` if it is not a Name, or is longer than [`MAX_NAME`].
    pub(crate) fn read(raw: &[u8]) -> Option<Self> {
        match X509Name::from_der(raw) {
            Ok((&[], name)) => Self::of(&name),
            _ => None,
        }
    }

    /// The same for a name that is parsed already; `None` if it is longer than [`MAX_NAME`].
    pub(crate) fn of(name: &X509Name<'_>) -> Option<Self> {
        if name.as_raw().len() > MAX_NAME {
            return None;
        }
        let relative_names = name.iter_rdn().map(|relative_name| {
            let mut attributes: Vec<_> = relative_name.iter().map(prepare).collect();
            attributes.sort();
            attributes.concat()
        });
        Some(Self { raw: name.as_raw().to_vec(), prepared: relative_names.collect() })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.prepared.is_empty()
    }

    /// Whether it is in the subtree below `base` (RFC 5280 §4.2.1.10): whether it begins with the
    /// relative names of `base`.
    pub(crate) fn is_within(&self, base: &Self) -> bool {
        self.prepared.starts_with(&base.prepared)
    }

    /// Whether the name can be compared without Unicode normalisation, which this crate does not
    /// do. Names that differ only in normalisation count as different. That may make a path fail,
    /// but it must not let a name escape from an exclusion.
    pub(crate) fn is_ascii(&self) -> bool {
        let Ok((_, name)) = X509Name::from_der(&self.raw) else { return false };
        name.iter_attributes().all(|attribute| text(attribute).is_some_and(|text| text.is_ascii()))
    }

    /// Whether it has an attribute of this type.
    pub(crate) fn has(&self, attribute_type: &[u8]) -> bool {
        attribute_of(&self.raw, attribute_type).is_some()
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.prepared == other.prepared
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.prepared.cmp(&other.prepared)
    }
}

impl fmt::Display for Name {
    /// For people: as RFC 4514 writes it, but in the order of the certificate. Escapes what could
    /// steer a terminal or forge a line, and writes at most [`MAX_SHOWN`] characters, because
    /// strangers choose names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok((_, name)) = X509Name::from_der(&self.raw) else { return f.write_str("(no name)") };
        let attributes = name.iter_attributes().map(|attribute| {
            let value =
                text(attribute).unwrap_or_else(|| format!("#{}", crate::hex(attribute.as_slice())));
            format!("{}={value}", short_name(attribute.attr_type().as_bytes()))
        });
        let shown = attributes.collect::<Vec<_>>().join(", ");
        if shown.is_empty() {
            return f.write_str("(empty name)");
        }
        f.write_str(&printable(&shown, MAX_SHOWN))
    }
}

/// The text of the first attribute of this type in a Name in DER.
pub(crate) fn attribute_of(name: &[u8], attribute_type: &[u8]) -> Option<String> {
    let (_, name) = X509Name::from_der(name).ok()?;
    name.iter_attributes()
        .find(|attribute| attribute.attr_type().as_bytes() == attribute_type)
        .and_then(text)
}

/// An attribute in a form whose bytes are equal if the attributes match: type, then value, each
/// after its length.
fn prepare(attribute: &AttributeTypeAndValue<'_>) -> Vec<u8> {
    let value = match text(attribute) {
        Some(text) => [&[IS_TEXT], prepare_string(&text).as_bytes()].concat(),
        // Of a value of another type, only the encoding is known.
        None => {
            [&[IS_OTHER, attribute.attr_value().tag().0.to_be_bytes()[3]], attribute.as_slice()]
                .concat()
        }
    };
    let mut prepared = Vec::new();
    for part in [attribute.attr_type().as_bytes(), &value] {
        prepared.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        prepared.extend_from_slice(part);
    }
    prepared
}

/// RFC 4518 §2, as far as possible without tables: drops characters without a meaning, folds case,
/// makes white space one space, and trims both ends. Does not normalise (NFKC).
fn prepare_string(text: &str) -> String {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        let folded = text.to_ascii_lowercase();
        return folded.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    }
    // RFC 4518 §2.2 maps these to nothing.
    let is_nothing = |c: char| {
        matches!(c, '\u{AD}' | '\u{34F}' | '\u{180B}'..='\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2060}'..='\u{2063}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}')
            || c.is_control() && !c.is_whitespace()
    };
    let folded: String =
        text.chars().filter(|c| !is_nothing(*c)).flat_map(char::to_lowercase).collect();
    folded.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text of a value of any string type. `None` for another type, or for bytes that the type
/// cannot have.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let value = attribute.as_slice();
    match attribute.attr_value().tag().0 {
        UTF8_STRING | NUMERIC_STRING | PRINTABLE_STRING | IA5_STRING | VISIBLE_STRING => {
            std::str::from_utf8(value).ok().map(str::to_owned)
        }
        // In practice, such strings are in Latin-1.
        TELETEX_STRING => Some(value.iter().copied().map(char::from).collect()),
        BMP_STRING => {
            let (units, rest) = value.as_chunks::<2>();
            let text = char::decode_utf16(units.iter().map(|unit| u16::from_be_bytes(*unit)));
            text.collect::<Result<_, _>>().ok().filter(|_| rest.is_empty())
        }
        UNIVERSAL_STRING => {
            let (units, rest) = value.as_chunks::<4>();
            let text = units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit)));
            text.collect::<Option<_>>().filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

/// The common name of an attribute type (RFC 4514 §3), or else its object identifier.
fn short_name(attribute_type: &[u8]) -> String {
    match attribute_type {
        [0x55, 4, 3] => "CN".into(),
        [0x55, 4, 5] => "serialNumber".into(),
        [0x55, 4, 6] => "C".into(),
        [0x55, 4, 7] => "L".into(),
        [0x55, 4, 8] => "ST".into(),
        [0x55, 4, 10] => "O".into(),
        [0x55, 4, 11] => "OU".into(),
        oid::EMAIL_ADDRESS => "emailAddress".into(),
        other => oid::dotted(other),
    }
}

/// Universal tags of string types (X.680 §8.4).
const UTF8_STRING: u32 = 12;
const NUMERIC_STRING: u32 = 18;
const PRINTABLE_STRING: u32 = 19;
const TELETEX_STRING: u32 = 20;
const IA5_STRING: u32 = 22;
const VISIBLE_STRING: u32 = 26;
const UNIVERSAL_STRING: u32 = 28;
const BMP_STRING: u32 = 30;
/// Vendors' names have up to about 300 bytes, and RFC 5280, appendix A.1, limits most attributes to
/// 64 characters.
const MAX_NAME: usize = 1024;
/// The first byte of a prepared value.
const IS_TEXT: u8 = 1;
const IS_OTHER: u8 = 0;
/// Vendors' names have up to about 120 characters.
pub(crate) const MAX_SHOWN: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::der::{element, tag};

    /// A name with these attributes: the last byte of an id-at type, a string tag, content.
    fn name(attributes: &[(u8, u8, &[u8])]) -> Name {
        let relative_names: Vec<_> =
            attributes.iter().map(|attribute| element(SET, &[&one(*attribute)])).collect();
        of_relative_names(&relative_names)
    }

    fn of_relative_names(relative_names: &[Vec<u8>]) -> Name {
        let parts: Vec<_> = relative_names.iter().map(Vec::as_slice).collect();
        Name::read(&element(tag::SEQUENCE, &parts)).unwrap()
    }

    fn one((attribute_type, string, content): (u8, u8, &[u8])) -> Vec<u8> {
        let attribute_type = element(tag::OID, &[&[0x55, 4, attribute_type]]);
        element(tag::SEQUENCE, &[&attribute_type, &element(string, &[content])])
    }

    const SET: u8 = 0x31;
    const CN: u8 = 3;

    #[test]
    fn string_type_case_and_white_space_make_no_difference() {
        let reference = name(&[(CN, 0x13, b"Acme TPM CA")]);
        let utf16: Vec<u8> = "Acme TPM CA".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let utf32: Vec<u8> =
            "Acme TPM CA".chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
        let same: [(u8, &[u8]); 7] = [
            (0x0C, b"Acme TPM CA"),
            (0x0C, b"ACME tpm ca"),
            (0x13, b"  Acme   TPM\tCA "),
            (0x14, b"Acme TPM CA"),
            (0x16, b"acme TPM CA"),
            (0x1E, &utf16),
            (0x1C, &utf32),
        ];
        for (string, content) in same {
            assert_eq!(name(&[(CN, string, content)]), reference, "{string:#x} {content:?}");
        }
        for other in ["AcmeTPM CA", "Acme TPM CA 2", "Acme TPM C", ""] {
            assert_ne!(name(&[(CN, 0x13, other.as_bytes())]), reference, "{other}");
        }
        assert_ne!(name(&[(10, 0x13, b"Acme TPM CA")]), reference, "of another type");
        assert_ne!(name(&[(CN, 0x04, b"Acme TPM CA")]), reference, "no string");
    }

    #[test]
    fn order_counts_between_relative_names_and_not_within_one() {
        let (cn, ou) = (one((CN, 0x0C, b"a")), one((11, 0x0C, b"b")));
        let both = |parts: &[&[u8]]| of_relative_names(&[element(SET, parts)]);
        assert_eq!(both(&[&cn, &ou]), both(&[&ou, &cn]));
        let [first, second] = [&cn, &ou].map(|part| element(SET, &[part]));
        assert_ne!(
            of_relative_names(&[first.clone(), second.clone()]),
            of_relative_names(&[second.clone(), first.clone()])
        );
        assert_ne!(of_relative_names(&[first, second]), both(&[&cn, &ou]));
    }

    #[test]
    fn subtrees_hold_what_begins_with_their_base() {
        let base = name(&[(6, 0x13, b"DE"), (10, 0x13, b"Acme")]);
        assert!(name(&[(6, 0x0C, b"de"), (10, 0x0C, b"ACME"), (CN, 0x0C, b"x")]).is_within(&base));
        assert!(base.is_within(&base) && base.is_within(&name(&[])));
        assert!(!name(&[(6, 0x13, b"DE")]).is_within(&base));
        assert!(!name(&[(6, 0x13, b"DE"), (10, 0x13, b"Acme2")]).is_within(&base));
    }

    #[test]
    fn text_of_strangers_is_escaped_and_cut() {
        let hostile = name(&[(CN, 0x0C, "a\u{1b}[2J\nforged: \u{202e}x".as_bytes())]);
        assert_eq!(hostile.to_string(), "CN=a\\u{1b}[2J\\nforged: \\u{202e}x");
        let long = name(&[(CN, 0x0C, "x".repeat(1000).as_bytes())]).to_string();
        assert_eq!(long.chars().count(), MAX_SHOWN + 1);
    }
}
