//! Processor vendor of a checkpoint. bhyve does not write it anywhere; but the state of a virtual
//! CPU (`vmcx`) is VMX's on Intel and SVM's on AMD, and the two differ in length.

use super::host::Host;
use crate::checkpoint::meta::{Meta, Part};

/// The structure in `.kern` that is the virtual CPU's.
const VCPU_STATE: &str = "vmcx";

/// Who made a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
}

impl Vendor {
    fn name(self) -> &'static str {
        match self {
            Self::Intel => "Intel",
            Self::Amd => "AMD",
        }
    }

    /// By the length of its virtual CPUs' state, in bytes for each (seen with bhyve 14.2); `None`
    /// when it is another release's.
    fn of_state(structs: &[Part], cpus: u32) -> Option<Self> {
        let state = structs.iter().find(|part| part.name == VCPU_STATE)?;
        match state.size.0.checked_div(u64::from(cpus))? {
            664 => Some(Self::Intel),
            772 => Some(Self::Amd),
            _ => None,
        }
    }

    /// By the text of `hw.model`.
    fn of_model(model: &str) -> Option<Self> {
        let is = |words: &[&str]| words.iter().any(|word| model.contains(word));
        if is(&["Intel"]) {
            Some(Self::Intel)
        } else {
            is(&["AMD", "Hygon"]).then_some(Self::Amd)
        }
    }
}

/// Why a checkpoint cannot be restored here: this host's processor is another maker's. `None` also
/// when one of the two cannot be told.
pub(super) fn mismatch(meta: &Meta, host: &Host) -> Option<String> {
    let theirs = Vendor::of_state(&meta.structs, meta.ncpus)?;
    let model = host.run("sysctl", &["-n", "hw.model"]).ok()?;
    let ours = Vendor::of_model(&model)?;
    (ours != theirs).then(|| {
        format!(
            "its guest ran on a processor of {}, and this host's is {}: bhyve's state of a virtual \
             CPU differs between them",
            theirs.name(),
            model.trim()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    #[test]
    fn a_vendor_is_told_by_the_state_or_not_at_all() {
        let state = |size| {
            [Part {
                name: VCPU_STATE.to_owned(),
                size: Bytes(size),
                file_offset: 0,
            }]
        };
        assert_eq!(Vendor::of_state(&state(664), 1), Some(Vendor::Intel));
        assert_eq!(Vendor::of_state(&state(4 * 772), 4), Some(Vendor::Amd));
        assert_eq!(Vendor::of_state(&state(1000), 1), None);
        assert_eq!(Vendor::of_state(&[], 1), None);
        let model = "13th Gen Intel(R) Core(TM) i7-1370P";
        assert_eq!(Vendor::of_model(model), Some(Vendor::Intel));
        assert_eq!(Vendor::of_model("AMD EPYC 7763"), Some(Vendor::Amd));
        assert_eq!(Vendor::of_model("Stand-in Processor"), None);
    }
}
