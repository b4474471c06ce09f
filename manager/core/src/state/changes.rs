//! Changes of a database by the threads of a process: made one after the other, and synced to the
//! disk once for many of them.
//!
//! `tests/tests/interleavings.rs` tries all orders in which threads can come, with other types in
//! the place of `super::sync`.

use super::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// This process's changes of one database.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Turn of the thread that changes something. A thread that finds SQLite's lock held sleeps and
    /// tries again, so of fifty threads at once most would sleep while none writes.
    turn: Mutex<()>,
    made: AtomicU64,
    /// How many of them are on the disk.
    kept: Mutex<u64>,
}

impl Changes {
    /// Makes a change when it is this thread's turn. When this returns, `sync` has put it on the
    /// disk, called by this thread or by another. `change` says whether it changed anything.
    pub(super) fn keep<T, E>(
        &self,
        change: impl FnOnce() -> Result<(T, bool), E>,
        sync: impl FnOnce() -> Result<(), E>,
    ) -> Result<T, E> {
        let turn = lock(&self.turn);
        let (value, changed) = change()?;
        if changed {
            // Whoever syncs so many has what each of them has written.
            let this = self.made.fetch_add(1, Ordering::AcqRel) + 1;
            drop(turn);
            self.sync(this, sync)?;
        }
        Ok(value)
    }

    fn sync<E>(&self, this: u64, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut kept = lock(&self.kept);
        if *kept < this {
            let made = self.made.load(Ordering::Acquire);
            sync()?;
            *kept = made;
        }
        Ok(())
    }

    /// How many changes were made, and how many of them are on the disk.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.made.load(Ordering::Acquire), *lock(&self.kept))
    }
}

/// A panic leaves a valid value: nothing here is changed halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
