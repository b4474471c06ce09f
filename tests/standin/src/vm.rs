//! vmm(4) as processes see it: which VMs exist, which processes may use them, and what survives the
//! process that ran one.
//!
//! A VM is a file `dev/vmm/NAME`. It exists from its creation until something destroys it, whether
//! or not a process runs it; only `bhyvectl --destroy`, a suspend and `destroy_on_poweroff` do
//! that. The process that runs it learns of such a change by a byte in the pipe `wake/NAME`: a
//! watch on the file would take one of the few that the system gives a user.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use serde::{Deserialize, Serialize};

use crate::{
    errno::{EALREADY, EBUSY, EEXIST, EINVAL, ENAMETOOLONG, ENOENT, ENOMEM, ENXIO, Errno},
    sysctl,
    world::{Release, World},
};

/// `VM_MAX_NAMELEN` of sys/dev/vmm/vmm_dev.h: `SPECNAMELEN` less the longest prefix and suffix.
pub(crate) const NAME_MAX: usize = 229;

/// Every record is this long, so that one write replaces it whole.
const RECORD: usize = 2048;

/// How a VM ends: `enum vm_suspend_how` of sys/amd64/include/vmm.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Suspend {
    Reset,
    Poweroff,
    Halt,
    TripleFault,
}

impl Suspend {
    /// bhyve's exit code for it (usr.sbin/bhyve/amd64/vmexit.c, vmexit_suspend; bhyve(8)).
    pub(crate) fn exit_code(self) -> i32 {
        match self {
            Self::Reset => 0,
            Self::Poweroff => 1,
            Self::Halt => 2,
            Self::TripleFault => 3,
        }
    }
}

/// A checkpoint file that is a VM's memory, by vmm_vnode(4).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Segment {
    device: u64,
    inode: u64,
    /// Pages of the segment.
    pub(crate) pages: u64,
    /// Pages that the guest wrote.
    pub(crate) private: u64,
    /// Whether the file's file system was unmounted by force: then pages that the guest did not
    /// write are zeros. Seen with vmm_vnode in a kernel of FreeBSD 14.2, on UFS.
    #[serde(default)]
    pub(crate) lost: bool,
}

impl Segment {
    pub(crate) fn of(file: &File, pages: u64) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            pages,
            private: 0,
            lost: false,
        })
    }

    /// Whether the file is this segment's.
    pub(crate) fn is(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (self.device, self.inode))
    }
}

/// What the kernel knows of a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Tells a VM from a later one of its name.
    pub(crate) id: u64,
    /// Virtual CPUs were activated and have not all stopped since (`active_cpus` and
    /// `suspended_cpus` differ).
    pub(crate) running: bool,
    /// How it was told to end.
    pub(crate) suspend: Option<Suspend>,
    /// Virtual CPUs.
    pub(crate) ncpus: u32,
    /// Length of its memory in bytes, once it was set up.
    pub(crate) memory: Option<u64>,
    /// Bytes of its memory that are in host memory.
    pub(crate) resident: u64,
    /// The checkpoint file that its memory is.
    pub(crate) segment: Option<Segment>,
    /// The process that runs it, or was the last to.
    #[serde(default)]
    pub(crate) process: Option<u32>,
}

/// An open VM.
#[derive(Debug)]
pub(crate) struct Vm {
    world: World,
    name: String,
    id: u64,
}

fn path(world: &World, name: &str) -> PathBuf {
    world.path("dev/vmm").join(name)
}

/// Reads a record without the world's lock: a bhyve that is stopped while it looks at its VM must
/// not keep everybody else from theirs.
fn read(path: &Path) -> Result<Record, Errno> {
    loop {
        let text = fs::read(path)?;
        // Twice the same is not in the middle of a change.
        if fs::read(path)? == text {
            return serde_json::from_slice(&text).map_err(|_| ENXIO);
        }
    }
}

fn nonblocking() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(OFlag::O_NONBLOCK.bits());
    options
}

fn text(record: &Record) -> Result<Vec<u8>, Errno> {
    let mut text = serde_json::to_vec(record).map_err(|_| EINVAL)?;
    text.resize(RECORD, b' ');
    Ok(text)
}

/// Names of all VMs.
pub(crate) fn names(world: &World) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(world.path("dev/vmm"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Every VM's name and record.
pub(crate) fn all(world: &World) -> io::Result<Vec<(String, Record)>> {
    let known = |name: String| {
        let record = read(&path(world, &name)).ok()?;
        Some((name, record))
    };
    Ok(names(world)?.into_iter().filter_map(known).collect())
}

/// Unmounts the file system of a file by force: VMs whose memory it is have lost it.
///
/// # Errors
/// When the world cannot be written.
pub(crate) fn lose(world: &World, file: &Path) -> io::Result<()> {
    for (name, record) in all(world)? {
        if record.segment.as_ref().is_some_and(|s| s.is(file)) {
            let lose = |record: &mut Record| {
                record
                    .segment
                    .iter_mut()
                    .for_each(|segment| segment.lost = true);
                Ok(())
            };
            let vm = Vm::open(world, &name);
            // One that was destroyed meanwhile has nothing to lose.
            let _ = vm.and_then(|vm| vm.change(lose));
        }
    }
    Ok(())
}

/// Whether the file is some VM's memory; then nobody may open it for writing (vmm_vnode(4)).
pub(crate) fn text_busy(world: &World, path: &Path) -> io::Result<bool> {
    let is = |(_, record): &(String, Record)| record.segment.as_ref().is_some_and(|s| s.is(path));
    Ok(all(world)?.iter().any(is))
}

impl Vm {
    /// vm_openf() without a flag (lib/libvmmapi/vmmapi.c).
    ///
    /// # Errors
    /// `ENOENT` without such a VM.
    pub(crate) fn open(world: &World, name: &str) -> Result<Self, Errno> {
        if !world.path("dev/vmmctl").exists() || name.is_empty() || name.contains('/') {
            return Err(ENOENT);
        }
        if name.len() > NAME_MAX {
            return Err(ENAMETOOLONG);
        }
        let record = read(&path(world, name))?;
        Ok(Self {
            world: world.clone(),
            name: name.to_owned(),
            id: record.id,
        })
    }

    /// Creates a VM, by the rules of vmmdev_create() (sys/dev/vmm/vmm_dev.c).
    ///
    /// # Errors
    /// `ENOMEM` when the user has `hw.vmm.maxvmms` VMs (15.1), `ENAMETOOLONG`, `EEXIST`, `EINVAL`.
    pub(crate) fn create(world: &World, name: &str) -> Result<Self, Errno> {
        if !world.path("dev/vmmctl").exists() {
            return Err(ENOENT);
        }
        // vm_ctl_create() of libvmmapi, before the request.
        if name.len() > NAME_MAX {
            return Err(ENAMETOOLONG);
        }
        // make_dev_s() with MAKEDEV_CHECKNAME.
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(EINVAL);
        }
        let _guard = world.lock()?;
        if path(world, name).exists() {
            return Err(EEXIST);
        }
        // chgvmmcnt(), which 15.0 has not.
        let most = match world.release()? {
            Release::Fifteen => u64::MAX,
            Release::FifteenOne => sysctl::number(world, "hw.vmm.maxvmms")?,
        };
        if fs::read_dir(world.path("dev/vmm"))?.count() as u64 >= most {
            return Err(ENOMEM);
        }
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|_| ENXIO)?;
        let record = Record {
            id: u64::from_ne_bytes(id),
            running: false,
            suspend: None,
            ncpus: 1,
            memory: None,
            resident: 0,
            segment: None,
            process: None,
        };
        // Its owner's alone (`crw-------`, seen with bhyve 14.2).
        let new = world.path("new");
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text(&record)?)?;
        fs::rename(new, path(world, name))?;
        Ok(Self {
            world: world.clone(),
            name: name.to_owned(),
            id: record.id,
        })
    }

    /// vm_reinit() (sys/amd64/vmm/vmm.c): back to the state after creation, memory kept.
    ///
    /// # Errors
    /// `EBUSY` unless all its virtual CPUs have stopped. Those of a killed bhyve have not.
    pub(crate) fn reinit(&self) -> Result<(), Errno> {
        self.change(|record| {
            if record.running {
                return Err(EBUSY);
            }
            record.suspend = None;
            Ok(())
        })
    }

    /// vm_suspend() (sys/dev/vmm/vmm_vm.c): tells the VM how to end.
    ///
    /// # Errors
    /// `EALREADY` when it was told before.
    pub(crate) fn suspend(&self, how: Suspend) -> Result<(), Errno> {
        self.change(|record| {
            if record.suspend.is_some() {
                return Err(EALREADY);
            }
            record.suspend = Some(how);
            Ok(())
        })?;
        self.wake();
        Ok(())
    }

    /// Changes the record under the world's lock.
    ///
    /// # Errors
    /// `ENXIO` when the VM was destroyed; else what `change` refuses.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Record) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let _guard = self.world.lock()?;
        let mut record = self.record()?;
        let result = change(&mut record)?;
        // In place: a reader may have it open at any moment.
        let file = OpenOptions::new().write(true).open(self.path())?;
        file.write_all_at(&text(&record)?, 0)?;
        Ok(result)
    }

    /// What the kernel knows of it.
    ///
    /// # Errors
    /// `ENXIO` when it was destroyed, even if there is another one of its name now.
    pub(crate) fn record(&self) -> Result<Record, Errno> {
        match read(&self.path()) {
            Ok(record) if record.id == self.id => Ok(record),
            _ => Err(ENXIO),
        }
    }

    /// Destroys it; its process notices (vmmdev_lookup_and_destroy() of vmm_dev.c).
    pub(crate) fn destroy(&self) -> Result<(), Errno> {
        let _guard = self.world.lock()?;
        self.record().map_err(|_| EINVAL)?;
        fs::remove_file(self.path())?;
        self.wake();
        let _ = fs::remove_file(self.pipe());
        Ok(())
    }

    fn pipe(&self) -> PathBuf {
        self.world.path("wake").join(&self.name)
    }

    /// What its process waits on: there is something to read when it was told to end, or destroyed.
    pub(crate) fn waker(&self) -> io::Result<File> {
        let _ = fs::remove_file(self.pipe());
        mkfifo(&self.pipe(), Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Open for writing too: it never comes to an end.
        nonblocking().read(true).write(true).open(self.pipe())
    }

    /// Wakes its process, if it has one.
    fn wake(&self) {
        let pipe = nonblocking().write(true).open(self.pipe());
        // A pipe that is full will be read.
        let _ = pipe.and_then(|mut pipe| pipe.write(b"."));
    }

    /// The device.
    pub(crate) fn path(&self) -> PathBuf {
        path(&self.world, &self.name)
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}
