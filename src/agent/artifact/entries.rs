//! Pure: the headers of a tar archive, one block after the other: names that are too long for a header, PAX records,
//! and which kinds of entries are taken.

use super::paths::printable;
use tar::{EntryType, Header};

/// Bytes of a block, which everything in an archive is a multiple of.
pub const BLOCK_BYTES: usize = 512;
/// Longest record about an entry, bytes: a few paths and times. It is held in memory.
pub const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What follows a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// So many bytes about the entry to come; they are given to [`Reader::record`].
    Record(u64),
    /// So many bytes that mean nothing here.
    Skip(u64),
    /// An entry.
    Entry(Entry),
    /// The archive is over.
    End,
}

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits as the archive has them.
    pub mode: u32,
    /// When it was changed last, seconds since 1970.
    pub modified: u64,
    /// Bytes that follow.
    pub size: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file; its bytes follow.
    File,
    /// A folder.
    Folder,
    /// Another name of a file that came before.
    HardLink(Vec<u8>),
    /// A link.
    SymbolicLink(Vec<u8>),
}

/// The archive cannot be read, or holds what none may hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// Damaged, or no tar.
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    /// A device, a pipe or the like.
    #[error("the archive holds {0}, which is {1}")]
    Kind(String, &'static str),
}

/// Reads one header after the other.
#[derive(Debug, Default)]
pub struct Reader {
    expects: Option<EntryType>,
    about: About,
}

/// What records say of the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct About {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

// === impl Reader ===

impl Reader {
    /// Takes a block that is a header.
    ///
    /// # Errors
    /// It is none, or of a kind that is not taken.
    pub fn header(&mut self, block: &[u8; BLOCK_BYTES]) -> Result<Step, EntryFault> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Step::End);
        }
        if !is_header(block) {
            return Err(EntryFault::Damaged("a header's checksum is wrong"));
        }
        let header = Header::from_byte_slice(block);
        let kind = header.entry_type();
        let size = header.entry_size().map_err(|_| EntryFault::Damaged("a size is no number"))?;
        if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() {
            if size > MAX_RECORD_BYTES {
                return Err(EntryFault::Damaged("a record about an entry is too long"));
            }
            self.expects = Some(kind);
            return Ok(Step::Record(size));
        }
        if kind.is_pax_global_extensions() {
            // Comments, as git writes them.
            return Ok(Step::Skip(size));
        }
        let about = std::mem::take(&mut self.about);
        let path = about.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            || about.link.clone().or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        let refuse = |what| Err(EntryFault::Kind(printable(&path), what));
        if about.sparse || kind.is_gnu_sparse() {
            return refuse("a sparse file, which this agent does not unpack");
        }
        let size = about.size.unwrap_or(size);
        let (kind, size) = match kind {
            // Old archives write a folder as a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => (Kind::Folder, size),
            EntryType::Regular | EntryType::Continuous => (Kind::File, size),
            EntryType::Directory => (Kind::Folder, size),
            EntryType::Link => (Kind::HardLink(link()), size),
            EntryType::Symlink => (Kind::SymbolicLink(link()), size),
            EntryType::Char | EntryType::Block => return refuse("a device"),
            EntryType::Fifo => return refuse("a named pipe"),
            _ => return refuse("of a kind that this agent does not know"),
        };
        let mode = header.mode().map_err(|_| EntryFault::Damaged("a mode is no number"))?;
        Ok(Step::Entry(Entry { path, kind, mode, modified: header.mtime().unwrap_or(0), size }))
    }

    /// Takes the bytes of a record.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn record(&mut self, bytes: &[u8]) -> Result<(), EntryFault> {
        let name = || bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match self.expects.take() {
            Some(EntryType::GNULongName) => self.about.path = Some(name()),
            Some(EntryType::GNULongLink) => self.about.link = Some(name()),
            Some(EntryType::XHeader) => {
                pax(bytes, &mut self.about).ok_or(EntryFault::Damaged("a PAX record cannot be read"))?
            }
            _ => {}
        }
        Ok(())
    }
}

/// Records of `LENGTH KEY=VALUE\n`, where LENGTH counts all of it.
fn pax(mut bytes: &[u8], about: &mut About) -> Option<()> {
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => about.path = Some(value.to_vec()),
            b"linkpath" => about.link = Some(value.to_vec()),
            b"size" => about.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            key if key.starts_with(b"GNU.sparse.") => about.sparse = true,
            _ => {}
        }
        bytes = &bytes[length..];
    }
    Some(())
}

/// Whether a block is the header of an entry: its checksum is right.
#[must_use]
pub fn is_header(block: &[u8; BLOCK_BYTES]) -> bool {
    // The checksum's own field counts as blanks.
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    block.iter().any(|byte| *byte != 0) && Header::from_byte_slice(block).cksum().is_ok_and(|said| said == sum)
}

/// Bytes between the end of something of this size and the next block.
#[must_use]
pub fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// All entries of an archive in memory.
    fn entries(archive: &[u8]) -> Result<Vec<Entry>, EntryFault> {
        let mut reader = Reader::default();
        let mut entries = Vec::new();
        let mut at = 0;
        while let Some(block) = archive.get(at..at + BLOCK_BYTES) {
            at += BLOCK_BYTES;
            let size = match reader.header(block.try_into().unwrap())? {
                Step::End => break,
                Step::Skip(size) => size,
                Step::Record(size) => {
                    let end = at + usize::try_from(size).unwrap();
                    reader.record(archive.get(at..end).ok_or(EntryFault::Damaged("short"))?)?;
                    size
                }
                Step::Entry(entry) => {
                    let size = entry.size;
                    entries.push(entry);
                    size
                }
            };
            at = at.saturating_add(usize::try_from(size.saturating_add(padding(size))).unwrap_or(usize::MAX));
        }
        Ok(entries)
    }

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header
    }

    #[test]
    fn long_names_and_pax_records_are_read() {
        let long = "d/".repeat(100) + "file";
        let mut builder = tar::Builder::new(Vec::new());
        let mut file = header(EntryType::Regular, 3);
        builder.append_data(&mut file, &long, &b"abc"[..]).unwrap();
        let mut link = header(EntryType::Symlink, 0);
        builder.append_link(&mut link, "l", &long).unwrap();
        builder.append_pax_extensions([("path", "püth".as_bytes()), ("comment", b"x")]).unwrap();
        builder.append_data(&mut header(EntryType::Regular, 1), "short", &b"x"[..]).unwrap();
        let found = entries(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(found[0].path, long.as_bytes());
        assert_eq!((found[0].size, &found[0].kind), (3, &Kind::File));
        assert_eq!(found[1].kind, Kind::SymbolicLink(long.into_bytes()));
        assert_eq!(found[2].path, "püth".as_bytes());
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn what_no_archive_may_hold_is_refused() {
        for (kind, says) in [
            (EntryType::Char, "dev/x, which is a device"),
            (EntryType::Block, "which is a device"),
            (EntryType::Fifo, "a named pipe"),
            (EntryType::GNUSparse, "a sparse file"),
            (EntryType::new(b'V'), "does not know"),
        ] {
            let mut header = header(kind, 0);
            header.set_path("dev/x").unwrap();
            header.set_cksum();
            let error = entries(header.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("GNU.sparse.major", &b"1"[..])]).unwrap();
        builder.append_data(&mut header(EntryType::Regular, 0), "s", &b""[..]).unwrap();
        assert!(entries(&builder.into_inner().unwrap()).unwrap_err().to_string().contains("sparse"));
    }

    #[test]
    fn damage_is_noticed() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header(EntryType::Regular, 0), "file", &b""[..]).unwrap();
        let mut archive = builder.into_inner().unwrap();
        archive[0] ^= 1;
        assert_eq!(entries(&archive), Err(EntryFault::Damaged("a header's checksum is wrong")));
        // A record of 4 GiB is not read into memory.
        let mut record = header(EntryType::GNULongName, 4 << 30);
        record.set_cksum();
        assert!(entries(record.as_bytes()).unwrap_err().to_string().contains("too long"));
        for bad in ["", "5", "99 path=x\n", "8 pathx\n", "x path=1\n", "9 size=x\n"] {
            let mut about = About::default();
            assert_eq!(pax(bad.as_bytes(), &mut about).is_some(), bad.is_empty(), "{bad}");
        }
        assert_eq!((padding(0), padding(1), padding(512), padding(513), padding(u64::MAX)), (0, 511, 0, 511, 1));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(mut block in proptest::collection::vec(any::<u8>(), BLOCK_BYTES), record in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut header = Header::new_gnu();
            header.as_mut_bytes().copy_from_slice(&block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
            block.write_all(&[]).unwrap();
            let mut reader = Reader::default();
            if let Ok(Step::Record(_)) = reader.header(block.as_slice().try_into().unwrap()) {
                let _ = reader.record(&record);
            }
            let _ = pax(&record, &mut About::default());
        }
    }
}
