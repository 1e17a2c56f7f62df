//! Just enough DER (X.690) to write what no library writes for us, and to read strictly what
//! libraries read leniently.

/// Universal and context-specific tags, one byte each.
pub(crate) mod tag {
    pub(crate) const BOOLEAN: u8 = 0x01;
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const NULL: u8 = 0x05;
    pub(crate) const OID: u8 = 0x06;
    pub(crate) const UTF8_STRING: u8 = 0x0C;
    pub(crate) const SEQUENCE: u8 = 0x30;
    /// `[0] EXPLICIT`, and `[0] IMPLICIT` of a constructed type.
    pub(crate) const CONTEXT_0: u8 = 0xA0;
    /// `[1] EXPLICIT`, and `[1] IMPLICIT` of a constructed type.
    pub(crate) const CONTEXT_1: u8 = 0xA1;
    /// `[0] IMPLICIT` of a primitive type.
    pub(crate) const PRIMITIVE_0: u8 = 0x80;
    /// `[1] IMPLICIT` of a primitive type.
    pub(crate) const PRIMITIVE_1: u8 = 0x81;
    /// `[4] EXPLICIT`: a directoryName among GeneralNames (RFC 5280 §4.2.1.6).
    pub(crate) const DIRECTORY_NAME: u8 = 0xA4;
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

/// Reads elements one after the other. Lengths must be definite and in their shortest form (X.690
/// §10.1). Tags have one byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The content, if `bytes` are exactly one element and it has this tag.
    pub(crate) fn only(tag: u8, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let mut reader = Self(bytes);
        reader.take(tag).filter(|_| reader.is_empty())
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Whether the next element has this tag.
    pub(crate) fn is_at(self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The content of the next element, if it has this tag.
    pub(crate) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.is_at(tag) { self.next().map(|element| element.content) } else { None }
    }

    /// The next element.
    pub(crate) fn next(&mut self) -> Option<Element<'a>> {
        let [tag, first, rest @ ..] = self.0 else { return None };
        let (length, header) = match usize::from(*first) {
            short if short < 0x80 => (short, 2),
            form => {
                let digits = rest
                    .get(..form - 0x80)
                    .filter(|digits| (1..=MAX_LENGTH_DIGITS).contains(&digits.len()))?;
                let length =
                    digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
                // The shortest form has no leading zero, and encodes no length that fits into the
                // short form.
                if digits[0] == 0 || length < 0x80 {
                    return None;
                }
                (length, 2 + digits.len())
            }
        };
        if tag & 0x1F == 0x1F {
            return None;
        }
        let (whole, rest) = self.0.split_at_checked(header + length)?;
        self.0 = rest;
        Some(Element { tag: *tag, whole, content: &whole[header..] })
    }
}

/// One element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    /// With tag and length.
    pub(crate) whole: &'a [u8],
    pub(crate) content: &'a [u8],
}

/// Enough for 16 MiB, which a vendor's bundle may have; a certificate has a few KiB.
const MAX_LENGTH_DIGITS: usize = 3;
/// The longest header that [`element`] writes: a tag and a length.
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
    fn what_is_written_reads_back_and_longer_lengths_are_refused() {
        for length in [0, 1, 127, 128, 255, 256, 65535] {
            let content = vec![7; length];
            let whole = element(tag::OCTET_STRING, &[&content]);
            assert_eq!(Reader::only(tag::OCTET_STRING, &whole), Some(&content[..]));
            assert_eq!(Reader::only(tag::SEQUENCE, &whole), None);
            assert_eq!(Reader::only(tag::OCTET_STRING, &whole[..whole.len() - 1]), None);
            assert_eq!(Reader::only(tag::OCTET_STRING, &[&whole[..], &[0]].concat()), None);
        }
        for lax in
            [&[4, 0x81, 1, 7][..], &[4, 0x82, 0, 1, 7], &[4, 0x80, 7, 0, 0], &[0x1F, 4, 1, 7], &[4]]
        {
            assert!(Reader::new(lax).next().is_none(), "{lax:?}");
        }
    }

    #[test]
    fn integers_are_minimal_and_never_negative() {
        assert_eq!(unsigned(&[0, 0, 0x7F]), [2, 1, 0x7F]);
        assert_eq!(unsigned(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[0, 0]), [2, 1, 0]);
    }
}
