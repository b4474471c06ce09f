//! FreeBSD's vmm(4), as far as brood speaks of it on every platform.
//!
//! The crate builds everywhere and opens devices only on FreeBSD. It holds the names that both
//! the manager and the kernel side must agree on; the ioctl table and the safe wrappers are not
//! part of it yet.

pub mod vnode_abi;

/// Control device through which virtual machines are created and destroyed (vmm(4)).
pub const VMM_CTL_PATH: &str = "/dev/vmmctl";

/// Folder that holds one character device per virtual machine (vmm(4)).
pub const VMM_DEVICE_DIR: &str = "/dev/vmm";

/// Longest virtual machine name, in bytes, without the terminating NUL.
///
/// `VM_MAX_NAMELEN` of `machine/vmm.h`: the device name limit `SPECNAMELEN` (255, `sys/param.h`)
/// less `VM_MAX_PREFIXLEN` (10), `VM_MAX_SUFFIXLEN` (15) and the separator before the suffix.
pub const VM_MAX_NAME: usize = 255 - 10 - 15 - 1;

/// Path of the character device of the virtual machine `name`, or `None` when `name` cannot be a
/// virtual machine's name: empty, too long, or with a `/` or NUL in it.
#[must_use]
pub fn device_path(name: &str) -> Option<String> {
    let bad = name.is_empty() || name.len() > VM_MAX_NAME || name.contains(['/', '\0']);
    (!bad).then(|| format!("{VMM_DEVICE_DIR}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_path_refuses_what_the_kernel_would() {
        assert_eq!(device_path("g1").as_deref(), Some("/dev/vmm/g1"));
        assert!(device_path(&"n".repeat(VM_MAX_NAME)).is_some());
        for bad in ["", "a/b", "a\0b", &"n".repeat(VM_MAX_NAME + 1)] {
            assert_eq!(device_path(bad), None, "{bad:?}");
        }
    }
}
