//! The guest's agent as a process of this machine, and guests by script.

mod broker;
mod files;
mod hostile;
mod programs;
mod sessions;
mod steps;

use std::fs;

use brood_core::agent::{AgentError, GuestProcess, Output, protocol::FailureKind};
use brood_tests::PATIENCE;

pub(crate) const MIB: usize = 1 << 20;

pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, AgentError>) -> FailureKind {
    let error = result.expect_err("it cannot be done");
    error.failure().unwrap_or_else(|| panic!("{error}"))
}

pub(crate) fn is_alive(pid: &str) -> bool {
    // A process that nobody reaps yet is dead.
    let status = fs::read_to_string(format!("/proc/{pid}/stat"));
    status.is_ok_and(|text| {
        !text
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

/// The resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// Reads the output of a program until it has these words.
pub(crate) fn expect(process: &GuestProcess, output: &mut String, words: &str) {
    while !output.contains(words) {
        match process.next(Some(PATIENCE)).unwrap() {
            Output::Data(_, bytes) => output.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Ended(ended) => panic!("{ended:?} after {output:?}, without {words:?}"),
        }
    }
}
