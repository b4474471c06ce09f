//! setproctitle(3): ps(1) shows a running bhyve as `bhyve: NAME (bhyve)`, and its command line is
//! gone (bhyverun.c, main(); seen with bhyve 14.2).

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

/// Writes the title over this process's arguments (proc_pid_stat(5), `arg_start` and `arg_end`).
/// One that is longer than they were is cut off.
///
/// # Errors
/// When the system does not let a process write its own memory.
pub(crate) fn set(name: &str) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Numbers of fields count from the program's name, the second, on, which may hold blanks.
    let after = stat.rfind(')').map_or("", |end| &stat[end + 1..]);
    let fields: Vec<u64> = after
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    let (Some(start), Some(end)) = (fields.get(45), fields.get(46)) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let room = usize::try_from(end.saturating_sub(*start)).unwrap_or(0);
    let mut title = format!("bhyve: {name} (bhyve)").into_bytes();
    title.truncate(room.saturating_sub(1));
    // A last byte of zero says that the arguments end where they did.
    title.resize(room, 0);
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&title, *start)
}
