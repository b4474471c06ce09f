//! Verdicts on checkpoints' files: whether a file whose stamp has changed still has the sealed
//! content. All guests and nurseries of a state folder share them.
//!
//! A backup changes a file's attributes, and some backups set its times. Then the content decides,
//! and one guest reads it for all. Its verdict goes to the file `STATE/verdicts`, which all guests
//! inherit, and which no process touches as long as no file has changed. The process that reads a
//! file writes to its record how far it is, so that those who wait see when it has been stopped.

use std::{
    fs::File,
    io,
    mem::offset_of,
    ops::ControlFlow,
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
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

use crate::engine::kvm::signals::STOP;
use crate::{
    checkpoint::{FileStamp, Progress, sha256_file},
    owner_only,
};

/// The file, beside the run folder.
const FILE: &str = "verdicts";
/// Records in it. Two files that share one only forget each other's verdict.
const SLOTS: u64 = 1024;
/// How long another process that reads a file may come no further before it counts as stopped.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether it is done.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// A change within the same tick of the file's clock does not show in its times. Longer than a tick
/// of any kernel.
const TICK: Duration = Duration::from_millis(20);
/// Looks at a file that changes all the time.
const MOST_LOOKS: usize = 3;

/// Verdicts over files, one record for each.
#[derive(Debug)]
pub(super) struct Verdicts {
    file: File,
}

/// What a verdict of before, on a file with the same stamp, is worth.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Counts,
    IsOld,
}

/// The verdict on a file that had this stamp.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Verdict {
    mtime_ns: i128,
    ctime_ns: i128,
    device: u64,
    inode: u64,
    size: u64,
    found: u64,
    /// While a process reads the file: how much of it, in bytes.
    progress: u64,
    /// Checksum of the other fields, so that a half-written record is no verdict.
    check: u64,
    /// The digest that it was compared with, in hexadecimal.
    sealed: [u8; 64],
}

const WHOLE: u64 = 1;
const OTHER: u64 = 2;

impl Verdict {
    fn new(stamp: &FileStamp, sha256: &str, whole: bool) -> Self {
        let mut sealed = [0; 64];
        let length = sha256.len().min(sealed.len());
        sealed[..length].copy_from_slice(&sha256.as_bytes()[..length]);
        Self {
            mtime_ns: stamp.mtime_ns,
            ctime_ns: stamp.ctime_ns,
            device: stamp.device,
            inode: stamp.inode,
            size: stamp.size,
            found: if whole { WHOLE } else { OTHER },
            progress: 0,
            check: 0,
            sealed,
        }
    }

    /// Its bytes in one number (FNV-1a), as if `check` were 0.
    fn sum(&self) -> u64 {
        let without = Self { check: 0, ..*self };
        let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        without.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, add)
    }

    /// The verdict on the file with this stamp, compared with this digest.
    fn of(&self, stamp: &FileStamp, sha256: &str) -> Option<bool> {
        let wanted = Self::new(stamp, sha256, true);
        let is_about = (self.device, self.inode, self.size)
            == (wanted.device, wanted.inode, wanted.size)
            && (self.mtime_ns, self.ctime_ns) == (wanted.mtime_ns, wanted.ctime_ns)
            && self.sealed == wanted.sealed
            && self.check == self.sum();
        match self.found {
            WHOLE if is_about => Some(true),
            OTHER if is_about => Some(false),
            _ => None,
        }
    }
}

impl Verdicts {
    /// Those of the state folder that `run_dir` is in.
    pub(super) fn of_state(run_dir: &Path) -> io::Result<Self> {
        let mut options = owner_only::options();
        options.create(true).read(true).write(true);
        let file = options.open(run_dir.join("..").join(FILE))?;
        Ok(Self { file })
    }

    /// The same for a nursery that works in `run_dir`, with room for these files; its own where the
    /// state folder has none.
    pub(super) fn of_nursery(run_dir: &Path, files: &[File]) -> io::Result<Self> {
        let shared = Self::of_state(run_dir).and_then(|verdicts| {
            for file in files {
                verdicts.make_room(&FileStamp::of(file)?)?;
            }
            Ok(verdicts)
        });
        shared.or_else(|_| {
            let file = memfd_create(c"brood-verdicts", MFdFlags::MFD_CLOEXEC)?;
            Ok(Self { file: file.into() })
        })
    }

    /// Gives the record of a file its block, before the disk is full.
    fn make_room(&self, stamp: &FileStamp) -> io::Result<()> {
        let mut verdict = Verdict::new_zeroed();
        let at = slot(stamp);
        if self.file.read_at(verdict.as_mut_bytes(), at)? < size_of::<Verdict>() {
            let empty = Verdict::new_zeroed();
            self.file.write_all_at(empty.as_bytes(), at)?;
        }
        Ok(())
    }

    /// Whether `file` still has the sealed content though its stamp has changed. Returns its
    /// present stamp.
    pub(super) fn of(&self, file: &File, sha256: &str) -> io::Result<Option<FileStamp>> {
        let now = FileStamp::of(file)?;
        if let Some(whole) = self.read(&now)?.of(&now, sha256) {
            return Ok(whole.then_some(now));
        }
        // A process that is stopped in the middle of it would keep all others waiting.
        let stop = SigSet::from_iter([STOP]);
        let _ = stop.thread_block();
        let verdict = self.take(slot(&now), file, sha256, Known::Counts);
        let _ = stop.thread_unblock();
        verdict
    }

    /// The same from the content alone, whatever was found before: the stamp may have missed a
    /// change.
    pub(super) fn anew(&self, file: &File, sha256: &str) -> io::Result<Option<FileStamp>> {
        let at = slot(&FileStamp::of(file)?);
        self.take(at, file, sha256, Known::IsOld)
    }

    fn take(
        &self,
        at: u64,
        file: &File,
        sha256: &str,
        known: Known,
    ) -> io::Result<Option<FileStamp>> {
        let locked = self.lock(at)?;
        let verdict = self.look(file, sha256, known);
        if locked {
            let _ = self.set_lock(libc::F_UNLCK, at);
        }
        verdict
    }

    fn look(&self, file: &File, sha256: &str, known: Known) -> io::Result<Option<FileStamp>> {
        for _ in 0..MOST_LOOKS {
            let before = settled(file)?;
            if known == Known::Counts
                && let Some(whole) = self.read(&before)?.of(&before, sha256)
            {
                return Ok(whole.then_some(before));
            }
            let verdict = Verdict::new(&before, sha256, true);
            let at = slot(&before);
            let whole = sha256_file(file, &|read| self.note_progress(at, read))? == sha256;
            if FileStamp::of(file)? == before {
                let found = if whole { WHOLE } else { OTHER };
                self.note(Verdict { found, ..verdict }, &before);
                return Ok(whole.then_some(before));
            }
        }
        Ok(None)
    }

    /// Notes that a file with this stamp has the sealed content.
    pub(super) fn note_whole(&self, stamp: &FileStamp, sha256: &str) {
        self.note(Verdict::new(stamp, sha256, true), stamp);
    }

    fn read(&self, stamp: &FileStamp) -> io::Result<Verdict> {
        let mut verdict = Verdict::new_zeroed();
        let length = self.file.read_at(verdict.as_mut_bytes(), slot(stamp))?;
        let whole = length == size_of::<Verdict>();
        Ok(if whole {
            verdict
        } else {
            Verdict::new_zeroed()
        })
    }

    /// What cannot be noted is looked at again: the verdict is good all the same.
    fn note(&self, verdict: Verdict, stamp: &FileStamp) {
        let check = verdict.sum();
        let verdict = Verdict { check, ..verdict };
        let _ = self.file.write_all_at(verdict.as_bytes(), slot(stamp));
    }

    /// Notes how much of a file this process has read. Until the verdict the record holds none.
    fn note_progress(&self, at: u64, read: Progress) -> ControlFlow<()> {
        let at = at + offset_of!(Verdict, progress) as u64;
        let _ = self.file.write_all_at(&read.done.0.to_ne_bytes(), at);
        ControlFlow::Continue(())
    }

    fn progress(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let at = at + offset_of!(Verdict, progress) as u64;
        let _ = self.file.read_at(&mut bytes, at);
        u64::from_ne_bytes(bytes)
    }

    /// Waits for the lock of a record; the lock belongs to a process and ends with it. `false` when
    /// its holder comes no further.
    fn lock(&self, at: u64) -> io::Result<bool> {
        let (mut seen, mut changed) = (self.progress(at), Instant::now());
        while changed.elapsed() < PATIENCE {
            match self.set_lock(libc::F_WRLCK, at) {
                Ok(()) => return Ok(true),
                Err(Errno::EACCES | Errno::EAGAIN | Errno::EINTR) => thread::sleep(POLL_INTERVAL),
                Err(e) => return Err(e.into()),
            }
            let now = self.progress(at);
            if now != seen {
                (seen, changed) = (now, Instant::now());
            }
        }
        Ok(false)
    }

    fn set_lock(&self, kind: libc::c_int, at: u64) -> nix::Result<()> {
        let lock = record_lock(kind, at);
        fcntl(self.file.as_fd(), FcntlArg::F_SETLK(&lock)).map(drop)
    }
}

/// A lock of the record at this place.
fn record_lock(kind: libc::c_int, at: u64) -> libc::flock {
    // SAFETY: all zeros is a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).expect("a small number");
    lock.l_start = at.cast_signed();
    lock.l_len = size_of::<Verdict>().cast_signed() as i64;
    lock
}

/// Where the record of a file is.
fn slot(stamp: &FileStamp) -> u64 {
    let mixed = (stamp.inode ^ stamp.device.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) % SLOTS * size_of::<Verdict>() as u64
}

/// How long ago the last change of a file was; no time when a clock was set back since.
fn since(stamp: &FileStamp) -> Duration {
    let changed = u64::try_from(stamp.ctime_ns.max(stamp.mtime_ns)).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::from_nanos(changed);
    SystemTime::now()
        .duration_since(changed)
        .unwrap_or_default()
}

/// The stamp of a file, taken when its last change is so long ago that a later one shows.
fn settled(file: &File) -> io::Result<FileStamp> {
    let stamp = FileStamp::of(file)?;
    // A clock that was set back says nothing.
    if since(&stamp) < TICK {
        thread::sleep(TICK);
        return FileStamp::of(file);
    }
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;
    use crate::checkpoint::unwatched;

    #[test]
    fn the_content_decides_and_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "what was sealed").unwrap();
        let file = File::open(&path).unwrap();
        let sha256 = sha256_file(&file, &unwatched).unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        let open = || Verdicts::of_nursery(&run, std::slice::from_ref(&file)).unwrap();
        let verdicts = open();

        fs::hard_link(&path, dir.path().join("backup")).unwrap();
        let stamp = verdicts.of(&file, &sha256).unwrap().unwrap();
        // Known now, to others too: the content is not even looked at.
        let elsewhere = open();
        let known = |stamp: &FileStamp| elsewhere.read(stamp).unwrap().of(stamp, &sha256);
        assert_eq!(known(&stamp), Some(true));
        // That says nothing of another file, or another digest.
        let inode = stamp.inode + 1;
        assert_eq!(known(&FileStamp { inode, ..stamp }), None);
        assert_eq!(elsewhere.of(&file, "").unwrap(), None);

        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all(b"WHAT")
            .unwrap();
        assert_eq!(verdicts.of(&file, &sha256).unwrap(), None);
        let other = sha256_file(&file, &unwatched).unwrap();
        // The digest of what it is now is another question.
        let stamp = verdicts.of(&file, &other).unwrap().unwrap();
        assert_eq!(
            elsewhere.read(&stamp).unwrap().of(&stamp, &other),
            Some(true)
        );
        assert_eq!(known(&stamp), None);
        // The same content again, and another time.
        fs::write(&path, "what was sealed").unwrap();
        let times = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(times)
            .unwrap();
        let stamp = verdicts.of(&file, &sha256).unwrap().unwrap();
        assert_eq!(stamp.mtime_ns, 0);
    }
}
