//! FreeBSD kernel that brood itself runs on.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use nix::{mount::MntFlags, sys::statfs::statfs};
use vmm_sys::sysctl;

use super::{Kernel, Value};
use crate::host::folder::MountedOn;

/// The kernel that runs here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisKernel;

impl Kernel for ThisKernel {
    fn sysctl(&self, name: &str) -> io::Result<Value> {
        sysctl::read(name).map(Value::Raw)
    }

    fn processes(&self, user: Option<u32>) -> io::Result<u64> {
        let records = match user {
            None => sysctl::read_at(&[libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PROC])?,
            Some(user) => sysctl::read_at(&[
                libc::CTL_KERN,
                libc::KERN_PROC,
                libc::KERN_PROC_RUID,
                user.cast_signed(),
            ])?,
        };
        Ok((records.len() / size_of::<libc::kinfo_proc>()) as u64)
    }

    fn mounted(&self, folder: &Path) -> Option<MountedOn> {
        let mount = statfs(folder).ok()?;
        let flags = mount.flags();
        // The words of mount(8) for what bears on checkpoints and state.
        let words = [
            (MntFlags::MNT_RDONLY, "ro"),
            (MntFlags::MNT_NOATIME, "noatime"),
            (MntFlags::MNT_SYNCHRONOUS, "sync"),
            (MntFlags::MNT_ASYNC, "async"),
            (MntFlags::MNT_SOFTDEP, "soft-updates"),
        ];
        let options = words
            .into_iter()
            .filter(|(flag, _)| flags.contains(*flag))
            .map(|(_, word)| word.to_owned())
            .collect();
        Some(MountedOn {
            filesystem: mount.filesystem_type_name().to_owned(),
            options,
            point: mount_point(folder)?,
        })
    }

    fn machines_of_user(&self) -> Option<u64> {
        vmm_sys::user_vms()
    }

    fn bhyve(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH")?;
        let mut found = env::split_paths(&path).map(|dir| dir.join("bhyve"));
        found.find(|program| program.is_file())
    }
}

/// The topmost folder on the same device: where the filesystem is mounted.
fn mount_point(folder: &Path) -> Option<PathBuf> {
    use std::{fs::metadata, os::unix::fs::MetadataExt};
    let device = metadata(folder).ok()?.dev();
    let on_it = |path: &&Path| metadata(path).is_ok_and(|facts| facts.dev() == device);
    folder
        .ancestors()
        .take_while(on_it)
        .last()
        .map(Path::to_owned)
}
