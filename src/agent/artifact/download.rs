//! Edge: bytes into a file, hashed on the way, gone on with where they broke off. Writing and hashing is done on the
//! thread for what blocks, a piece at a time, so that a slow disk never holds up the agent.

use super::FetchError;
use super::fault;
use super::flight::{PART, Work};
use super::http::{Http, Reply};
use super::resume::{Answer, Question, Validators, Verdict};
use ::http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that are gathered before they are written.
const PIECE_BYTES: usize = 256 << 10;

/// What is to be had.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// What the part is called while it is under way; one per artifact or layer.
    pub name: &'a str,
    /// What it is in a sentence.
    pub what: &'a str,
    /// SHA-256 in hexadecimal digits.
    pub digest: Option<&'a str>,
    /// How many bytes it has to have.
    pub size: Option<u64>,
    /// How many it may have.
    pub most: u64,
}

/// Bytes that have come, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Where they are.
    pub path: PathBuf,
    /// SHA-256 in hexadecimal digits.
    pub digest: String,
}

/// What is here of a download, and the hash of it.
struct Part {
    file: File,
    hash: Sha256,
    bytes: u64,
}

/// Fetches what is wanted, the rest of it if a part is here. `ask` sends the request, with authorization and all.
///
/// Cut off at any point, the next call goes on from what was written.
///
/// # Errors
/// It cannot be had, or is not what it should be.
pub async fn download(
    http: &mut Http,
    work: &Work,
    wanted: &Wanted<'_>,
    mut ask: impl AsyncFnMut(&mut Http, HeaderMap) -> Result<Reply, FetchError>,
) -> Result<Blob, FetchError> {
    let path = work.folder().join(format!("{}.{PART}", wanted.name));
    let notes = work.folder().join(format!("{}.json", wanted.name));
    let opened = path.clone();
    let hashes_much = fs::metadata(&path).is_ok_and(|data| data.len() > PIECE_BYTES as u64);
    let turn = if hashes_much { Some(work.turn().await) } else { None };
    let mut part = work.blocking(move |cancelled| Part::open(&opened, &cancelled)).await?;
    drop(turn);
    loop {
        let have = part.bytes;
        let is_whole = wanted.size == Some(have) || wanted.digest.is_some_and(|digest| digest == part.digest());
        if is_whole && (have > 0 || wanted.size == Some(0)) {
            match part.check(wanted) {
                Ok(digest) => return Ok(Blob { path, digest }),
                // What came in earlier runs may be spoilt; only what came in one piece is judged.
                Err(_) => part = part.clear(work, &notes).await?,
            }
        }
        let validators = if part.bytes > 0 { read_notes(&notes) } else { Validators::default() };
        let question = validators.question(part.bytes, wanted.digest.is_some());
        if question.from == 0 && part.bytes > 0 {
            part = part.clear(work, &notes).await?;
        }
        let mut reply = ask(http, range(&question)).await?;
        if !matches!(reply.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE) {
            return Err(reply.refusal(wanted.what));
        }
        let length = reply.header(header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let answer = Answer { status: reply.status.as_u16(), range: reply.header(header::CONTENT_RANGE), length };
        let comes = match question.judge(answer, wanted.size) {
            Verdict::Continue(comes) => comes,
            Verdict::Afresh(comes) => {
                part = part.clear(work, &notes).await?;
                comes
            }
            Verdict::AskAgain => {
                part = part.clear(work, &notes).await?;
                continue;
            }
            Verdict::Nonsense => return Err(reply.refusal(wanted.what)),
        };
        let resumed = part.bytes > 0;
        wanted.allows(part.bytes.saturating_add(comes.unwrap_or(0)), comes.is_some())?;
        work.room_for(comes.unwrap_or(0))?;
        if !resumed {
            let validators = Validators::new(reply.header(header::ETAG), reply.header(header::LAST_MODIFIED));
            write_notes(&notes, &validators)?;
        }
        part = receive(part, work, &mut reply, wanted).await?;
        http.keep(reply);
        match part.check(wanted) {
            Ok(digest) => return Ok(Blob { path, digest }),
            // The part that was here was of something else: once more from the beginning, in one piece.
            Err(_) if resumed => part = part.clear(work, &notes).await?,
            Err(error) => return Err(error),
        }
    }
}

/// The body, written behind the part.
async fn receive(mut part: Part, work: &Work, reply: &mut Reply, wanted: &Wanted<'_>) -> Result<Part, FetchError> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    loop {
        let next = reply.next().await;
        let (end, failed) = match next {
            Ok(Some(bytes)) => {
                wanted.allows(part.bytes + (piece.len() + bytes.len()) as u64, false)?;
                piece.extend_from_slice(&bytes);
                (false, None)
            }
            Ok(None) => (true, None),
            Err(error) => (true, Some(error)),
        };
        if end || piece.len() + 64 * 1024 > PIECE_BYTES {
            // Of many a body nobody knows how long it is before it has come.
            if !piece.is_empty() {
                work.room_for(piece.len() as u64)?;
            }
            (part, piece) = work.blocking(move |_| part.append(piece)).await?;
        }
        match (end, failed) {
            // What has come is kept for the next try.
            (_, Some(error)) => return Err(error),
            (true, None) => return Ok(part),
            (false, None) => {}
        }
    }
}

fn range(question: &Question) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if question.from > 0 {
        headers.extend(HeaderValue::try_from(format!("bytes={}-", question.from)).ok().map(|v| (header::RANGE, v)));
        let if_range = question.if_range.as_deref().and_then(|value| HeaderValue::try_from(value).ok());
        headers.extend(if_range.map(|value| (header::IF_RANGE, value)));
    }
    headers
}

fn read_notes(path: &Path) -> Validators {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn write_notes(path: &Path, validators: &Validators) -> Result<(), FetchError> {
    let text = serde_json::to_vec(validators).unwrap_or_default();
    fs::write(path, text).map_err(|error| FetchError::disk("write what is known of a download", &error))
}

// === impl Wanted ===

impl Wanted<'_> {
    /// Whether so many bytes may be; `all`: it is known that there are no more.
    fn allows(&self, bytes: u64, all: bool) -> Result<(), FetchError> {
        if let Some(size) = self.size
            && (bytes > size || (all && bytes != size))
        {
            let message = format!("{} has another length than the {size} bytes that its manifest says", self.what);
            return Err(FetchError::verify(fault::CHECKSUM_MISMATCH, message));
        }
        if bytes > self.most {
            return Err(FetchError::download(
                fault::TOO_LARGE,
                format!(
                    "{} is larger than the {} bytes that --max-artifact-bytes (APOLLO_AGENT_MAX_ARTIFACT_BYTES) allows",
                    self.what, self.most
                ),
            ));
        }
        Ok(())
    }
}

// === impl Part ===

impl Part {
    /// What is here, hashed; nothing if there is nothing.
    fn open(path: &Path, cancelled: &dyn Fn() -> bool) -> Result<Self, FetchError> {
        let failed = |error: io::Error| FetchError::disk("read the part of a download that is here", &error);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).to_owned();
        let mut file = options.open(path).map_err(|error| FetchError::disk("create a file for a download", &error))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; PIECE_BYTES];
        let mut bytes = 0;
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            if read == 0 || cancelled() {
                break;
            }
            hash.update(&buffer[..read]);
            bytes += read as u64;
        }
        Ok(Self { file, hash, bytes })
    }

    /// Gives the buffer back, empty.
    fn append(mut self, mut piece: Vec<u8>) -> Result<(Self, Vec<u8>), FetchError> {
        self.hash.update(&piece);
        self.file.write_all(&piece).map_err(|error| FetchError::disk("write a download", &error))?;
        self.bytes += piece.len() as u64;
        piece.clear();
        Ok((self, piece))
    }

    async fn clear(self, work: &Work, notes: &Path) -> Result<Self, FetchError> {
        let notes = notes.to_owned();
        work.blocking(move |_| {
            let mut file = self.file;
            let _ = fs::remove_file(notes);
            file.set_len(0)
                .and_then(|()| file.seek(SeekFrom::Start(0)))
                .map_err(|e| FetchError::disk("empty a download", &e))?;
            Ok(Self { file, hash: Sha256::new(), bytes: 0 })
        })
        .await
    }

    fn digest(&self) -> String {
        hex::encode(self.hash.clone().finalize())
    }

    /// The digest, if it is the right one of the right number of bytes.
    fn check(&self, wanted: &Wanted<'_>) -> Result<String, FetchError> {
        wanted.allows(self.bytes, true)?;
        let digest = self.digest();
        match wanted.digest {
            Some(expected) if expected != digest => Err(FetchError::verify(
                fault::CHECKSUM_MISMATCH,
                format!("the SHA-256 of {} is {digest}, not {expected} as it should be", wanted.what),
            )),
            _ => Ok(digest),
        }
    }
}
