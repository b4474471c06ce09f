//! Protection from the kernel's out-of-memory killer: a guest whose memory is full needs its agent
//! most. The programs that it starts have none.

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::CStr;

    use nix::{
        fcntl::{OFlag, open},
        sys::stat::Mode,
        unistd::write,
    };

    const SCORE: &CStr = c"/proc/self/oom_score_adj";

    /// Only system calls, as a child may make them before it becomes another program.
    fn set(score: &[u8]) {
        if let Ok(file) = open(SCORE, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            let _ = write(file, score);
        }
    }

    pub(crate) fn protect() {
        set(b"-1000");
    }

    pub(crate) fn restore() {
        set(b"0");
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{protect, restore};

/// See protect(1): whoever starts the agent can protect it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn protect() {}

#[cfg(not(target_os = "linux"))]
pub(crate) fn restore() {}
