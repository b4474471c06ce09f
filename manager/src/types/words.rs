//! Schemas of the core's plain types: enums without data, and amounts. An answer holds the core's own
//! value, and names its schema by `#[schema(value_type = ...)]`.

use utoipa::ToSchema;

use brood_core::{checkpoint, checkpoint::manifest, guests, host::doctor, pool, state};

/// Declares the schema of an enum of the core. A variant that only one of the two has is an error of
/// the compiler.
macro_rules! words {
    ($(#[$about:meta])* $name:ident = $core:ty { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl From<$core> for $name {
            fn from(core: $core) -> Self {
                match core { $(<$core>::$variant => Self::$variant,)+ }
            }
        }
    };
}

/// An amount of memory or storage in bytes. Serialized as a plain number of bytes.
#[derive(Clone, Copy, Debug, ToSchema)]
pub struct Bytes(pub u64);

words! {
    /// Which engine made a checkpoint, and so which can restore it.
    EngineKind = manifest::EngineKind {
        /// Linux KVM, embedded in brood.
        Kvm,
        /// FreeBSD bhyve.
        Bhyve,
        /// QEMU, a process for each guest.
        Qemu,
    }
}

words! {
    /// What executes the instructions of a QEMU guest.
    Accelerator = checkpoint::Accelerator {
        /// The processor, through the host's KVM.
        Kvm,
        /// QEMU itself, which translates them.
        Tcg,
    }
}

words! {
    /// Protocol of an agent at a serial port.
    AgentProtocol = checkpoint::AgentProtocol {
        /// Lines of text.
        Lines,
        /// Frames, as brood-agent speaks.
        Frames,
    }
}

words! {
    /// What a guest reaches.
    Network = checkpoint::Network {
        /// Nothing.
        None,
        /// What this host's user reaches, from behind an address of its own.
        User,
        /// This host, by a network device of the guest's own (KVM).
        Tap,
    }
}

words! {
    /// What keeps a disk snapshot, and so what makes clones of it.
    DiskProvider = manifest::DiskProvider {
        /// A snapshot of a ZFS dataset.
        Zfs,
        /// A file beside the bundle that shares blocks with others.
        Reflink,
        /// A file beside the bundle that all guests read and none writes.
        Shared,
    }
}

words! {
    /// What a guest is doing.
    GuestState = guests::GuestState {
        /// Another command is restoring it.
        Restoring,
        /// It runs, or waits for a request.
        Running,
        /// It is stopped, and holds its memory.
        Paused,
        /// It ended by itself or was killed.
        Dead,
    }
}

words! {
    /// How far an entry has come, as recorded.
    EntryState = state::EntryState {
        /// Its guest is being restored; it cannot be claimed yet.
        Filling,
        /// Its guest is stopped, and has done nothing but answer its first request.
        Hot,
        /// A claimer has it.
        Claimed,
        /// Its guest is to be destroyed.
        Releasing,
    }
}

words! {
    /// How far a claim's guest is suspended.
    SuspendedClaimState = state::SuspendedClaimState {
        /// Its bundle is being written; until that is sealed the guest is what counts.
        Suspending,
        /// Its bundle is what counts.
        Suspended,
        /// It is being restored; until it has answered the bundle is what counts.
        Resuming,
    }
}

words! {
    /// Which tier an entry came from.
    Tier = pool::Tier {
        /// It was there, and was continued.
        Hot,
        /// It was restored for this claim.
        Cold,
    }
}

words! {
    /// What had to be done to a pool.
    ApplyOutcome = pool::ApplyOutcome {
        /// There was none.
        Made,
        /// It was otherwise.
        Changed,
        /// Nothing.
        Same,
    }
}

words! {
    /// How a fact bears on restoring the guests that are wanted.
    Status = doctor::Status {
        /// Good as it is.
        Ok,
        /// Works, but slower, denser or safer with a change.
        Warn,
        /// Stands in the way.
        Fail,
    }
}
