//! What a datagram holds. Both ends are this program, so there is one version and no options.

/// Length of every datagram.
pub(crate) const LENGTH: usize = 32;

const MAGIC: [u8; 4] = *b"FLPB";

/// A probe or the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Answers carry the probe's fields back.
    pub(crate) answer: bool,
    /// The prober's number for the peer.
    pub(crate) peer: u32,
    /// Counts up for each peer.
    pub(crate) sequence: u64,
    /// When the probe was sent, by the prober's monotonic clock, in nanoseconds.
    pub(crate) sent: u64,
}

impl Packet {
    pub(crate) fn encode(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let mut rest = bytes.as_mut_slice();
        let fields: [&[u8]; 5] = [
            &MAGIC,
            &u32::from(self.answer).to_le_bytes(),
            &self.peer.to_le_bytes(),
            &self.sequence.to_le_bytes(),
            &self.sent.to_le_bytes(),
        ];
        for field in fields {
            let (head, tail) = rest.split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        }
        bytes
    }

    /// `None` if the bytes are not from a probe.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (answer, rest) = rest.split_first_chunk::<4>()?;
        let (peer, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (sent, _) = rest.split_first_chunk::<8>()?;
        (*magic == MAGIC).then(|| Self {
            answer: u32::from_le_bytes(*answer) == 1,
            peer: u32::from_le_bytes(*peer),
            sequence: u64::from_le_bytes(*sequence),
            sent: u64::from_le_bytes(*sent),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_survives_the_way_and_anything_else_is_refused() {
        let packet = Packet {
            answer: true,
            peer: 7,
            sequence: 1 << 40,
            sent: u64::MAX,
        };
        assert_eq!(Packet::decode(&packet.encode()), Some(packet));
        assert_eq!(Packet::decode(b""), None);
        assert_eq!(Packet::decode(b"FLPB"), None);
        assert_eq!(Packet::decode(&[0; LENGTH]), None);
    }
}
