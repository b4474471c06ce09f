//! Session of an engine: a run of restores from one checkpoint, with its orders and their outcomes.

use std::{fmt, path::PathBuf, time::Duration};

use super::{Error, GuestNetwork, Identity};
use crate::{guest_id::GuestId, units::Bytes};

/// What is the same for all guests of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionTerms {
    /// Guests that are idle for this long give their virtual machine back until they are asked
    /// again; never, when there is none.
    pub park_after: Option<Duration>,
    /// Whether their orders have a memory limit, which the kernel enforces.
    pub enforces_limits: bool,
}

/// One guest to restore.
#[derive(Clone, Debug)]
pub struct GuestOrder {
    /// The guest's id.
    pub id: GuestId,
    /// Its identity.
    pub identity: Identity,
    /// Where its own disk is, when one was made for it that it is to read: a file, a device, or a
    /// folder with one file system's files.
    pub disk: Option<PathBuf>,
    /// Memory at which the kernel ends the guest: its private limit with what a guest costs besides.
    /// Only for engines that pass [`Engine::can_enforce_limits`](super::Engine::can_enforce_limits), and for a session whose terms say
    /// so.
    pub memory_limit: Option<Bytes>,
    /// Its network.
    pub network: GuestNetwork,
}

/// What became of an order.
#[derive(Debug)]
pub struct Outcome {
    /// Place of the order among those given to [`Session::start`], from 0.
    pub order: u64,
    /// The guest, or why there is none.
    pub result: Result<RestoredProcess, String>,
}

/// A guest that was restored and has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredProcess {
    /// Id of its process.
    pub pid: i32,
    /// The nonce it holds in memory since it was booted.
    pub nonce: u64,
    /// Requests it has answered since then.
    pub counter: u64,
    /// Version of Landlock whose rules confine the process, as it reports itself; 0 when none do.
    /// `None` where there is no Landlock to speak of.
    pub landlock: Option<u32>,
}

/// A run of restores from one checkpoint.
pub trait Session: fmt::Debug + Send {
    /// Gives out an order. Its outcome comes from [`Self::wait`], in any order.
    ///
    /// # Errors
    /// When the engine takes no more orders.
    fn start(&mut self, order: &GuestOrder) -> Result<(), Error>;

    /// Waits for the next outcome; `None` when none comes within `timeout`.
    ///
    /// # Errors
    /// When the engine broke down: orders without an outcome have failed, and left nothing behind.
    /// An outcome may be told twice (a guest that was restored ends later): the first counts.
    fn wait(&mut self, timeout: Duration) -> Result<Option<Outcome>, Error>;

    /// Gives back what was taken for many orders at once: the next one may be long in coming. Nothing
    /// is under way.
    fn rest(&mut self) {}

    /// Ends the session with whatever it is still restoring. Guests that have answered live on.
    fn abort(&mut self);
}
