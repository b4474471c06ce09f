//! Figures of one step of a density run: how many guests were restored and answered, what they
//! cost, and on which machine.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::snapshot::MemoryDelta;
use brood_core::percentiles::Percentiles;
use brood_core::{
    checkpoint::manifest::EngineKind,
    host::{
        facts::{HostFacts, System},
        kvm::KvmFacts,
    },
    units::Bytes,
};

/// Parameters and measurements of one step. Its JSON keys are fixed: scripts read them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Guests asked for.
    pub guests: u64,
    /// Guests that answered.
    pub answered: u64,
    /// Memory of one guest, in MiB.
    #[serde(serialize_with = "whole_if_whole")]
    pub memory_mib: f64,
    /// Pages that each guest was made to write after it was restored.
    pub dirty_pages: u64,
    /// From the first request to the last answer, in seconds.
    pub wall_s: f64,
    /// Restore latency, in milliseconds: from the request to the guest's own answer.
    pub restore_ms: Percentiles,
    /// `MemAvailable` before less `MemAvailable` after, in MiB.
    pub host_delta_mib: f64,
    /// [`Self::host_delta_mib`] divided by [`Self::guests`].
    pub per_guest_mib: f64,
    /// Why these two cannot be relied on, when they cannot: the host did other things meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<String>,
    /// What a guest's own disk takes where it lies, in MiB: blocks that it shares with no other disk.
    /// Only guests that have a disk have this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_per_guest_mib: Option<f64>,
    /// Where [`Self::per_guest_mib`] goes.
    pub breakdown: Breakdown,
    /// SHA-256 of the checkpoint's memory file before the step, in hexadecimal.
    pub checkpoint_sha256_before: String,
    /// The same after the step; must be equal.
    pub checkpoint_sha256_after: String,
    /// Path of the checkpoint.
    pub checkpoint: String,
    /// Restores in flight at once, at most.
    pub concurrency: u64,
    /// When the step began.
    pub started_at: Timestamp,
    /// Where it ran.
    pub machine: Machine,
    /// What ran the guests.
    pub engine: EngineKind,
    /// Restore latency of each guest that answered, in milliseconds. Only reports keep these.
    #[serde(skip)]
    pub latencies_ms: Vec<f64>,
}

/// Facts of the machine that a step ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// CPU model.
    pub cpu: String,
    /// Cores.
    pub cores: u64,
    /// Memory of the host, in MiB.
    #[serde(serialize_with = "whole_if_whole")]
    pub memory_mib: f64,
    /// KVM's back end and API version, or bhyve's state.
    pub kvm: String,
}

impl Machine {
    /// The facts that a reader of a measurement needs.
    #[must_use]
    pub fn of(facts: &HostFacts) -> Self {
        let kvm = match &facts.system {
            System::Linux(linux) => backend(&linux.kvm),
            System::Freebsd(freebsd) => match freebsd.vmm.vnode_abi {
                Some(abi) => format!("none; vmm, vmm_vnode ABI {abi}"),
                None => "none; vmm without vmm_vnode".to_owned(),
            },
        };
        Self {
            kernel: facts.kernel.clone(),
            cpu: facts.cpu.model.clone(),
            cores: facts.cpu.cores,
            memory_mib: facts.memory.total.as_mib().round(),
            kvm,
        }
    }
}

fn backend(kvm: &KvmFacts) -> String {
    let version = kvm
        .capabilities
        .map(|capabilities| capabilities.api_version);
    match (version, kvm.modules.first()) {
        (None, _) => "none".to_owned(),
        (Some(version), None) => format!("kvm, API {version}"),
        (Some(version), Some(module)) => format!("{module}, API {version}"),
    }
}

/// Host memory per guest by what it is used for, in MiB per guest. The parts add up to
/// [`Step::per_guest_mib`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Breakdown {
    /// Guest memory that this guest has written: no longer shared.
    pub guest_private: f64,
    /// Anonymous memory of the guest's process: stack, heap, written data.
    pub process_private: f64,
    /// Page tables of the process.
    pub page_tables: f64,
    /// Kernel stacks of the process's tasks.
    pub kernel_stack: f64,
    /// Kernel objects.
    pub slab: f64,
    /// Large kernel allocations, such as KVM's arrays for each memory slot.
    pub vmalloc: f64,
    /// Page tables of the guest (shadow or nested).
    pub secondary_page_tables: f64,
    /// Kernel memory kept for each core.
    pub percpu: f64,
    /// What none of the others explains; negative if they count more than was taken.
    pub other: f64,
}

/// The parts of a [`Breakdown`] by name, in the order in which they are shown.
pub const PARTS: [&str; 9] = [
    "guest_private",
    "process_private",
    "page_tables",
    "kernel_stack",
    "slab",
    "vmalloc",
    "secondary_page_tables",
    "percpu",
    "other",
];

impl Breakdown {
    /// Explains `delta` over `guests`, with the private memory of all guests and of all their
    /// processes as the engine counted it. Of no guests, all parts are zero.
    #[must_use]
    pub fn of(
        delta: &MemoryDelta,
        guests: u64,
        guest_private: Bytes,
        process_private: Bytes,
    ) -> Self {
        if guests == 0 {
            return Self::default();
        }
        #[expect(clippy::cast_precision_loss, reason = "guests are far fewer than 2^52")]
        let each = |mib: f64| mib / guests as f64;
        let known = Self {
            guest_private: each(guest_private.as_mib()),
            process_private: each(process_private.as_mib()),
            page_tables: each(delta.page_tables),
            kernel_stack: each(delta.kernel_stack),
            slab: each(delta.slab),
            vmalloc: each(delta.vmalloc),
            secondary_page_tables: each(delta.secondary_page_tables),
            percpu: each(delta.percpu),
            other: 0.0,
        };
        Self {
            other: each(delta.available) - known.parts().iter().sum::<f64>(),
            ..known
        }
    }

    /// The parts, in the order of [`PARTS`].
    #[must_use]
    pub fn parts(&self) -> [f64; 9] {
        [
            self.guest_private,
            self.process_private,
            self.page_tables,
            self.kernel_stack,
            self.slab,
            self.vmalloc,
            self.secondary_page_tables,
            self.percpu,
            self.other,
        ]
    }
}

/// Writes a whole number without a fraction, so that a script's text comparison with `256` holds.
fn whole_if_whole<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked to be whole and small"
    )]
    if value.fract() == 0.0 && value.abs() < 1e15 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A step as a run of 1,000 guests would leave it.
    pub(in crate::density) fn example() -> Step {
        let delta = MemoryDelta {
            available: 510.0,
            page_tables: 55.0,
            kernel_stack: 32.0,
            slab: 180.0,
            vmalloc: 44.0,
            secondary_page_tables: 21.0,
            percpu: 1.0,
            ..MemoryDelta::default()
        };
        Step {
            guests: 1000,
            answered: 1000,
            memory_mib: 256.0,
            dirty_pages: 16,
            wall_s: 2.5,
            restore_ms: Percentiles {
                p50: 1.25,
                p90: 2.5,
                p99: 4.75,
                max: 9.5,
            },
            host_delta_mib: 510.0,
            per_guest_mib: 0.51,
            disk_per_guest_mib: None,
            noise: None,
            breakdown: Breakdown::of(&delta, 1000, Bytes::kib(100_000), Bytes::kib(40_000)),
            checkpoint_sha256_before: "ab".repeat(32),
            checkpoint_sha256_after: "ab".repeat(32),
            checkpoint: "/var/lib/demo".into(),
            concurrency: 1,
            started_at: "2025-01-02T03:04:05Z".parse().unwrap(),
            machine: Machine {
                kernel: "6.18.1".into(),
                cpu: "A <Processor> & more".into(),
                cores: 2,
                memory_mib: 24105.0,
                kvm: "kvm_intel, API 12".into(),
            },
            engine: EngineKind::Kvm,
            latencies_ms: vec![1.0, 1.25, 2.5, 4.75, 9.5],
        }
    }

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let step = example();
        let sum: f64 = step.breakdown.parts().iter().sum();
        assert!((sum - step.per_guest_mib).abs() < 1e-9, "{sum}");
        assert_eq!(
            Breakdown::of(&MemoryDelta::default(), 0, Bytes(1), Bytes(1)).other,
            0.0
        );
    }

    #[test]
    fn json_has_the_fixed_keys_and_comes_back() {
        let step = example();
        let json = serde_json::to_value(&step).unwrap();
        let mut keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "answered",
                "breakdown",
                "checkpoint",
                "checkpoint_sha256_after",
                "checkpoint_sha256_before",
                "concurrency",
                "dirty_pages",
                "engine",
                "guests",
                "host_delta_mib",
                "machine",
                "memory_mib",
                "per_guest_mib",
                "restore_ms",
                "started_at",
                "wall_s",
            ]
        );
        let mut parts: Vec<_> = json["breakdown"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        parts.sort_unstable();
        let mut named = PARTS.map(str::to_owned);
        named.sort_unstable();
        assert_eq!(parts, named);
        assert_eq!(json["memory_mib"].to_string(), "256");
        assert_eq!(json["started_at"], "2025-01-02T03:04:05Z");
        assert_eq!(json["engine"], "kvm");
        let back: Step = serde_json::from_value(json).unwrap();
        assert_eq!(
            back,
            Step {
                latencies_ms: vec![],
                ..step
            }
        );
    }
}
