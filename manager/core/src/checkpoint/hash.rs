//! SHA-256 of files, at the speed of the CPU's SHA instructions.

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};

use crate::units::Bytes;

/// Read at a time. Fits the second-level cache, so that the hash reads what the copy just wrote.
const CHUNK: usize = 256 << 10;
/// A progress report after this many bytes.
const REPORT: u64 = 8 << 20;

/// How far hashing has come, over all files that are hashed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Hashed so far.
    pub done: Bytes,
    /// To hash in all.
    pub total: Bytes,
}

/// Called with the progress of hashing or copying; its result says whether to go on. After
/// [`ControlFlow::Break`] the work ends with an error, and leaves nothing.
pub type Watch<'a> = &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync);

/// A [`Watch`] that never cancels.
pub fn unwatched(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A [`Watch`] that ends the work when the flag is set: the requester has gone.
pub fn until(cancelled: &AtomicBool) -> impl Fn(Progress) -> ControlFlow<()> + Sync + '_ {
    |_| match cancelled.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Tells a watch how far work is; an error when it is not to go on.
pub(crate) fn go_on(watch: Watch<'_>, done: Bytes, total: Bytes) -> io::Result<()> {
    match watch(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(interrupted()),
    }
}

/// What work answers that a [`Watch`] has ended.
pub(crate) fn interrupted() -> io::Error {
    io::Error::other(InterruptError)
}

/// Whether an error says that a [`Watch`] has ended the work. (`ErrorKind::Interrupted` is that of a system call that
/// is to be made again.)
#[must_use]
pub fn is_interrupted(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner
        .and_then(|inner| inner.downcast_ref::<InterruptError>())
        .is_some()
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct InterruptError;

/// The SHA-256 of a whole file as 64 lower-case hexadecimal digits. Neither uses nor moves the
/// file's position. Calls `watch` at least once, at the end.
///
/// # Errors
/// What reading the file answers.
pub fn sha256_file(file: &File, watch: Watch<'_>) -> io::Result<String> {
    let tally = Tally::new(Bytes(file.metadata()?.len()), watch);
    sha256_tallied(file, &tally)
}

/// Progress over several files, hashed by several threads.
pub(super) struct Tally<'a> {
    done: AtomicU64,
    total: Bytes,
    watch: Watch<'a>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(total: Bytes, watch: Watch<'a>) -> Self {
        Self {
            done: AtomicU64::new(0),
            total,
            watch,
        }
    }

    fn add(&self, bytes: u64) -> io::Result<()> {
        let done = Bytes(self.done.fetch_add(bytes, Ordering::Relaxed) + bytes);
        let total = self.total;
        match (self.watch)(Progress { done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(interrupted()),
        }
    }
}

pub(super) fn sha256_tallied(file: &File, tally: &Tally<'_>) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let (mut offset, mut reported) = (0_u64, 0_u64);
    loop {
        let read = match file.read_at(&mut buffer, offset) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        offset += read as u64;
        if offset - reported >= REPORT {
            tally.add(offset - reported)?;
            reported = offset;
        }
    }
    tally.add(offset - reported)?;
    Ok(hex(&hasher.finalize()))
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    digest
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}
