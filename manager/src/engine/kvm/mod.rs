//! The Linux engine: KVM, embedded. A process per guest, its memory a private mapping of the
//! checkpoint.

pub mod demo;
mod machine;
mod ram;
mod slots;
mod vcpu;

use std::io;

pub use machine::ExitReason;
use machine::KvmError;

/// The demo guest did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Its memory could not be mapped.
    #[error("cannot map the guest's memory: {0}")]
    Map(io::Error),
    /// KVM refused something.
    #[error("{0}")]
    Kvm(String),
    /// It died on the way.
    #[error("the guest died while booting: {0}")]
    Died(ExitReason),
    /// It rang, but what it said is not an answer.
    #[error("the guest came up but did not answer its first request rightly")]
    NoAnswer,
}

impl From<KvmError> for BootError {
    fn from(error: KvmError) -> Self {
        Self::Kvm(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Identity, units::Bytes};

    #[test]
    fn boot_demo() {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        let identity = Identity {
            name: "x".into(),
            generation: [1; 16],
            mac: [2; 6],
            seed: [3; 8],
            entropy: [4; 32],
        };
        let state = demo::boot(&kvm, &file, Bytes::mib(4), &identity);
        println!(
            "{}",
            String::from_utf8(state.unwrap().to_bytes()).unwrap().len()
        );
    }
}
