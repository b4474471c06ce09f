//! Session of restores: one thread for each guest that is being restored.

use std::{
    process::Child,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::restore::{self, Source};
use crate::engine::{Error, GuestOrder, Outcome, RestoredProcess};

/// The result of a thread for its guest.
type ThreadReport = (u64, Result<(RestoredProcess, Child), String>);

/// Restores under way.
#[derive(Debug)]
pub(super) struct Session {
    source: Arc<Source>,
    next: u64,
    sender: Sender<ThreadReport>,
    told: Receiver<ThreadReport>,
    threads: Vec<JoinHandle<()>>,
    /// Guests that live; waited for when they end, while this session lasts.
    children: Vec<Child>,
}

impl Session {
    pub(super) fn new(source: Source) -> Self {
        let (sender, told) = channel();
        Self {
            source: Arc::new(source),
            next: 0,
            sender,
            told,
            threads: Vec::new(),
            children: Vec::new(),
        }
    }

    /// Takes note of guests and threads that have ended.
    fn reap(&mut self) {
        self.threads.retain(|thread| !thread.is_finished());
        self.children
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

impl crate::engine::Session for Session {
    fn start(&mut self, order: &GuestOrder) -> Result<(), Error> {
        let (source, sender, order) =
            (Arc::clone(&self.source), self.sender.clone(), order.clone());
        let number = self.next;
        let thread = thread::Builder::new()
            .name("restore".to_owned())
            .spawn(move || {
                let result = restore::restore(&source, &order).map_err(|e| e.to_string());
                // A session that was dropped has no receiver.
                let _ = sender.send((number, result));
            })
            .map_err(|source| Error::Io {
                action: "start a thread",
                source,
            })?;
        self.threads.push(thread);
        self.next += 1;
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Option<Outcome>, Error> {
        let told = self.told.recv_timeout(timeout);
        // Each time: a thread that has ended keeps its stack until it is joined or dropped.
        self.threads.retain(|thread| !thread.is_finished());
        let (order, result) = match told {
            Ok(told) => told,
            Err(RecvTimeoutError::Timeout) => {
                self.reap();
                return Ok(None);
            }
            Err(RecvTimeoutError::Disconnected) => unreachable!("this session has a sender"),
        };
        let result = result.map(|(restored, child)| {
            self.children.push(child);
            restored
        });
        Ok(Some(Outcome { order, result }))
    }

    fn abort(&mut self) {
        self.source.called_off.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
        self.reap();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // There is no receiver any more for guests that are still being restored.
        crate::engine::Session::abort(self);
    }
}
