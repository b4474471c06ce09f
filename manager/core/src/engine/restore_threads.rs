//! Session of an engine that runs a process for each guest: one thread for each guest that is being
//! restored.

use std::{
    fmt,
    process::{Child, ExitStatus},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Error, GuestOrder, Outcome, RestoredProcess, Session};

/// What restores one guest.
pub(super) trait Restorer: fmt::Debug + Send + Sync + 'static {
    /// Restores a guest. When that fails, nothing of it is left.
    ///
    /// # Errors
    /// Why there is no guest.
    fn restore(&self, order: &GuestOrder) -> Result<(RestoredProcess, Child), String>;

    /// Has restores that go on fail soon.
    fn call_off(&self);

    /// The process of a guest that was restored has ended.
    fn ended(&self, _pid: u32, _status: ExitStatus) {}
}

/// The result of a thread for its guest.
type ThreadReport = (u64, Result<(RestoredProcess, Child), String>);

/// Restores under way.
#[derive(Debug)]
pub(super) struct RestoreThreads<R: Restorer> {
    restorer: Arc<R>,
    next: u64,
    sender: Sender<ThreadReport>,
    told: Receiver<ThreadReport>,
    threads: Vec<JoinHandle<()>>,
    /// Guests that live; waited for when they end, while this session lasts.
    children: Vec<Child>,
}

impl<R: Restorer> RestoreThreads<R> {
    pub(super) fn new(restorer: R) -> Self {
        let (sender, told) = channel();
        Self {
            restorer: Arc::new(restorer),
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
        let restorer = &self.restorer;
        self.children.retain_mut(|child| match child.try_wait() {
            Ok(Some(status)) => {
                restorer.ended(child.id(), status);
                false
            }
            Ok(None) => true,
            Err(_) => false,
        });
    }
}

impl<R: Restorer> Session for RestoreThreads<R> {
    fn start(&mut self, order: &GuestOrder) -> Result<(), Error> {
        let (restorer, sender, order) = (
            Arc::clone(&self.restorer),
            self.sender.clone(),
            order.clone(),
        );
        let number = self.next;
        let thread = thread::Builder::new()
            .name("restore".to_owned())
            .spawn(move || {
                // A session that was dropped has no receiver.
                let _ = sender.send((number, restorer.restore(&order)));
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
        self.restorer.call_off();
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
        self.reap();
    }
}

impl<R: Restorer> Drop for RestoreThreads<R> {
    fn drop(&mut self) {
        // There is no receiver any more for guests that are still being restored.
        self.abort();
    }
}
