//! Names of virtual machines.

use std::{fmt, str::FromStr};

use crate::{Error, VMM_DEVICE_DIR, abi};

/// A name that a virtual machine can have.
///
/// It is one component of a path below `/dev/vmm`: not empty, at most [`VmName::MAX`] bytes, not
/// `.` or `..`, without `/` and NUL.
///
/// ```
/// use vmm_sys::VmName;
///
/// let name: VmName = "guest-1".parse()?;
/// assert_eq!(name.device_path(), "/dev/vmm/guest-1");
/// assert!("a/b".parse::<VmName>().is_err());
/// # Ok::<(), vmm_sys::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VmName(String);

impl VmName {
    /// Longest name, in bytes: `VM_MAX_NAMELEN` of `machine/vmm.h`.
    pub const MAX: usize = abi::VM_MAX_NAMELEN as usize;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Path of the virtual machine's device (vmm(4)).
    #[must_use]
    pub fn device_path(&self) -> String {
        format!("{VMM_DEVICE_DIR}/{}", self.0)
    }

    /// As a C string in a member of the control device's requests.
    pub(crate) fn to_c<const N: usize>(&self) -> [core::ffi::c_char; N] {
        const { assert!(N > Self::MAX) };
        c_string(&self.0)
    }
}

/// `text`, which is shorter than `N` bytes, ended and filled up by NULs.
pub(crate) fn c_string<const N: usize>(text: &str) -> [core::ffi::c_char; N] {
    let mut string = [0; N];
    for (to, from) in string.iter_mut().zip(text.bytes()) {
        *to = core::ffi::c_char::from_ne_bytes([from]);
    }
    string
}

/// The text before the first NUL.
pub(crate) fn text(string: &[core::ffi::c_char]) -> String {
    let bytes: Vec<u8> = string
        .iter()
        .map(|c| c.to_ne_bytes()[0])
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl FromStr for VmName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let reason = match name {
            "" => "it is empty",
            "." | ".." => "it is a folder's",
            _ if name.len() > Self::MAX => "it is longer than 229 bytes",
            _ if name.contains(['/', '\0']) => "it has a `/` or a NUL in it",
            _ => return Ok(Self(name.to_owned())),
        };
        Err(Error::Name {
            name: name.to_owned(),
            reason,
        })
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_refuse_are_refused() {
        assert_eq!("g1".parse::<VmName>().unwrap().device_path(), "/dev/vmm/g1");
        assert!("n".repeat(VmName::MAX).parse::<VmName>().is_ok());
        for bad in ["", ".", "..", "a/b", "a\0b", &"n".repeat(VmName::MAX + 1)] {
            assert!(
                matches!(bad.parse::<VmName>(), Err(Error::Name { .. })),
                "{bad:?}"
            );
        }
        assert_eq!(VmName::MAX, 229, "the text of the error says so");
    }

    #[test]
    fn text_goes_to_c_and_back() {
        let name: VmName = "gäst".parse().unwrap();
        assert_eq!(text(&name.to_c::<230>()), "gäst");
        assert_eq!(text(&c_string::<4>("abc")), "abc");
        assert_eq!(text(&[]), "");
    }
}
