//! Verdicts over a checkpoint's files, one for all guests of a nursery.
//!
//! A backup changes a file's attributes, and some set its times. Then the content decides, and one of
//! the guests reads it for all. Its verdict stands in a memory file that all guests inherit, and that
//! nobody touches as long as nothing has changed.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::SigSet,
    },
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::nursery::STOP;
use crate::checkpoint::{FileStamp, sha256_file, unwatched};

/// How long another guest that reads the file may take before one looks for itself: it may have been
/// stopped from outside.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it is done.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// A change within the same tick of the file's clock does not show in its times. Longer than a tick
/// of any kernel.
const TICK: Duration = Duration::from_millis(20);
/// Looks at a file that changes all the time.
const MOST_LOOKS: usize = 3;

/// Verdicts over the files, one record for each.
#[derive(Debug)]
pub(super) struct Verdicts {
    file: File,
}

/// What was found in a file that had these times.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Verdict {
    mtime_ns: i128,
    ctime_ns: i128,
    found: u64,
    padding: u64,
}

const WHOLE: u64 = 1;
const OTHER: u64 = 2;

impl Verdicts {
    /// None yet.
    pub(super) fn new() -> io::Result<Self> {
        let file = memfd_create(c"brood-verdicts", MFdFlags::MFD_CLOEXEC)?;
        Ok(Self { file: file.into() })
    }

    /// Whether the content of `file`, the one of this place, is what was sealed, though it is not
    /// what it was by its stamp. Returns its stamp now.
    pub(super) fn of(
        &self,
        place: usize,
        file: &File,
        sha256: &str,
    ) -> io::Result<Option<FileStamp>> {
        let now = FileStamp::of(file)?;
        if let Some(whole) = self.known(place, &now)? {
            return Ok(whole.then_some(now));
        }
        // Whoever is stopped in the middle of it would keep all others waiting.
        let stop = SigSet::from_iter([STOP]);
        let _ = stop.thread_block();
        let verdict = self.take(place, file, sha256);
        let _ = stop.thread_unblock();
        verdict
    }

    fn take(&self, place: usize, file: &File, sha256: &str) -> io::Result<Option<FileStamp>> {
        let locked = self.lock()?;
        let verdict = self.look(place, file, sha256);
        if locked {
            let _ = self.set_lock(libc::F_UNLCK);
        }
        verdict
    }

    fn look(&self, place: usize, file: &File, sha256: &str) -> io::Result<Option<FileStamp>> {
        for _ in 0..MOST_LOOKS {
            let before = settled(file)?;
            if let Some(whole) = self.known(place, &before)? {
                return Ok(whole.then_some(before));
            }
            let whole = sha256_file(file, &unwatched)? == sha256;
            if FileStamp::of(file)? == before {
                self.note(place, &before, whole)?;
                return Ok(whole.then_some(before));
            }
        }
        Ok(None)
    }

    fn known(&self, place: usize, stamp: &FileStamp) -> io::Result<Option<bool>> {
        let mut verdict = Verdict::new_zeroed();
        let read = self.file.read_at(verdict.as_mut_bytes(), offset(place))?;
        let same = read == size_of::<Verdict>()
            && (verdict.mtime_ns, verdict.ctime_ns) == (stamp.mtime_ns, stamp.ctime_ns);
        Ok(match verdict.found {
            WHOLE if same => Some(true),
            OTHER if same => Some(false),
            _ => None,
        })
    }

    fn note(&self, place: usize, stamp: &FileStamp, whole: bool) -> io::Result<()> {
        let verdict = Verdict {
            mtime_ns: stamp.mtime_ns,
            ctime_ns: stamp.ctime_ns,
            found: if whole { WHOLE } else { OTHER },
            padding: 0,
        };
        self.file.write_all_at(verdict.as_bytes(), offset(place))
    }

    /// Waits for the lock, which is a process' own and goes with it. `false` when whoever has it takes
    /// too long.
    fn lock(&self) -> io::Result<bool> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match self.set_lock(libc::F_WRLCK) {
                Ok(()) => return Ok(true),
                Err(Errno::EACCES | Errno::EAGAIN | Errno::EINTR) => thread::sleep(POLL_INTERVAL),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(false)
    }

    fn set_lock(&self, kind: libc::c_int) -> nix::Result<()> {
        // SAFETY: all zeros is a valid flock, and means the whole file.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = i16::try_from(kind).expect("a small number");
        fcntl(self.file.as_fd(), FcntlArg::F_SETLK(&lock)).map(drop)
    }
}

fn offset(place: usize) -> u64 {
    (place * size_of::<Verdict>()) as u64
}

/// The stamp of a file, taken when its last change is so long ago that a later one shows.
fn settled(file: &File) -> io::Result<FileStamp> {
    let stamp = FileStamp::of(file)?;
    let changed = u64::try_from(stamp.ctime_ns).unwrap_or(0);
    let since =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_nanos(changed));
    // A clock that was set back says nothing.
    if since.is_ok_and(|since| since < TICK) {
        thread::sleep(TICK);
        return FileStamp::of(file);
    }
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn the_content_decides_and_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "what was sealed").unwrap();
        let file = File::open(&path).unwrap();
        let sha256 = sha256_file(&file, &unwatched).unwrap();
        let verdicts = Verdicts::new().unwrap();

        fs::hard_link(&path, dir.path().join("backup")).unwrap();
        let stamp = verdicts.of(1, &file, &sha256).unwrap().unwrap();
        // Known now: another digest is not even compared.
        assert_eq!(verdicts.of(1, &file, "").unwrap(), Some(stamp));
        // That says nothing of another file.
        assert_eq!(verdicts.of(0, &file, "").unwrap(), None);

        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all(b"WHAT")
            .unwrap();
        assert_eq!(verdicts.of(1, &file, &sha256).unwrap(), None);
        let other = sha256_file(&file, &unwatched).unwrap();
        assert_eq!(verdicts.of(1, &file, &other).unwrap(), None, "known");
        // The same content again, and another time.
        fs::write(&path, "what was sealed").unwrap();
        let times = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(times)
            .unwrap();
        let stamp = verdicts.of(1, &file, &sha256).unwrap().unwrap();
        assert_eq!(stamp.mtime_ns, 0);
    }
}
