//! A session of the engine that is kept from one restore to the next: its nursery is warm, with
//! guests ready to take an order, so that a guest costs what a guest costs and no start of a
//! process. Whoever keeps one has a checkpoint's memory mapped and its file open.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    checkpoint::{Checkpoint, FileStamp},
    engine::{Session, restore_lock::RestoreLock},
};

/// A session that stands by.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) session: Box<dyn Session>,
    /// How many orders it was given.
    pub(super) next: u64,
    pub(super) lock: RestoreLock,
    /// What it restores: the files as they were when their content was known to be right.
    pub(super) stamps: Vec<FileStamp>,
    pub(super) park_after: Option<Duration>,
}

impl Standing {
    fn fits(&self, checkpoint: &Checkpoint, park_after: Option<Duration>) -> bool {
        self.stamps == checkpoint.stamps() && self.park_after == park_after
    }
}

/// Sessions that stand by, one for each name of what they are kept for. Shared by threads: whoever
/// takes one has it alone, and another who comes meanwhile begins his own.
#[derive(Default)]
pub struct Slots(Mutex<HashMap<String, Kept>>);

/// A session, and since when it stands by.
type Kept = (Standing, Instant);

impl Slots {
    /// The slot of this name.
    #[must_use]
    pub fn named<'a>(&'a self, name: &'a str) -> Slot<'a> {
        Slot { slots: self, name }
    }

    /// Ends sessions that nobody has used for so long, but for those that are always `wanted`.
    pub fn end_unused(&self, after: Duration, wanted: impl Fn(&str) -> bool) {
        let unused =
            |name: &String, (_, since): &mut Kept| !wanted(name) && since.elapsed() > after;
        let ended: Vec<_> = self.all().extract_if(unused).collect();
        drop(ended);
    }

    /// Ends a session that is not needed any more.
    pub fn end(&self, name: &str) {
        let ended = self.all().remove(name);
        drop(ended);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all().keys()).finish()
    }
}

/// Room for one session that stands by.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    slots: &'a Slots,
    name: &'a str,
}

impl Slot<'_> {
    /// Takes the session out, if it restores this; ends it, if it restores something else.
    pub(super) fn take(
        self,
        checkpoint: &Checkpoint,
        park_after: Option<Duration>,
    ) -> Option<Standing> {
        let kept = self.slots.all().remove(self.name);
        let standing = kept.map(|(standing, _)| standing);
        let mut standing = standing.filter(|s| s.fits(checkpoint, park_after))?;
        // What it tells of guests that ended since is nobody's concern any more. One that broke
        // down meanwhile is found out here.
        loop {
            match standing.session.wait(Duration::ZERO) {
                Ok(Some(_)) => {}
                Ok(None) => return Some(standing),
                Err(_) => return None,
            }
        }
    }

    /// Keeps a session. Of two the later one stays: it restores what is there now.
    pub(super) fn put(self, standing: Standing) {
        let kept = (standing, Instant::now());
        let ended = self.slots.all().insert(self.name.to_owned(), kept);
        drop(ended);
    }
}
