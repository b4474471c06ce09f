//! Lost checkpoints: finds guests whose checkpoint file disappeared while they ran.
//!
//! When somebody unmounts the checkpoint's file system by force, the file's memory object dies
//! (`OBJT_DEAD`), and pages that a guest has not written read as zeros, without any error.
//! vmm_vnode(4) counts such segments and marks them in its list.

use std::str::FromStr;

use vmm_sys::sysctl;

use super::{host::Host, restore::VM_PREFIX};
use crate::guest_id::GuestId;

/// How many segments have lost their file; absent with a module that does not tell.
const COUNT: &str = "hw.vmm.vnode.file_lost";
/// Lines `VM segid=N ... file_lost=0`.
const LIST: &str = "hw.vmm.vnode.list";

const WHY: &str = "the file system of its checkpoint was unmounted by force, so memory that it had \
                   not written read as zeros; brood ended it";

/// brood's guests that have lost their file.
pub(super) fn guests(host: &Host) -> Vec<(GuestId, String)> {
    // One number first: the list is as long as there are guests.
    if read(host, COUNT).is_none_or(|count| count.trim() == "0") {
        return Vec::new();
    }
    let list = read(host, LIST).unwrap_or_default();
    let lost = marked(&list).into_iter();
    lost.map(|id| (id, WHY.to_owned())).collect()
}

/// A variable as text. A kernel that does not have it, or does not let it be read, says nothing.
fn read(host: &Host, name: &str) -> Option<String> {
    if !host.is_this_machine() {
        return host.run("sysctl", &["-n", name]).ok();
    }
    let value = sysctl::read(name).ok()?;
    match *value.as_slice() {
        [a, b, c, d, e, f, g, h] if name == COUNT => {
            Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h]).to_string())
        }
        ref text => Some(
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .to_owned(),
        ),
    }
}

/// Guests of the list that are marked. Machines of others are not brood's to end.
fn marked(list: &str) -> Vec<GuestId> {
    let mut ids: Vec<GuestId> = list
        .lines()
        .filter(|line| line.split_whitespace().any(|word| word == "file_lost=1"))
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix(VM_PREFIX))
        .filter_map(|id| GuestId::from_str(id).ok())
        .collect();
    // A guest may have more segments than one.
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_guests_of_brood_are_lost() {
        let list = "\
brood-16f31da1b4e7e9c0 segid=0 offset=0 pages=4 private_resident=1 file_resident=0 file_lost=1
brood-16f31da1b4e7e9c0 segid=1 offset=4 pages=4 private_resident=0 file_resident=0 file_lost=1
brood-26f31da1b4e7e9c0 segid=0 offset=0 pages=4 private_resident=1 file_resident=4 file_lost=0
brood-36f31da1b4e7e9c0 segid=0 offset=0 pages=4 private_resident=1 file_resident=4
brood-nonsense segid=0 file_lost=1
mine segid=0 offset=0 pages=4 private_resident=1 file_resident=0 file_lost=1
";
        let lost: Vec<String> = marked(list).iter().map(ToString::to_string).collect();
        assert_eq!(lost, ["16f31da1b4e7e9c0"]);
    }
}
