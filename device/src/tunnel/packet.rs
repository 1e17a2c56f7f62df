//! What MQTT packets are made of (MQTT 3.1.1 §2, MQTT 5 §2).

/// The version of MQTT that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 3.1.1
    V3,
    V5,
}

/// How many bytes the first packet has that begins here; `None` if that is not known yet.
pub(super) fn length_of_packet(bytes: &[u8]) -> Option<usize> {
    let mut rest = Reader(bytes.get(1..)?);
    let length = rest.number()?;
    Some(bytes.len() - rest.0.len() + length)
}

pub(super) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    push_number(&mut packet, body.len());
    packet.extend_from_slice(body);
    packet
}

/// Length and bytes. All fields that are written here fit: they were read as fields, or are shorter
/// than a token.
pub(super) fn field(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes(), bytes].concat()
}

/// A Variable Byte Integer (MQTT 5 §1.5.5).
pub(super) fn push_number(to: &mut Vec<u8>, mut number: usize) {
    loop {
        let more = if number > 0x7F { 0x80 } else { 0 };
        to.push((number & 0x7F) as u8 | more);
        number >>= 7;
        if number == 0 {
            break;
        }
    }
}

/// What is left of a packet.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn field(&mut self) -> Option<&'a [u8]> {
        let length = self.take(2)?;
        self.take(u16::from_be_bytes([length[0], length[1]]).into())
    }

    pub(super) fn number(&mut self) -> Option<usize> {
        let mut number = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.take(1)?[0];
            number |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn properties(&mut self) -> Option<()> {
        let length = self.number()?;
        self.take(length).map(drop)
    }

    /// The bytes that `read` passes over.
    pub(super) fn spanning(
        &mut self,
        read: impl FnOnce(&mut Self) -> Option<()>,
    ) -> Option<Vec<u8>> {
        let before = self.0;
        read(self)?;
        Some(before[..before.len() - self.0.len()].to_vec())
    }
}
