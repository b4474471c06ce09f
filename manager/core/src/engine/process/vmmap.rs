//! Layout of `struct kinfo_vmentry` of FreeBSD's `sys/user.h` on 64-bit machines: what a process
//! has mapped, and how much of it is in memory.

/// Where `kve_structsize` is, an `int`: the length of this record.
const SIZE: usize = 0;
/// Where `kve_type` is, an `int`.
const TYPE: usize = 4;
/// Where `kve_flags` is, an `int`.
const FLAGS: usize = 44;
/// Where `kve_resident` is, an `int`: pages.
const RESIDENT: usize = 48;
/// `KVME_TYPE_DEFAULT` and `KVME_TYPE_SWAP`: memory that is no file's.
const ANONYMOUS: [i32; 2] = [1, 3];
/// `KVME_FLAG_COW`: pages are copied when they are written.
const COW: i32 = 1;
/// `KVME_FLAG_NEEDS_COPY`: none was written yet.
const NEEDS_COPY: i32 = 2;

#[cfg(target_os = "freebsd")]
const _: () = {
    use std::mem::offset_of;
    assert!(SIZE == offset_of!(libc::kinfo_vmentry, kve_structsize));
    assert!(TYPE == offset_of!(libc::kinfo_vmentry, kve_type));
    assert!(FLAGS == offset_of!(libc::kinfo_vmentry, kve_flags));
    assert!(RESIDENT == offset_of!(libc::kinfo_vmentry, kve_resident));
};

/// Pages that are a process's own: its heap, stacks and other memory that is no file's, and
/// mappings of files that it has written to. Of those the pages that it has not written are counted
/// too: the kernel does not tell them apart, and after relocation there are few.
///
/// `kve_private_resident` does not say it: that is 0 for a copy of a file's pages, and all of a
/// file's pages for a mapping that is shared (`sysctl_kern_proc_vmmap` of kern_proc.c).
pub(super) fn own_pages(records: &[u8]) -> Option<u64> {
    let mut own = 0;
    let mut rest = records;
    while !rest.is_empty() {
        let int = |at: usize| Some(i32::from_ne_bytes(*rest.get(at..)?.first_chunk()?));
        let length = usize::try_from(int(SIZE)?).ok()?;
        let (kind, flags) = (int(TYPE)?, int(FLAGS)?);
        let written = flags & COW != 0 && flags & NEEDS_COPY == 0;
        if ANONYMOUS.contains(&kind) || written {
            own += u64::try_from(int(RESIDENT)?).ok()?;
        }
        // A length of 0 would never come to an end.
        if length <= RESIDENT {
            return None;
        }
        rest = rest.get(length..)?;
    }
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VNODE: i32 = 2;

    fn record(length: usize, kind: i32, flags: i32, resident: i32) -> Vec<u8> {
        let mut record = vec![0xaa; length];
        let int = |n: i32| n.to_ne_bytes();
        record[SIZE..4].copy_from_slice(&int(i32::try_from(length).unwrap()));
        record[TYPE..8].copy_from_slice(&int(kind));
        record[FLAGS..FLAGS + 4].copy_from_slice(&int(flags));
        record[RESIDENT..RESIDENT + 4].copy_from_slice(&int(resident));
        record
    }

    /// A bhyve that shares a checkpoint: its text and that of its libraries are files', the
    /// checkpoint is mapped shared, and only the rest is its own.
    #[test]
    fn what_is_of_files_is_not_the_processes_own() {
        let map = [
            // Program text, not written.
            record(160, VNODE, COW | NEEDS_COPY, 300),
            // Relocated data.
            record(168, VNODE, COW, 70),
            // The guest's memory: the checkpoint's pages.
            record(144, VNODE, 0, 4096),
            // The heap, the boot ROM's segment.
            record(136, 1, COW, 400),
            record(136, 3, 0, 16),
            // A guard page.
            record(136, 9, 0, 0),
        ]
        .concat();
        assert_eq!(own_pages(&map), Some(486));
        assert_eq!(own_pages(&[]), Some(0));
    }

    #[test]
    fn what_is_no_map_is_refused() {
        let whole = record(136, 1, 0, 5);
        assert_eq!(own_pages(&whole[..100]), None);
        assert_eq!(own_pages(&record(136, 1, 0, -1)), None);
        let mut endless = whole;
        endless[..4].fill(0);
        assert_eq!(own_pages(&endless), None);
    }
}
