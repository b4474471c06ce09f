//! Path of a VM's checkpoint socket: `/var/run/bhyve/NAME` (`BHYVE_RUN_DIR`, snapshot.h).

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use crate::world::World;

/// FreeBSD's `sun_path` has 104 bytes, the last of them zero; the folder takes 15. What is longer
/// is cut off without a word, by bhyve and bhyvectl alike (snprintf() into `sun_path`).
const NAME_MAX: usize = 104 - 1 - 15;

fn cut(name: &str) -> String {
    String::from_utf8_lossy(&name.as_bytes()[..name.len().min(NAME_MAX)]).into_owned()
}

/// The file.
pub(crate) fn path(world: &World, name: &str) -> PathBuf {
    world.path("var/run/bhyve").join(cut(name))
}

/// A name of the socket that is short enough for this machine, whatever the world's folder is.
fn with_short_path<T>(
    world: &World,
    name: &str,
    action: impl FnOnce(PathBuf) -> io::Result<T>,
) -> io::Result<T> {
    let folder = File::open(world.path("var/run/bhyve"))?;
    action(PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(cut(name)))
}

/// Listens, in place of an earlier listener.
pub(crate) fn bind(world: &World, name: &str) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path(world, name));
    with_short_path(world, name, UnixListener::bind)
}

/// Connects.
pub(crate) fn connect(world: &World, name: &str) -> io::Result<UnixStream> {
    with_short_path(world, name, UnixStream::connect)
}
