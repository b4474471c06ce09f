//! The kernel that runs here.

use std::{io, path::Path};

use nix::{mount::MntFlags, sys::statfs::statfs};
use vmm_sys::sysctl;

use super::{Kernel, Value};

/// The kernel that runs here.
#[derive(Clone, Copy, Debug)]
pub struct ThisKernel;

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

    fn mounted(&self, folder: &Path) -> Option<(String, Vec<String>)> {
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
        Some((mount.filesystem_type_name().to_owned(), options))
    }
}
