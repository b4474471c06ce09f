//! Interleavings: what threads share, tried in all orders in which they can come.
//!
//! The files are the product's own. loom's types stand in them in the place of the standard
//! library's, and have the threads of a test take turns in every way that the memory model allows,
//! with so many preemptions at most. A thread that would wait for ever fails its test.

#[path = "../../manager/core/src/state/changes.rs"]
mod changes;
#[path = "../../manager/src/api/fills.rs"]
mod fills;
#[allow(dead_code, reason = "the product uses all of it")]
#[path = "../../manager/core/src/agent/request.rs"]
mod request;

/// What the files above take for the standard library's.
mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};
}

use brood_agent_protocol::Stream;
use brood_core::agent::Loss;
use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use self::{
    changes::Changes,
    fills::Fills,
    request::{Incoming, Missing, Pending},
};

const POOL: &str = "web";

/// Three find nearly all faults, says loom's manual, and keep this to seconds.
const PREEMPTIONS: usize = 3;

fn in_all_orders(threads: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(threads);
}

#[test]
fn a_fill_that_begins_when_the_daemon_ends_is_ended() {
    in_all_orders(|| {
        let fills = Fills::default();
        let filling = thread::spawn({
            let fills = fills.clone();
            move || fills.begin(POOL)
        });
        fills.end();
        assert!(filling.join().unwrap().load(Relaxed));
    });
}

#[test]
fn a_pool_is_not_filled_while_it_is_changed_and_is_afterwards() {
    in_all_orders(|| {
        let fills = Fills::default();
        let change = {
            let fills = fills.clone();
            move || drop(fills.interrupt(POOL))
        };
        let other = thread::spawn(change);
        let filling = thread::spawn({
            let fills = fills.clone();
            move || fills.begin(POOL)
        });
        let interruption = fills.interrupt(POOL);
        let cancelled = filling.join().unwrap();
        assert!(cancelled.load(Relaxed), "it goes on under the change");
        fills.done(POOL);
        assert!(fills.begin(POOL).load(Relaxed), "one began meanwhile");
        fills.done(POOL);
        assert!(!fills.begin("other").load(Relaxed));
        drop(interruption);
        other.join().unwrap();
        assert!(!fills.begin(POOL).load(Relaxed), "it is never filled again");
    });
}

/// A file, by its bits: what threads have written, and what of it was synced.
#[derive(Debug, Default)]
struct Disk {
    written: AtomicU64,
    synced: AtomicU64,
}

impl Disk {
    fn write(&self, bit: u64) {
        self.written.fetch_or(bit, Relaxed);
    }

    fn sync(&self) {
        self.synced.store(self.written.load(Relaxed), Relaxed);
    }

    fn has(&self, bit: u64) -> bool {
        self.synced.load(Relaxed) & bit != 0
    }
}

/// Makes a change of one bit; its sync fails if it is called, and is to.
fn change(changes: &Changes, disk: &Disk, bit: u64, fails: bool) -> Result<(), ()> {
    let write = || {
        disk.write(bit);
        Ok(((), true))
    };
    changes.keep(write, || match fails {
        true => Err(()),
        false => {
            disk.sync();
            Ok(())
        }
    })
}

#[test]
fn a_change_that_was_made_is_on_the_disk_whoever_has_synced_it() {
    in_all_orders(|| {
        let (changes, disk) = (Arc::new(Changes::default()), Arc::new(Disk::default()));
        let all = [1, 2].map(|bit| {
            let (changes, disk) = (Arc::clone(&changes), Arc::clone(&disk));
            thread::spawn(move || {
                change(&changes, &disk, bit, false).unwrap();
                assert!(disk.has(bit));
            })
        });
        change(&changes, &disk, 4, false).unwrap();
        assert!(disk.has(4));
        for thread in all {
            thread.join().unwrap();
        }
        assert_eq!(changes.counts(), (3, 3));
    });
}

#[test]
fn a_sync_that_fails_is_made_again_for_whoever_comes_next() {
    in_all_orders(|| {
        let (changes, disk) = (Arc::new(Changes::default()), Arc::new(Disk::default()));
        let failing = thread::spawn({
            let (changes, disk) = (Arc::clone(&changes), Arc::clone(&disk));
            move || {
                // It is made if the other one has synced it as well.
                let made = change(&changes, &disk, 1, true);
                assert!(made.is_err() || disk.has(1));
            }
        });
        change(&changes, &disk, 2, false).unwrap();
        assert!(disk.has(2));
        failing.join().unwrap();
    });
}

#[test]
fn what_a_guest_said_before_its_end_comes_first() {
    in_all_orders(|| {
        let pending = Arc::new(Pending::default());
        let reader = thread::spawn({
            let pending = Arc::clone(&pending);
            move || {
                pending.data(Stream::Output, vec![7]).unwrap();
                pending.lose(Loss::Closed);
            }
        });
        let first = pending.next(None);
        assert!(matches!(first, Ok(Incoming::Data(Stream::Output, bytes)) if bytes == [7]));
        assert!(matches!(
            pending.next(None),
            Err(Missing::Lost(Loss::Closed))
        ));
        reader.join().unwrap();
    });
}

#[test]
fn credit_is_taken_once_and_whoever_gets_none_is_told_of_the_end() {
    in_all_orders(|| {
        let pending = Arc::new(Pending::default());
        // The window that is open from the beginning.
        pending.credit(usize::MAX, None).unwrap();
        let take = |pending: Arc<Pending>| move || pending.credit(3, None).ok().flatten();
        let other = thread::spawn(take(Arc::clone(&pending)));
        let reader = thread::spawn({
            let pending = Arc::clone(&pending);
            move || {
                pending.grant(4).unwrap();
                pending.lose(Loss::Closed);
            }
        });
        let taken = [take(pending)(), other.join().unwrap()];
        reader.join().unwrap();
        let sum: usize = taken.iter().flatten().sum();
        // The session may have ended before anybody looked at the credit.
        assert!(sum <= 4, "{taken:?}");
        assert!(taken.iter().flatten().all(|bytes| [1, 3].contains(bytes)));
    });
}
