//! The content of files, to the host and from it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt, fchown},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use brood_agent_protocol::{ReadFile, Reply, Stream, Transfer, WriteFile};
use sha2::{Digest, Sha256};

use super::absolute;
use crate::{
    call::Call,
    failure::{Context, invalid},
    outbox::PIECE,
    process::Account,
    serve::Answer,
};

/// The count of what was transferred, with its digest where that is asked for.
struct Count {
    bytes: u64,
    digest: Option<Sha256>,
}

impl Count {
    fn new(digest: bool) -> Count {
        let digest = digest.then(Sha256::new);
        Count { bytes: 0, digest }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
    }

    fn reply(self) -> Reply {
        Reply::Transferred(Transfer {
            bytes: self.bytes,
            sha256: self.digest.map(|digest| digest.finalize().into()),
        })
    }
}

pub(crate) fn read(call: &Call, asked: &ReadFile) -> Answer {
    let path = absolute(&asked.path)?;
    let tried = format!("cannot read {}", path.display());
    // A pipe without a writer would let the agent wait for ever.
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(&path).context(&tried)?;
    if !file.metadata().context(&tried)?.is_file() {
        return Err(invalid(format!("{tried}: it is no regular file")));
    }
    if asked.offset > 0 {
        let start = SeekFrom::Start(asked.offset);
        file.seek(start).context(&tried)?;
    }
    let mut file = file.take(asked.length.unwrap_or(u64::MAX));
    let mut count = Count::new(asked.digest);
    let mut buffer = vec![0; PIECE];
    loop {
        let length = file.read(&mut buffer).context(&tried)?;
        if length == 0 {
            call.end_stream(Stream::Output);
            return Ok(count.reply());
        }
        count.add(&buffer[..length]);
        call.send_all(Stream::Output, &buffer[..length])?;
    }
}

pub(crate) fn write(call: &Call, asked: &WriteFile) -> Answer {
    let path = absolute(&asked.path)?;
    let tried = format!("cannot write {}", path.display());
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid(format!("{tried}: it has no name")));
    };
    if path.is_dir() {
        return Err(invalid(format!("{tried}: it is a folder")));
    }
    let owner = asked.user.as_deref().map(Account::named).transpose()?;
    if asked.parents {
        fs::create_dir_all(folder).context(&tried)?;
    }
    let (mut file, draft) = Draft::create(folder, name).context(&tried)?;
    let mut count = Count::new(asked.digest);
    while let Some(piece) = call.next_input()? {
        file.write_all(&piece).context(&tried)?;
        count.add(&piece);
        call.consumed_input(piece.len());
    }
    if let Some(owner) = owner {
        let (uid, gid) = (owner.uid.as_raw(), owner.gid.as_raw());
        fchown(&file, Some(uid), Some(gid)).context(&tried)?;
    }
    // After the owner: a change of that takes set-user-ID away.
    let mode = Permissions::from_mode(asked.mode & 0o7777);
    file.set_permissions(mode).context(&tried)?;
    if asked.sync {
        file.sync_all().context(&tried)?;
    }
    draft.publish(&path).context(&tried)?;
    if asked.sync {
        let folder = File::open(folder).context(&tried)?;
        folder.sync_all().context(&tried)?;
    }
    Ok(count.reply())
}

/// A file under a name of its own beside the one that it becomes; it is removed, unless it is
/// published.
struct Draft(Option<PathBuf>);

impl Draft {
    fn create(folder: &Path, name: &OsStr) -> io::Result<(File, Draft)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut draft = OsString::from(".");
        // A file's name has 255 bytes at most.
        let name = name.as_bytes();
        draft.push(OsStr::from_bytes(&name[..name.len().min(200)]));
        draft.push(format!(".brood-{}-{number}", std::process::id()));
        let path = folder.join(draft);
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path)?;
        Ok((file, Draft(Some(path))))
    }

    fn publish(mut self, path: &Path) -> io::Result<()> {
        if let Some(draft) = &self.0 {
            fs::rename(draft, path)?;
            self.0 = None;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(draft) = &self.0 {
            let _ = fs::remove_file(draft);
        }
    }
}
