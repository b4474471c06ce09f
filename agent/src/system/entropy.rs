//! The kernel's random generator.

use brood_agent_protocol::{Reply, limits::MAX_ENTROPY};

use crate::{
    failure::{Context, invalid},
    serve::Answer,
};

/// 32 bytes from the kernel's generator.
pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    // SAFETY: the pointer and the length are those of `bytes`.
    let length = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(length, 32, "getrandom(2) fills up to 256 bytes at once");
    bytes
}

/// Adds entropy, and has the generator use it at once: clones that go on with the generator of
/// their checkpoint would else all draw the same numbers, for minutes.
pub(crate) fn reseed(entropy: &[u8]) -> Answer {
    if entropy.is_empty() || entropy.len() > MAX_ENTROPY {
        let text = format!("entropy is 1 to {MAX_ENTROPY} bytes, not {}", entropy.len());
        return Err(invalid(text));
    }
    add(entropy).context("cannot reseed the kernel's random generator")?;
    Ok(Reply::Nothing)
}

/// See random(4).
#[cfg(target_os = "linux")]
fn add(entropy: &[u8]) -> std::io::Result<()> {
    use std::{fs::File, os::fd::AsRawFd, sync::OnceLock};

    /// `struct rand_pool_info` with its bytes.
    #[repr(C)]
    struct PoolInfo {
        bits: i32,
        length: i32,
        bytes: [u8; MAX_ENTROPY],
    }

    // Both are declared with another argument than they take: two integers, and none.
    nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 3, 8), PoolInfo);
    nix::ioctl_none!(reseed_now, b'R', 7);

    let length = i32::try_from(entropy.len()).expect("it is at most MAX_ENTROPY");
    let mut info = PoolInfo {
        bits: length * 8,
        length,
        bytes: [0; MAX_ENTROPY],
    };
    info.bytes[..entropy.len()].copy_from_slice(entropy);
    // It stays open: a clone finds a path for the first time, and slowly.
    static DEVICE: OnceLock<File> = OnceLock::new();
    let device = match DEVICE.get() {
        Some(device) => device,
        None => {
            let opened = File::open("/dev/urandom")?;
            DEVICE.get_or_init(|| opened)
        }
    };
    // SAFETY: the kernel reads `length` bytes behind the two integers, which are within `info`.
    unsafe { add_entropy(device.as_raw_fd(), &raw const info)? };
    // SAFETY: the request takes no argument.
    unsafe { reseed_now(device.as_raw_fd())? };
    Ok(())
}

/// See random(4) of FreeBSD: what is written is fed to the generator.
#[cfg(not(target_os = "linux"))]
fn add(entropy: &[u8]) -> std::io::Result<()> {
    std::fs::write("/dev/random", entropy)
}
