//! Mark: what a client writes into its guest to know it again.

use brood_tests::EngineKind;
use serde_json::Value;

/// Where it is in a guest's memory.
pub(crate) const MARK_AT: u64 = 0x20_0000;
/// Where a guest with a file system has it.
const FILE: &str = "/run/mark";

/// The request to write a mark.
pub(crate) fn write(engine: EngineKind, mark: u64) -> Vec<String> {
    match engine {
        EngineKind::Qemu => shell(&format!("echo {mark} >{FILE}")),
        EngineKind::Kvm | EngineKind::Bhyve => words(&["poke", &at(), &mark.to_string()]),
    }
}

/// The request to read it.
pub(crate) fn read(engine: EngineKind) -> Vec<String> {
    match engine {
        EngineKind::Qemu => shell(&format!("cat {FILE} 2>/dev/null || echo 0")),
        EngineKind::Kvm | EngineKind::Bhyve => words(&["peek", &at()]),
    }
}

/// The mark in the answer to [`read`].
pub(crate) fn of(engine: EngineKind, answer: &Value) -> Option<u64> {
    match engine {
        EngineKind::Qemu => answer["output"].as_str()?.trim().parse().ok(),
        EngineKind::Kvm | EngineKind::Bhyve => answer["value"].as_u64(),
    }
}

fn at() -> String {
    MARK_AT.to_string()
}

fn shell(line: &str) -> Vec<String> {
    words(&["exec", "/bin/sh", "-c", line])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
