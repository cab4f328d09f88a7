//! Pure: presence batches as bytes.
//!
//! ```text
//! version (1) | flags (1): 1 whole table, 2 last part | horizon ms (varint) | number of entries (varint) | entries
//! entry: device hash (8) | age ms * 4 + 2 if something was said + 1 if there is a boot (varint)
//!        | boot (8), sequence (varint) if there is one | said (8) if something was
//! ```
//!
//! Numbers of fixed length are little-endian, a varint is LEB128 without bytes that say nothing.

use crate::presence::table::Heard;
use thiserror::Error;

/// Most entries in a batch; what is more goes into further ones.
pub const MAX_ENTRIES: usize = 20_000;
/// Largest batch, bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

const VERSION: u8 = 1;
const WHOLE: u8 = 1;
const LAST: u8 = 2;

/// One batch, or one part of a longer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// All that the sender knows, and not only what it heard itself since the last batch.
    pub whole: bool,
    /// No more parts follow: what the sender heard up to the horizon is all there.
    pub last: bool,
    /// The sender says everything that it heard up to this moment of the *receiver's* clock, milliseconds.
    pub horizon_ms: u64,
    /// Devices, with the ages that they have when the batch is sent.
    pub heard: Vec<Heard>,
}

/// Why bytes are no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadBatch {
    /// Another version, or unknown flags.
    #[error("version or flags of the batch are unknown")]
    Version,
    /// It ends too early.
    #[error("the batch breaks off")]
    Short,
    /// It goes on after its end.
    #[error("the batch goes on after its last entry")]
    Long,
    /// A number is too large.
    #[error("a number in the batch is too large")]
    Number,
    /// More than [`MAX_ENTRIES`].
    #[error("the batch has more than {MAX_ENTRIES} entries")]
    Entries,
}

/// The parts that a batch is sent in, at least one, each with whether it is the last.
pub fn parts(heard: &[Heard]) -> impl Iterator<Item = (&[Heard], bool)> {
    let last = heard.len().div_ceil(MAX_ENTRIES).saturating_sub(1);
    (0..=last).map(move |part| {
        let rest = &heard[part * MAX_ENTRIES..];
        (&rest[..rest.len().min(MAX_ENTRIES)], part == last)
    })
}

/// Writes a part. `older_ms` is added to every age: the time since they were taken.
#[must_use]
pub fn encode(whole: bool, last: bool, horizon_ms: u64, heard: &[Heard], older_ms: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24 + heard.len() * 32);
    bytes.extend([VERSION, (u8::from(whole) * WHOLE) | (u8::from(last) * LAST)]);
    number(&mut bytes, horizon_ms);
    number(&mut bytes, heard.len() as u64);
    for Heard { device, age_ms, boot, sequence, said } in heard {
        bytes.extend(device.to_le_bytes());
        let age = u64::from(*age_ms).saturating_add(older_ms).min(u64::from(u32::MAX));
        number(&mut bytes, (age << 2) | (u64::from(*said != 0) << 1) | u64::from(*boot != 0));
        if *boot != 0 {
            bytes.extend(boot.to_le_bytes());
            number(&mut bytes, *sequence);
        }
        if *said != 0 {
            bytes.extend(said.to_le_bytes());
        }
    }
    bytes
}

/// Reads a part.
///
/// # Errors
/// When the bytes are none.
pub fn decode(bytes: &[u8]) -> Result<Batch, BadBatch> {
    let mut rest = bytes;
    let [version, flags] = take::<2>(&mut rest)?;
    if version != VERSION || flags & !(WHOLE | LAST) != 0 {
        return Err(BadBatch::Version);
    }
    let horizon_ms = read(&mut rest)?;
    let count = usize::try_from(read(&mut rest)?).map_err(|_| BadBatch::Entries)?;
    if count > MAX_ENTRIES {
        return Err(BadBatch::Entries);
    }
    let mut heard = Vec::with_capacity(count);
    for _ in 0..count {
        let device = u64::from_le_bytes(take(&mut rest)?);
        let age = read(&mut rest)?;
        let age_ms = u32::try_from(age >> 2).map_err(|_| BadBatch::Number)?;
        let (boot, sequence) =
            if age & 1 != 0 { (u64::from_le_bytes(take(&mut rest)?), read(&mut rest)?) } else { (0, 0) };
        let said = if age & 2 != 0 { u64::from_le_bytes(take(&mut rest)?) } else { 0 };
        heard.push(Heard { device, age_ms, boot, sequence, said });
    }
    if !rest.is_empty() {
        return Err(BadBatch::Long);
    }
    Ok(Batch { whole: flags & WHOLE != 0, last: flags & LAST != 0, horizon_ms, heard })
}

fn number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read(rest: &mut &[u8]) -> Result<u64, BadBatch> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take::<1>(rest)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
            return Err(BadBatch::Number);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BadBatch::Number)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadBatch> {
    let (taken, left) = rest.split_first_chunk::<N>().ok_or(BadBatch::Short)?;
    *rest = left;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heard() -> impl Strategy<Value = Heard> {
        let maybe = || prop_oneof![Just(0), any::<u64>()];
        (any::<u64>(), any::<u32>(), maybe(), any::<u64>(), maybe()).prop_map(
            |(device, age_ms, boot, sequence, said)| Heard {
                device,
                age_ms,
                boot,
                sequence: sequence * u64::from(boot != 0),
                said,
            },
        )
    }

    #[test]
    fn the_form_is_fixed() {
        let heard = [
            Heard { device: 1, age_ms: 32, boot: 0, sequence: 0, said: 0 },
            Heard { device: 2, age_ms: 0, boot: 3, sequence: 300, said: 4 },
        ];
        let bytes = encode(true, true, 5, &heard, 0);
        let expected: [&[u8]; 7] = [
            &[1, 3, 5, 2],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[0x80, 1],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[3],
            &[3, 0, 0, 0, 0, 0, 0, 0, 0xac, 2],
            &[4, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn what_is_no_batch() {
        assert_eq!(decode(&[]), Err(BadBatch::Short));
        assert_eq!(decode(&[2, 0, 0, 0]), Err(BadBatch::Version));
        assert_eq!(decode(&[1, 4, 0, 0]), Err(BadBatch::Version));
        assert_eq!(decode(&[1, 0, 0, 0, 0]), Err(BadBatch::Long));
        assert_eq!(decode(&[1, 0, 0, 1]), Err(BadBatch::Short));
        assert_eq!(decode(&[1, 0, 0, 0xff, 0xff, 0xff, 0x7f]), Err(BadBatch::Entries));
        let endless: Vec<u8> = [1, 0].into_iter().chain([0xff; 11]).collect();
        assert_eq!(decode(&endless), Err(BadBatch::Number));
        assert_eq!(decode(&[1, 0, 0x80, 0, 0]), Err(BadBatch::Number));
    }

    #[test]
    fn the_longest_one_fits() {
        let heard =
            vec![
                Heard { device: u64::MAX, age_ms: u32::MAX, boot: u64::MAX, sequence: u64::MAX, said: u64::MAX };
                MAX_ENTRIES
            ];
        assert!(encode(true, true, u64::MAX, &heard, u64::MAX).len() <= MAX_BYTES);
    }

    #[test]
    fn long_ones_go_in_parts() {
        let heard = vec![Heard { device: 1, age_ms: 1, boot: 0, sequence: 0, said: 0 }; 2 * MAX_ENTRIES];
        let lengths = |count: usize| parts(&heard[..count]).map(|(part, last)| (part.len(), last)).collect::<Vec<_>>();
        assert_eq!(lengths(0), [(0, true)]);
        assert_eq!(lengths(1), [(1, true)]);
        assert_eq!(lengths(MAX_ENTRIES), [(MAX_ENTRIES, true)]);
        assert_eq!(lengths(MAX_ENTRIES + 1), [(MAX_ENTRIES, false), (1, true)]);
        assert_eq!(lengths(2 * MAX_ENTRIES), [(MAX_ENTRIES, false), (MAX_ENTRIES, true)]);
    }

    proptest! {
        #[test]
        fn there_and_back(whole: bool, last: bool, horizon_ms: u64, heard in prop::collection::vec(heard(), 0..40), older_ms in 0..9_u64, cut in 0..400_usize) {
            let bytes = encode(whole, last, horizon_ms, &heard, older_ms);
            let older = u32::try_from(older_ms).unwrap();
            let aged = heard.iter().map(|heard| Heard { age_ms: heard.age_ms.saturating_add(older), ..*heard }).collect();
            prop_assert_eq!(decode(&bytes), Ok(Batch { whole, last, horizon_ms, heard: aged }));
            if cut < bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut]), Err(BadBatch::Short));
            }
        }

        /// Whatever comes, it is refused or means exactly what it says.
        #[test]
        fn anything(bytes in prop::collection::vec(any::<u8>(), 0..60), valid: bool) {
            let bytes = if valid { [&[1, 3][..], &bytes].concat() } else { bytes };
            if let Ok(batch) = decode(&bytes) {
                let again = encode(batch.whole, batch.last, batch.horizon_ms, &batch.heard, 0);
                prop_assert_eq!(decode(&again), Ok(batch));
            }
        }
    }
}
