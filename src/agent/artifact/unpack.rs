//! Edge: archives into a folder. Blocks; what is taken is decided in the pure modules.

use super::FetchError;
use super::budget::{Budget, BudgetFault};
use super::entries::{BLOCK_BYTES, Entry, EntryFault, Kind, Reader, Step, is_header, padding};
use super::fault;
use super::paths::{PathFault, Whiteout, below, confine, file_mode, folder_mode, whiteout};
use super::tree::{Tree, finish};
use flate2::read::MultiGzDecoder;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;

/// How much is read at a time, packed and unpacked.
const BUFFER_BYTES: usize = 64 << 10;
/// Bytes after which free space is looked at again.
const SPACE_EVERY: u64 = 4 << 20;

/// What bytes are, judged by how they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A tar.
    Tar,
    /// A tar, compressed with gzip.
    TarGzip,
    /// Compressed with zstd, whatever it is.
    Zstd,
    /// Anything else.
    Other,
}

/// How an archive is unpacked.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Files keep setuid and setgid.
    pub allow_setuid: bool,
    /// It is a layer of an image: names with `.wh.` remove what lower layers hold.
    pub layer: bool,
    /// Whether nobody wants it any more.
    pub cancelled: &'a dyn Fn() -> bool,
    /// Whether the disk has space left for so many bytes.
    pub room: &'a dyn Fn(u64) -> Result<(), FetchError>,
}

/// Reads an archive's bytes, and counts them and those that they come from.
struct Stream<'a> {
    reader: Box<dyn Read>,
    packed: Rc<Cell<u64>>,
    budget: &'a mut Budget,
    rules: Rules<'a>,
    unlooked: u64,
}

/// Counts what is read.
struct Counted(File, Rc<Cell<u64>>);

/// Looks at how a file begins.
///
/// # Errors
/// It cannot be read.
pub fn look(path: &Path) -> Result<Content, FetchError> {
    let failed = |error: io::Error| FetchError::disk("read what was downloaded", &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut start = Vec::new();
    Read::by_ref(&mut file).take(BLOCK_BYTES as u64).read_to_end(&mut start).map_err(failed)?;
    let tar = |block: &[u8]| block.try_into().is_ok_and(is_header);
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Content::Zstd);
    }
    if !start.starts_with(&[0x1f, 0x8b]) {
        return Ok(if tar(&start) { Content::Tar } else { Content::Other });
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut inner = Vec::new();
    let read = MultiGzDecoder::new(BufReader::new(file)).take(BLOCK_BYTES as u64).read_to_end(&mut inner);
    Ok(if read.is_ok() && tar(&inner) { Content::TarGzip } else { Content::Other })
}

/// Looks at how a layer begins that is said to be an archive; one of no files is nothing but zeros.
///
/// # Errors
/// It cannot be read.
pub fn look_at_layer(path: &Path) -> Result<Content, FetchError> {
    let failed = |error: io::Error| FetchError::disk("read what was downloaded", &error);
    let mut start = Vec::new();
    File::open(path).map_err(failed)?.take(BLOCK_BYTES as u64).read_to_end(&mut start).map_err(failed)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Content::TarGzip);
    }
    if start.iter().all(|byte| *byte == 0) { Ok(Content::Tar) } else { look(path) }
}

/// Removes from lower layers what the layer at `path` says. Done before any of its own files come, so that it never
/// takes these.
///
/// # Errors
/// The layer is damaged, or holds what none may hold.
pub fn remove_hidden(
    path: &Path,
    content: Content,
    tree: &mut Tree,
    budget: &mut Budget,
    rules: Rules<'_>,
) -> Result<(), FetchError> {
    // Read twice, counted once.
    let mut scratch = *budget;
    scratch.next_archive();
    let mut stream = Stream::open(path, content, &mut scratch, rules)?;
    stream.each(|stream, entry| {
        if let Some(hidden) = whiteout(&below(&entry.path)?) {
            match hidden {
                Whiteout::Remove(path) => tree.remove(&path)?,
                Whiteout::Empty(path) => tree.empty(&path)?,
                Whiteout::Meta => {}
            }
        }
        stream.skip(entry.size)
    })
}

/// Unpacks the archive at `path`.
///
/// # Errors
/// It is damaged, too large, or holds what none may hold; the disk refuses.
pub fn unpack(
    path: &Path,
    content: Content,
    tree: &mut Tree,
    budget: &mut Budget,
    rules: Rules<'_>,
) -> Result<(), FetchError> {
    budget.next_archive();
    let mut stream = Stream::open(path, content, budget, rules)?;
    stream.each(|stream, entry| {
        stream.budget.entry(entry.size)?;
        let path = below(&entry.path)?;
        if rules.layer && whiteout(&path).is_some() {
            return stream.skip(entry.size);
        }
        match &entry.kind {
            Kind::Folder => tree.folder(&path, folder_mode(entry.mode))?,
            Kind::SymbolicLink(target) => tree.symlink(&path, &confine(&path, target)?)?,
            Kind::HardLink(of) => tree.hard_link(&path, &below(of)?)?,
            Kind::File => {
                let mut file = tree.file(&path)?;
                stream.copy(entry.size, &mut file)?;
                return finish(&file, file_mode(entry.mode, rules.allow_setuid), entry.modified);
            }
        }
        stream.skip(entry.size)
    })
}

// === impl Stream ===

impl<'a> Stream<'a> {
    fn open(path: &Path, content: Content, budget: &'a mut Budget, rules: Rules<'a>) -> Result<Self, FetchError> {
        let file = File::open(path).map_err(|error| FetchError::disk("read what was downloaded", &error))?;
        let packed = Rc::new(Cell::new(0));
        let buffered = BufReader::with_capacity(BUFFER_BYTES, Counted(file, Rc::clone(&packed)));
        let reader: Box<dyn Read> = match content {
            Content::TarGzip => Box::new(MultiGzDecoder::new(buffered)),
            Content::Tar => Box::new(buffered),
            Content::Zstd => {
                return Err(FetchError::download(
                    fault::UNSUPPORTED_MEDIA_TYPE,
                    "a layer is compressed with zstd, which this agent cannot unpack: build the image with gzip",
                ));
            }
            Content::Other => {
                return Err(FetchError::verify(fault::BAD_ARCHIVE, "a layer is no tar archive, with gzip or without"));
            }
        };
        Ok(Self { reader, packed, budget, rules, unlooked: 0 })
    }

    /// Every entry in turn; `take` reads all of its content.
    fn each(&mut self, mut take: impl FnMut(&mut Self, &Entry) -> Result<(), FetchError>) -> Result<(), FetchError> {
        let mut reader = Reader::default();
        let mut block = [0; BLOCK_BYTES];
        while self.block(&mut block)? {
            match reader.header(&block)? {
                Step::End => break,
                Step::Skip(size) => {
                    self.skip(size)?;
                    self.skip(padding(size))?;
                }
                Step::Record(size) => {
                    // Bounded by what `Reader` lets through.
                    let mut record = Vec::new();
                    self.copy(size, &mut record)?;
                    reader.record(&record)?;
                    self.skip(padding(size))?;
                }
                Step::Entry(entry) => {
                    take(self, &entry)?;
                    self.skip(padding(entry.size))?;
                }
            }
        }
        Ok(())
    }

    /// The next block; `false` at the end of the file, which need not be marked.
    fn block(&mut self, block: &mut [u8; BLOCK_BYTES]) -> Result<bool, FetchError> {
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(EntryFault::Damaged("it breaks off").into()),
                read => filled += read,
            }
        }
        Ok(true)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), FetchError> {
        self.copy(bytes, &mut io::sink())
    }

    fn copy(&mut self, bytes: u64, to: &mut dyn Write) -> Result<(), FetchError> {
        let mut buffer = [0; 16 << 10];
        let mut left = bytes;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.read(&mut buffer[..most])?;
            if read == 0 {
                return Err(EntryFault::Damaged("it breaks off").into());
            }
            to.write_all(&buffer[..read]).map_err(|error| FetchError::disk("write a file of the artifact", &error))?;
            left -= read as u64;
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FetchError> {
        let read = loop {
            match self.reader.read(buffer) {
                Ok(read) => break read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error().is_some() => {
                    return Err(FetchError::disk("read what was downloaded", &error));
                }
                Err(_) => return Err(EntryFault::Damaged("its compression is broken").into()),
            }
        };
        self.budget.read(read as u64, self.packed.get())?;
        self.unlooked += read as u64;
        if self.unlooked >= SPACE_EVERY {
            self.unlooked = 0;
            (self.rules.room)(SPACE_EVERY)?;
            if (self.rules.cancelled)() {
                return Err(FetchError::download(fault::INTERRUPTED, "nobody wants the artifact any more"));
            }
        }
        Ok(read)
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.set(self.1.get() + read as u64);
        Ok(read)
    }
}

// === impl FetchError ===

impl From<PathFault> for FetchError {
    fn from(error: PathFault) -> Self {
        Self::verify(fault::BAD_ARCHIVE, error.to_string())
    }
}

impl From<EntryFault> for FetchError {
    fn from(error: EntryFault) -> Self {
        Self::verify(fault::BAD_ARCHIVE, error.to_string())
    }
}

impl From<BudgetFault> for FetchError {
    fn from(error: BudgetFault) -> Self {
        Self::verify(fault::TOO_LARGE, error.to_string())
    }
}

#[cfg(test)]
mod tests;
