//! What the index holds, byte by byte: one record for each chunk file.
//!
//! The key is the chunk's raw hash. The value is 13 bytes: a version, the size in four bytes and the
//! last use in eight, little end first. Another version reads as damage, and the index is rebuilt.

/// The version of the value.
const VERSION: u8 = 1;
const RECORD_SIZE: usize = 13;

/// What the index knows about a chunk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Bytes in the file.
    pub(super) size: u32,
    /// When it was last read or written, by the store's own count of uses.
    pub(super) last_use: u64,
}

impl Record {
    /// The value to store.
    pub(super) fn encode(self) -> [u8; RECORD_SIZE] {
        let mut bytes = [VERSION; RECORD_SIZE];
        bytes[1..5].copy_from_slice(&self.size.to_le_bytes());
        bytes[5..].copy_from_slice(&self.last_use.to_le_bytes());
        bytes
    }

    /// Reads what [`Record::encode`] wrote.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        let (size, last_use) = rest.split_first_chunk()?;
        Some(Self {
            size: u32::from_le_bytes(*size),
            last_use: u64::from_le_bytes(last_use.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// These bytes are deployed. If this fails, raise [`VERSION`]; do not edit the expectation.
    #[test]
    fn golden_record() {
        let record = Record { size: 0x0080_0001, last_use: 0x0102_0304 };
        assert_eq!(record.encode(), [1, 1, 0, 0x80, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn a_record_reads_back(size: u32, last_use: u64) {
            let record = Record { size, last_use };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn noise_is_refused_or_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..32)) {
            let read = Record::decode(&bytes);
            prop_assert_eq!(read.is_some(), bytes.len() == RECORD_SIZE && bytes[0] == VERSION);
        }
    }
}
