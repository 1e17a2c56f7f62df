//! Just enough DER (X.690) to write what no library writes for us.

/// Universal and context-specific tags, one byte each.
pub(crate) mod tag {
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const NULL: u8 = 0x05;
    pub(crate) const OID: u8 = 0x06;
    pub(crate) const UTF8_STRING: u8 = 0x0C;
    pub(crate) const SEQUENCE: u8 = 0x30;
    /// `[0] EXPLICIT`, and `[0] IMPLICIT` of a constructed type.
    pub(crate) const CONTEXT_0: u8 = 0xA0;
    /// `[6] IMPLICIT` of a string: a URI among GeneralNames (RFC 5280 §4.2.1.6).
    pub(crate) const URI: u8 = 0x86;
}

/// One element: tag, length, and the concatenated `parts` as its content.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(MAX_HEADER + length);
    out.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        Ok(long) => out.extend([0x81, long]),
        Err(_) => {
            let long = u16::try_from(length).expect("a certificate's parts are below 64 KiB");
            out.push(0x82);
            out.extend(long.to_be_bytes());
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// A non-negative INTEGER from big-endian bytes.
pub(crate) fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let significant = strip_leading_zeros(bytes);
    match significant.first() {
        Some(first) if *first < 0x80 => element(tag::INTEGER, &[significant]),
        _ => element(tag::INTEGER, &[&[0], significant]),
    }
}

/// The significant bytes of a big-endian number.
pub(crate) fn strip_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

/// A tag and the longest length.
const MAX_HEADER: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_their_shortest_form() {
        assert_eq!(element(4, &[&[0; 127]])[..2], [4, 127]);
        assert_eq!(element(4, &[&[0; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(element(4, &[&[0; 255]])[..3], [4, 0x81, 255]);
        assert_eq!(element(4, &[&[0; 256]])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn integers_are_minimal_and_never_negative() {
        assert_eq!(unsigned(&[0, 0, 0x7F]), [2, 1, 0x7F]);
        assert_eq!(unsigned(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[0, 0]), [2, 1, 0]);
    }
}
