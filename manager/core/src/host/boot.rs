//! Boot of the host: its id, and how long ago it was. Facts about processes end with it.

use std::{io, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// The clock that counts from the boot, sleep included.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
/// The clock that counts from the boot, sleep included. FreeBSD 15's own `CLOCK_BOOTTIME` is
/// another name for it (`sys/_clock_id.h`); in older versions, and in the libc crate, that name
/// stands for `CLOCK_UPTIME`, which sleeps with the host.
#[cfg(target_os = "freebsd")]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

/// Time since the host booted, sleep included, by a clock that cannot be set.
#[must_use]
pub fn elapsed() -> Duration {
    clock_gettime(CLOCK)
        .expect("the kernel has this clock")
        .into()
}

/// An id of the running boot: random, so that setting the clock does not change it.
///
/// `/proc/sys/kernel/random/boot_id` on Linux. `kern.boot_id` on FreeBSD, which is there since
/// 13.0; `kern.boottime` would not do, since setting the clock moves it.
///
/// # Errors
/// When the kernel does not say. FreeBSD does not until it has gathered randomness.
pub fn id() -> io::Result<String> {
    system_id()
}

#[cfg(target_os = "linux")]
fn system_id() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

#[cfg(target_os = "freebsd")]
fn system_id() -> io::Result<String> {
    let id = vmm_sys::sysctl::read("kern.boot_id")?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_same_each_time() {
        let id = super::id().unwrap();
        assert_eq!(super::id().unwrap(), id);
        assert!(
            id.bytes().filter(u8::is_ascii_hexdigit).count() == 32,
            "{id}"
        );
    }

    #[test]
    fn the_clock_goes_on() {
        let before = super::elapsed();
        assert!(!before.is_zero() && super::elapsed() >= before);
    }
}
