//! Boot of an image, whatever engine runs it: what is booted, who is told how far it has come, and
//! what is done in the guest before it is sealed.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use brood_machine::cpu_template::CpuTemplate;
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    unistd::{Whence, lseek},
};

use super::{BootDisk, Error, Limit, agent_ask};
use crate::{
    agent::{Agent, AgentError, CloneIdentity, StepError},
    checkpoint::{Network, NoteSeal, Watch},
    disk::Owner,
    guest_id::GuestId,
    units::{Bytes, PAGE_SIZE},
};

/// How often a guest is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// What is booted.
#[derive(Clone, Debug)]
pub struct BootImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
    /// The image's digest.
    pub digest: String,
}

/// A root file system that is read from a disk.
#[derive(Clone, Debug)]
pub struct BootRoot {
    /// The file.
    pub file: PathBuf,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// A checkpoint to make.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    /// The image.
    pub image: &'a BootImage,
    /// The guest's memory.
    pub memory: Bytes,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// What they are. QEMU's guests have no template.
    pub cpu_template: CpuTemplate,
    /// The network that it has a card for.
    pub network: Network,
    /// Its root file system, when that is to be on a disk that all clones read.
    pub root: Option<&'a BootRoot>,
    /// The disk that it has to itself.
    pub disk: Option<&'a BootDisk>,
    /// Whose that disk is while it is booted.
    pub owner: Owner,
    /// A command of the guest's shell that is repeated until it succeeds.
    pub ready: Option<&'a str>,
    /// Commands of the guest's shell that are run before the seal.
    pub warm: &'a [String],
    /// How long all of it may take.
    pub limit: Limit<'a>,
}

/// How far the making of a checkpoint has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Booted {
    /// QEMU runs.
    Started,
    /// The agent has answered.
    Answered,
    /// It is ready and warm.
    Warm,
}

/// Who is told of a checkpoint that is being made.
pub struct BootObserver<'a> {
    /// How far it has come.
    pub booted: &'a dyn Fn(Booted),
    /// Called when the bundle is whole and does not have its name yet.
    pub note: NoteSeal<'a>,
    /// How much of it is digested.
    pub progress: Watch<'a>,
}

/// Who the guest is that nobody ever gets. Its name is short: a file with it is not cut by a clone,
/// whose name is longer.
pub(super) fn template_identity(id: GuestId) -> CloneIdentity {
    let mut number = [0; 16];
    number[..8].copy_from_slice(&id.0);
    CloneIdentity {
        hostname: "x".to_owned(),
        mac: None,
        machine_id: number,
        generation: number,
    }
}

/// Name of the guest that was booted.
pub(super) fn to_name(boot: &Boot<'_>) -> String {
    let digest = boot.image.digest.get(..12).unwrap_or_default();
    format!("image-{digest}")
}

/// A step in the guest that failed.
pub(super) fn step(error: &StepError) -> agent_ask::Error {
    let told = Error::Boot(error.to_string());
    match error.source {
        AgentError::Lost { .. } => agent_ask::Error::Lost(told),
        _ => agent_ask::Error::Other(told),
    }
}

/// Waits until the guest's own command says that it is ready, then runs what is to be warm.
pub(super) fn make_warm(agent: &Agent, boot: &Boot<'_>) -> Result<(), agent_ask::Error> {
    let begin = Instant::now();
    let failed = |why| agent_ask::Error::Other(Error::Boot(why));
    let shell = |command: &str| {
        let left = boot.limit.timeout.saturating_sub(begin.elapsed());
        let limit = Limit {
            timeout: left.max(Duration::from_secs(1)),
            ..boot.limit
        };
        agent_ask::run_program(agent, &["/bin/sh", "-c", command], limit)
    };
    while let Some(ready) = boot.ready {
        let Err(said) = shell(ready)? else { break };
        if boot.limit.is_cancelled() {
            return Err(agent_ask::Error::Other(Error::Interrupted));
        }
        if begin.elapsed() >= boot.limit.timeout {
            let seconds = boot.limit.timeout.as_secs();
            return Err(failed(format!(
                "{ready:?} did not succeed within {seconds} s: {said}"
            )));
        }
        std::thread::sleep(READY_INTERVAL);
    }
    for command in boot.warm {
        shell(command)?.map_err(|said| failed(format!("{command:?} failed: {said}")))?;
    }
    Ok(())
}

/// Pages that are looked at at once.
const PIECE: u64 = 256;

/// Makes holes of the pages of a memory file that are zero; `false` when it was not to go on. What is a
/// hole, because the guest has not touched it, is not read. Moves the file's position.
pub(super) fn punch_zeros(
    memory: &File,
    size: Bytes,
    go_on: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let mut buffer = vec![0; usize::try_from(PIECE * PAGE_SIZE).map_err(io::Error::other)?];
    let page = usize::try_from(PAGE_SIZE).map_err(io::Error::other)?;
    let zero = vec![0; page];
    let mut zeros: Option<(u64, u64)> = None;
    let punch = |zeros: &mut Option<(u64, u64)>| -> io::Result<()> {
        let Some((first, end)) = zeros.take() else {
            return Ok(());
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let offset = |at: u64| i64::try_from(at).map_err(io::Error::other);
        match fallocate(memory, flags, offset(first)?, offset(end - first)?) {
            // A file system without holes keeps the zeros.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    };
    let mut at = 0;
    while let Some(data) = data_from(memory, at)?.filter(|data| *data < size.0) {
        if !go_on() {
            return Ok(false);
        }
        if data > at {
            punch(&mut zeros)?;
            at = data;
        }
        let length =
            usize::try_from((size.0 - at).min(PIECE * PAGE_SIZE)).map_err(io::Error::other)?;
        let piece = &mut buffer[..length];
        memory.read_exact_at(piece, at)?;
        for content in piece.chunks(page) {
            let end = at + content.len() as u64;
            if *content == zero[..content.len()] {
                let first = zeros.map_or(at, |(first, _)| first);
                zeros = Some((first, end));
            } else {
                punch(&mut zeros)?;
            }
            at = end;
        }
    }
    punch(&mut zeros)?;
    Ok(true)
}

/// Where the first page with data is from this page on; `None` when there is no more.
fn data_from(file: &File, at: u64) -> io::Result<Option<u64>> {
    let offset = i64::try_from(at).map_err(io::Error::other)?;
    match lseek(file, offset, Whence::SeekData) {
        Ok(data) => {
            let data = u64::try_from(data).map_err(io::Error::other)?;
            Ok(Some(data - data % PAGE_SIZE))
        }
        Err(Errno::ENXIO) => Ok(None),
        // A file system that does not know its holes.
        Err(Errno::EINVAL) => Ok(Some(at)),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_stepped_over_and_their_neighbours_looked_at() {
        let file = tempfile::tempfile().unwrap();
        let size = Bytes::mib(64);
        file.set_len(size.0).unwrap();
        let page = PAGE_SIZE;
        let data = [0, 5 * page + 17, 20 << 20, (40 << 20) + 1, size.0 - 1];
        for (byte, at) in (1..).zip(data) {
            file.write_all_at(&[byte], at).unwrap();
        }
        // Zeros before, between and after holes.
        for at in [7 * page, (20 << 20) + page, (50 << 20) - page] {
            file.write_all_at(&vec![0; 3 * 4096], at).unwrap();
        }
        let looks = std::cell::Cell::new(0);
        let go_on = || {
            looks.set(looks.get() + 1);
            true
        };
        assert!(punch_zeros(&file, size, &go_on).unwrap());
        let mut content = vec![9; usize::try_from(size.0).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        for (byte, at) in (1_u8..).zip(data) {
            assert_eq!(content[usize::try_from(at).unwrap()], byte);
        }
        let written = content.iter().filter(|byte| **byte != 0).count();
        assert_eq!(written, data.len());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        if blocks * 512 < size.0 / 2 {
            // It has holes, which were not read: 64 looks would have been needed.
            assert!(looks.get() < 16, "{}", looks.get());
        }
    }

    #[test]
    fn zeros_become_holes_and_everything_else_stays() {
        let file = tempfile::tempfile().unwrap();
        let size = Bytes::mib(3);
        file.set_len(size.0).unwrap();
        let mut content = vec![0_u8; usize::try_from(size.0).unwrap()];
        content[5] = 1;
        content[2_000_000] = 2;
        *content.last_mut().unwrap() = 3;
        file.write_all_at(&content, 0).unwrap();
        assert!(punch_zeros(&file, size, &|| true).unwrap());
        let mut read = vec![9; content.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == content);
    }
}
