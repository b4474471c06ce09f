//! The guest's system: identity, entropy, clock, file systems, power.

mod clock;
mod entropy;
#[cfg(target_os = "linux")]
mod facts;
#[cfg(target_os = "linux")]
mod freeze;
mod hooks;
mod identity;
mod power;

use std::sync::Mutex;

use brood_agent_protocol::{Identity, Reply};

pub(crate) use clock::{clock, set_clock};
pub(crate) use entropy::{random, reseed};
#[cfg(target_os = "linux")]
pub(crate) use facts::facts;
pub(crate) use hooks::HookPrograms;
pub(crate) use power::shutdown;

use crate::serve::Answer;

/// What the agent remembers of its system.
#[derive(Debug, Default)]
pub(crate) struct System {
    /// What the guest was told it is, for hooks.
    identity: Mutex<Identity>,
    #[cfg(target_os = "linux")]
    frozen: std::sync::Arc<freeze::Frozen>,
}

pub(crate) fn sync() -> Answer {
    nix::unistd::sync();
    Ok(Reply::Nothing)
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::time::Duration;

    use brood_agent_protocol::OsBytes;

    use super::{Answer, System};
    use crate::failure::unsupported;

    pub(crate) fn facts() -> Answer {
        Err(unsupported("report facts"))
    }

    impl System {
        pub(crate) fn freeze(&self, _: &[OsBytes], _: Duration) -> Answer {
            Err(unsupported("freeze file systems"))
        }

        pub(crate) fn thaw(&self) -> Answer {
            Ok(brood_agent_protocol::Reply::Nothing)
        }
    }
}
#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::facts;
