//! Pure: whether a file can be a program on this device, by how it begins.
//!
//! The kernel says so only when the old version has been stopped already; so it is asked here first.

/// What a program is or needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// It is run as it is.
    Binary,
    /// It is run by the program at this path.
    Script(String),
}

/// Why a file is no program here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsuited {
    /// Neither of the formats of Linux.
    #[error("is neither a program nor a script that begins with #!")]
    NoProgram,
    /// For another processor.
    #[error("is built for another kind of processor")]
    Machine,
}

/// How much of a file must be known, bytes: the kernel looks at no more.
pub const HEAD: usize = 256;

/// There when the kernel was told of further formats of programs (binfmt_misc).
pub const OTHER_FORMATS: &str = "/proc/sys/fs/binfmt_misc/status";

const ELF: &[u8] = b"\x7fELF";
/// Machines that run programs of one another: x86, ARM, PowerPC, SPARC, each with 32 and 64 bits.
const RELATED: [&[u16]; 4] = [&[3, 62], &[40, 183], &[20, 21], &[2, 18, 43]];

/// What a file is that begins with `head`, on a device where a program that begins with `own` runs.
///
/// # Errors
/// Why the kernel would not run it. It may all the same where it was told to (binfmt_misc).
pub fn kind(head: &[u8], own: &[u8]) -> Result<Kind, Unsuited> {
    let head = head.get(..HEAD).unwrap_or(head);
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let words = String::from_utf8_lossy(line);
        let first = words.split([' ', '\t', '\0']).find(|word| !word.is_empty());
        return first.map(|path| Kind::Script(path.to_owned())).ok_or(Unsuited::NoProgram);
    }
    match (machine(head), machine(own)) {
        (None, _) => Err(Unsuited::NoProgram),
        (Some(theirs), Some(ours)) if theirs != ours && !related(theirs, ours) => Err(Unsuited::Machine),
        _ => Ok(Kind::Binary),
    }
}

/// Order of the bytes and number of the machine of an ELF file.
fn machine(head: &[u8]) -> Option<(u8, u16)> {
    let order = *head.strip_prefix(ELF)?.get(1)?;
    let number = [*head.get(18)?, *head.get(19)?];
    match order {
        1 => Some((order, u16::from_le_bytes(number))),
        2 => Some((order, u16::from_be_bytes(number))),
        _ => None,
    }
}

fn related((order, one): (u8, u16), (other, two): (u8, u16)) -> bool {
    order == other && RELATED.iter().any(|family| family.contains(&one) && family.contains(&two))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn elf(order: u8, machine: u16) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(ELF);
        head[5] = order;
        let number = if order == 1 { machine.to_le_bytes() } else { machine.to_be_bytes() };
        head[18..20].copy_from_slice(&number);
        head
    }

    #[test]
    fn binaries_of_this_machine_and_scripts_run() {
        let own = elf(1, 62);
        assert_eq!(kind(&own, &own), Ok(Kind::Binary));
        assert_eq!(kind(&elf(1, 3), &own), Ok(Kind::Binary));
        assert_eq!(kind(&elf(1, 183), &own), Err(Unsuited::Machine));
        assert_eq!(kind(&elf(2, 8), &elf(1, 8)), Err(Unsuited::Machine));
        assert_eq!(kind(&elf(1, 62), b"unknown"), Ok(Kind::Binary));
        for line in ["#!/bin/sh", "#! /bin/sh -e\nx", "#!\t/bin/sh\0", "#!/bin/sh\n"] {
            assert_eq!(kind(line.as_bytes(), &own), Ok(Kind::Script("/bin/sh".to_owned())));
        }
        for bad in ["", "#!", "#! \n/bin/sh", "echo hello", "PK\u{3}\u{4}", "\u{7f}EL"] {
            assert_eq!(kind(bad.as_bytes(), &own), Err(Unsuited::NoProgram), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_file_is_too_odd(head in proptest::collection::vec(any::<u8>(), 0..300), own in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = kind(&head, &own);
        }
    }
}
