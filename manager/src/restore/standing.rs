//! A session of the engine that is kept from one restore to the next: its nursery is warm, with
//! guests ready to take an order, so that a guest costs what a guest costs and no start of a
//! process. Whoever keeps one has a checkpoint's memory mapped and its file open.

use std::{collections::HashMap, fmt, time::Duration};

use crate::{
    checkpoint::{Checkpoint, FileStamp},
    engine::Session,
    state::SessionLock,
};

/// A session that stands by.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) session: Box<dyn Session>,
    /// How many orders it was given.
    pub(super) next: u64,
    pub(super) lock: SessionLock,
    /// What it restores: the files as they were when their content was known to be right.
    pub(super) stamps: Vec<FileStamp>,
    pub(super) park_after: Option<Duration>,
}

impl Standing {
    fn fits(&self, checkpoint: &Checkpoint, park_after: Option<Duration>) -> bool {
        self.stamps == checkpoint.stamps() && self.park_after == park_after
    }
}

/// Room for one session that stands by.
#[derive(Debug, Default)]
pub struct Slot(Option<Standing>);

impl Slot {
    /// Takes the session out, if it restores this; ends it, if it restores something else.
    pub(super) fn take(
        &mut self,
        checkpoint: &Checkpoint,
        park_after: Option<Duration>,
    ) -> Option<Standing> {
        let mut standing = self.0.take().filter(|s| s.fits(checkpoint, park_after))?;
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

    pub(super) fn put(&mut self, standing: Standing) {
        self.0 = Some(standing);
    }
}

/// Sessions that stand by, by the name of what they are kept for.
#[derive(Default)]
pub struct Slots(HashMap<String, Slot>);

impl Slots {
    /// The slot of this name.
    pub fn named(&mut self, name: &str) -> &mut Slot {
        self.0.entry(name.to_owned()).or_default()
    }

    /// Ends a session that is not needed any more.
    pub fn end(&mut self, name: &str) {
        self.0.remove(name);
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
