//! The pieces of DER (X.690) that keys and signatures are made of.

/// id-ecPublicKey (RFC 5480 §2.1.1), with tag and length.
pub(crate) const OID_EC_PUBLIC_KEY: &[u8] = &[0x06, 7, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
/// secp256r1 (RFC 5480 §2.1.1.1), with tag and length.
pub(crate) const OID_P256: &[u8] = &[0x06, 8, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
/// secp384r1 (RFC 5480 §2.1.1.1), with tag and length.
pub(crate) const OID_P384: &[u8] = &[0x06, 5, 0x2B, 0x81, 0x04, 0x00, 0x22];
/// rsaEncryption (RFC 3279 §2.3.1), with tag and length.
pub(crate) const OID_RSA_ENCRYPTION: &[u8] =
    &[0x06, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
/// The type of a TPM key that its parent loads (draft-bottomley-tpm2-keys, section 3.1), with tag
/// and length.
pub(crate) const OID_LOADABLE_KEY: &[u8] = &[0x06, 6, 0x67, 0x81, 0x05, 0x0A, 0x01, 0x03];
/// NULL.
pub(crate) const NULL: &[u8] = &[0x05, 0];

/// TRUE, after the explicit tag 0 (X.690 §8.2, §8.14).
pub(crate) const TAGGED_TRUE: &[u8] = &[0xA0, 3, 0x01, 1, 0xFF];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// A SEQUENCE of elements that are DER already.
pub(crate) fn sequence(elements: &[&[u8]]) -> Vec<u8> {
    element(SEQUENCE, &elements.concat())
}

/// A BIT STRING of whole bytes.
pub(crate) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    element(BIT_STRING, &[&[0], bytes].concat())
}

/// An OCTET STRING.
pub(crate) fn octet_string(bytes: &[u8]) -> Vec<u8> {
    element(OCTET_STRING, bytes)
}

/// A non-negative INTEGER from big-endian bytes of any length, in its shortest form. A zero byte
/// comes first if the first bit would be taken for a sign (X.690 §8.3).
pub(crate) fn unsigned_integer(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
    let magnitude = &bytes[first..];
    if magnitude.first().is_none_or(|&byte| byte >= 0x80) {
        element(INTEGER, &[&[0], magnitude].concat())
    } else {
        element(INTEGER, magnitude)
    }
}

/// Splits `bytes` after the SEQUENCE at its start, which includes its tag and length; `None` if
/// there is no whole SEQUENCE.
pub(crate) fn split_sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    if tag != SEQUENCE {
        return None;
    }
    let length_bytes = if length < 0x80 { 0 } else { usize::from(length & 0x7F) };
    let content = match length_bytes {
        0 => usize::from(length),
        1..=3 => {
            rest.get(..length_bytes)?.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte))
        }
        _ => return None,
    };
    bytes.split_at_checked(2 + length_bytes + content)
}

/// Whether a SEQUENCE begins here and ends beyond `bytes`.
pub(crate) fn is_cut_off_sequence(bytes: &[u8]) -> bool {
    let length_bytes = match bytes.get(1) {
        None => return bytes == [SEQUENCE],
        Some(0x81..=0x83) => usize::from(bytes[1] & 0x7F),
        Some(0..=0x7F) => 0,
        Some(_) => return false,
    };
    bytes[0] == SEQUENCE && (bytes.len() < 2 + length_bytes || split_sequence(bytes).is_none())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let first = length.iter().position(|&byte| byte != 0).unwrap_or(length.len() - 1);
    let length = &length[first..];
    let mut element = vec![tag];
    if content.len() >= 0x80 {
        // Unwrap safety: a usize has at most eight bytes.
        element.push(0x80 | u8::try_from(length.len()).unwrap());
    }
    element.extend(length);
    element.extend(content);
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_is_stripped_and_padded() {
        assert_eq!(unsigned_integer(&[0, 0, 0x12, 0x34]), [2, 2, 0x12, 0x34]);
        assert_eq!(unsigned_integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned_integer(&[0xFF, 1]), [2, 3, 0, 0xFF, 1]);
        assert_eq!(unsigned_integer(&[0, 0]), [2, 1, 0]);
        assert_eq!(unsigned_integer(&[]), [2, 1, 0]);
    }

    #[test]
    fn a_length_takes_the_shortest_form() {
        assert_eq!(element(4, &[7; 0x7F])[..3], [4, 0x7F, 7]);
        assert_eq!(element(4, &[7; 0x80])[..4], [4, 0x81, 0x80, 7]);
        assert_eq!(element(4, &[7; 0x100])[..5], [4, 0x82, 1, 0, 7]);
        assert_eq!(element(4, &[]), [4, 0]);
    }

    #[test]
    fn a_sequence_is_cut_at_its_own_length() {
        for length in [0, 5, 0x7F, 0x80, 0x1234] {
            let sequence = element(SEQUENCE, &vec![1; length]);
            let padded = [&sequence[..], &[0xFF; 9]].concat();
            assert_eq!(split_sequence(&padded), Some((&sequence[..], &[0xFF; 9][..])));
            assert_eq!(
                split_sequence(&sequence[..sequence.len() - 1]),
                None,
                "{length} bytes, cut short"
            );
        }
    }

    #[test]
    fn a_sequence_that_ends_elsewhere_is_told_from_padding() {
        let sequence = element(SEQUENCE, &[1; 0x1234]);
        for length in 1..sequence.len() {
            assert!(is_cut_off_sequence(&sequence[..length]), "{length}");
        }
        for bytes in
            [&[][..], &sequence, &[0; 9], &[0xFF; 9], &[0x30, 0x80, 0, 0], &[0x30, 0xFF, 0xFF]]
        {
            assert!(!is_cut_off_sequence(bytes), "{:x?}", &bytes[..bytes.len().min(4)]);
        }
    }

    #[test]
    fn what_is_no_sequence_is_not_cut() {
        for bytes in [&[][..], &[0x30], &[0xFF; 20], &[0x30, 0x84, 1, 0, 0, 0], &[0x30, 0x80, 0, 0]]
        {
            let cut = split_sequence(bytes);
            assert!(cut.is_none() || bytes == [0x30, 0x80, 0, 0], "{bytes:x?}");
        }
    }
}
