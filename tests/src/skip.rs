//! Skips: tests that this machine cannot run are skipped by name, never silently.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, Write},
    thread,
};

/// Whether `/dev/kvm` is missing. Then the running test is named as skipped, and must return.
///
/// # Panics
/// When it is missing and `BROOD_REQUIRE_KVM=1` is set.
#[must_use]
pub fn without_kvm() -> bool {
    let open = File::options().read(true).write(true).open("/dev/kvm");
    let Err(error) = open else { return false };
    let required = env::var_os("BROOD_REQUIRE_KVM").is_some_and(|value| value == "1");
    assert!(!required, "BROOD_REQUIRE_KVM=1, and /dev/kvm: {error}");
    skip("no /dev/kvm");
    true
}

/// Skips the running test for want of what real Linux guests need, or fails it where that is
/// required.
///
/// # Panics
/// When `BROOD_REQUIRE_QEMU=1` is set.
pub fn without_qemu(why: &str) {
    let required = env::var_os("BROOD_REQUIRE_QEMU").is_some_and(|value| value == "1");
    assert!(!required, "BROOD_REQUIRE_QEMU=1, and {why}");
    skip(why);
}

/// Says that the running test is skipped, and why.
pub fn skip(why: &str) {
    let test = thread::current().name().unwrap_or("main").to_owned();
    let line = format!("skipped: {test}: {why}\n");
    // Not by eprintln!, which test runners keep to themselves when a test passes.
    let _ = io::stderr().write_all(line.as_bytes());
    if let Some(path) = env::var_os("BROOD_SKIP_LOG") {
        let log = OpenOptions::new().create(true).append(true).open(path);
        let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
    }
}
