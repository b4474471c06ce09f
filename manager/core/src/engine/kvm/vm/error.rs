//! Refusals of KVM: which step it refused, and its answer.

use std::io;

/// What KVM refused, and its answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    #[error("KVM refused to {step}: {source}")]
    Step {
        /// The step, as in "refused to ...".
        step: &'static str,
        source: io::Error,
    },
    /// KVM gives no reason: it only tells how many of a list it has set.
    #[error(
        "KVM refused to set MSR {index:#x} to {value:#x} (field msrs[{place}]): this host has no such MSR, or the MSR does not take this value"
    )]
    Msr {
        index: u32,
        value: u64,
        /// Where it stands in the state's list.
        place: usize,
    },
}

/// Names the step in an error of KVM's.
pub(crate) fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> KvmError {
    move |source| KvmError::Step {
        step,
        source: source.into(),
    }
}
