//! Session of Linux guests: the nursery forks and restores them, and a thread for each has its agent
//! take the steps that make it a guest of its own. Nobody gets it before they are done.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    signal::Signal,
};

use super::{
    folder::{CALL_LIMIT, Folder},
    machine::waker,
    network,
};
use crate::{
    agent::{StepLimits, prepare_clone},
    checkpoint::LinuxGuest,
    engine::{
        self, Error, GuestOrder, GuestRef, Limit, Outcome, Process, RestoredProcess, agent_ask,
        agent_session::CRASH_PATIENCE,
        guest_disks,
        kvm::{fork_server::nurseries::Nurseries, remains},
    },
    guest_id::GuestId,
};

/// How long a guest may take to its agent's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(50);

/// What all guests of a session have in common.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) run_dir: PathBuf,
    pub(super) guest: LinuxGuest,
    pub(super) called_off: AtomicBool,
}

/// What became of an order.
type Told = (u64, Result<RestoredProcess, String>);

/// A nursery at work, and the threads of the guests that it has restored.
#[derive(Debug)]
pub(super) struct LinuxSession {
    nursery: Nurseries,
    source: Arc<Source>,
    next: u64,
    /// Orders that the nursery has not answered.
    orders: HashMap<u64, GuestOrder>,
    threads: Vec<JoinHandle<()>>,
    tell: Sender<Told>,
    told: Receiver<Told>,
    /// Can be read when a thread has told something.
    wake: Arc<EventFd>,
}

impl LinuxSession {
    pub(super) fn new(nursery: Nurseries, source: Source) -> Result<Self, Error> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = wake.map_err(|e| Error::Io {
            action: "make an eventfd",
            source: e.into(),
        })?;
        let (tell, told) = channel();
        Ok(Self {
            nursery,
            source: Arc::new(source),
            next: 0,
            orders: HashMap::new(),
            threads: Vec::new(),
            tell,
            told,
            wake: Arc::new(wake),
        })
    }

    /// Has a restored guest take its steps.
    fn take_steps(
        &mut self,
        seq: u64,
        order: GuestOrder,
        reported: RestoredProcess,
    ) -> Result<(), Error> {
        let (source, tell) = (Arc::clone(&self.source), self.tell.clone());
        let wake = waker(&self.wake);
        let builder = thread::Builder::new().name("restore".to_owned());
        let thread = builder.spawn(move || {
            // A session that was dropped has no receiver.
            let _ = tell.send((seq, source.restored(&order, reported)));
            wake();
        });
        self.threads.push(thread.map_err(|source| Error::Io {
            action: "start a thread",
            source,
        })?);
        Ok(())
    }

    /// What the nursery says of an order; the outcome, if that is known by it.
    fn hear(&mut self, outcome: Outcome) -> Result<Option<Outcome>, Error> {
        // One that was restored ends later: its thread finds that out, or it had been told.
        let Some(order) = self.orders.remove(&outcome.order) else {
            return Ok(None);
        };
        match outcome.result {
            Ok(process) => {
                self.take_steps(outcome.order, order, process)?;
                Ok(None)
            }
            Err(reason) => {
                let _ = Folder::of(&self.source.run_dir, &order.id).remove();
                Ok(Some(Outcome {
                    result: Err(reason),
                    ..outcome
                }))
            }
        }
    }
}

impl engine::Session for LinuxSession {
    fn start(&mut self, order: &GuestOrder) -> Result<(), Error> {
        let folder = Folder::of(&self.source.run_dir, &order.id);
        folder.create().map_err(|source| Error::Io {
            action: "make the guest's folder",
            source,
        })?;
        if let Err(e) = engine::Session::start(&mut self.nursery, order) {
            let _ = folder.remove();
            return Err(e);
        }
        self.orders.insert(self.next, order.clone());
        self.next += 1;
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Option<Outcome>, Error> {
        let begin = Instant::now();
        loop {
            let _ = self.wake.read();
            if let Ok((order, result)) = self.told.try_recv() {
                self.threads.retain(|thread| !thread.is_finished());
                return Ok(Some(Outcome { order, result }));
            }
            let left = timeout.saturating_sub(begin.elapsed());
            let wake = Arc::clone(&self.wake);
            let heard = self.nursery.wait_beside(Some(wake.as_fd()), left)?;
            if let Some(outcome) = heard.map(|heard| self.hear(heard)).transpose()?.flatten() {
                return Ok(Some(outcome));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    fn rest(&mut self) {
        self.nursery.rest();
    }

    fn abort(&mut self) {
        self.source.called_off.store(true, Ordering::Relaxed);
        self.nursery.abort();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for (_, order) in self.orders.drain() {
            let _ = Folder::of(&self.source.run_dir, &order.id).remove();
        }
    }
}

impl Drop for LinuxSession {
    fn drop(&mut self) {
        // There is no receiver any more for guests that are still being restored.
        self.source.called_off.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Source {
    /// Everything from the start of the guest's processors until it may be handed out.
    fn restored(
        &self,
        order: &GuestOrder,
        reported: RestoredProcess,
    ) -> Result<RestoredProcess, String> {
        let folder = Folder::of(&self.run_dir, &order.id);
        let process = Process::with_pid(reported.pid);
        let process = process.map_err(|e| format!("cannot look at the guest's process: {e}"))?;
        let result = match process {
            None => Err(Error::Gone),
            Some(process) => self.bring_up(order, &folder, process),
        };
        let result = result.map(|restored| RestoredProcess {
            landlock: reported.landlock,
            ..restored
        });
        result.map_err(|error| {
            let reason = match (self.called_off.load(Ordering::Relaxed), error) {
                (true, _) => "the restore was called off".to_owned(),
                (false, Error::Gone) => {
                    let end = self.end_of(&order.id);
                    format!("its process ended ({end}){}", last_words(&folder))
                }
                (false, Error::Timeout(_)) => format!(
                    "its agent did not answer within {} s{}",
                    ANSWER_TIMEOUT.as_secs(),
                    last_words(&folder)
                ),
                (false, error) => error.to_string(),
            };
            if let Some(process) = process {
                // One that is gone already is what is wanted.
                let _ = process.signal(Signal::SIGKILL);
            }
            // A later command finds by the folder what cannot be removed now.
            let _ = super::engine::remove(&self.run_dir, &order.id);
            reason
        })
    }

    /// How a guest ended, as its nursery records it a moment later.
    fn end_of(&self, id: &GuestId) -> String {
        let begin = Instant::now();
        loop {
            match remains::ended(GuestRef::new(&self.run_dir, id)) {
                Ok(Some(reason)) => return reason,
                Err(e) => return e.to_string(),
                Ok(None) if begin.elapsed() < CRASH_PATIENCE => {
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => return "nothing was left to see why".to_owned(),
            }
        }
    }

    fn bring_up(
        &self,
        order: &GuestOrder,
        folder: &Folder,
        process: Process,
    ) -> Result<RestoredProcess, Error> {
        let disk = guest_disks::of_restored(self.guest.disk, order.disk.as_deref());
        let disk = disk.map_err(|e| Error::Refused(e.to_string()))?;
        let disk = disk.map(|disk| own_disk(folder, &disk.path)).transpose();
        let disk = disk.map_err(|source| Error::Io {
            action: "open the guest's disk",
            source,
        })?;
        let network = network::open(self.guest.network, &order.network, &order.identity.name)?;
        if let Some(tap) = network.as_ref().and_then(network::HostEnd::tap) {
            folder.set_tap(tap).map_err(|source| Error::Io {
                action: "record the guest's tap",
                source,
            })?;
        }
        let began = Instant::now();
        let limit = || Limit {
            timeout: ANSWER_TIMEOUT.saturating_sub(began.elapsed()),
            cancelled: &self.called_off,
        };
        let begun = folder.begin(disk.as_ref(), network.as_ref(), order.identity.mac, limit());
        begun.map_err(of_process)?;
        drop(network);
        let wanted = || match process.may_live() {
            true => Ok(()),
            false => Err(Error::Gone),
        };
        let agent = folder.own_agent(limit(), &wanted).map_err(|e| match e {
            agent_ask::Error::Lost(e) | agent_ask::Error::Other(e) => e,
        })?;
        let nonce = u128::from_str_radix(&self.guest.nonce, 16);
        let nonce = nonce.ok().map(u128::to_be_bytes);
        let has_card = self.guest.network.has_card();
        let identity = agent_ask::clone_identity(&order.identity, has_card);
        let prepared = prepare_clone(&agent, &identity, nonce, StepLimits::default());
        let prepared = prepared.map_err(|e| Error::Refused(e.to_string()))?;
        // The channel is free for the next one who asks.
        drop(agent);
        let limit = Limit {
            timeout: limit().timeout.max(CALL_LIMIT),
            ..limit()
        };
        folder.hand_out(limit).map_err(of_process)?;
        folder.set_ready(process).map_err(|source| Error::Io {
            action: "record the guest",
            source,
        })?;
        let ready = prepared.ready;
        Ok(RestoredProcess {
            pid: process.pid,
            nonce: ready
                .as_ref()
                .map_or(0, |ready| agent_ask::short(&ready.nonce)),
            counter: ready.map_or(0, |ready| ready.counter),
            landlock: None,
        })
    }
}

/// What the guest said last on its console, as an end of a sentence.
fn last_words(folder: &Folder) -> String {
    let said = folder.last_line();
    let said = said.map(|line| format!("; the last on its console: {line}"));
    said.unwrap_or_default()
}

/// The error of a call to a guest's process: it was not the agent that did not answer.
fn of_process(error: Error) -> Error {
    match error {
        Error::Timeout(limit) => Error::Refused(format!(
            "its process did not answer within {} s",
            limit.as_secs()
        )),
        error => error,
    }
}

/// Opens the disk that a guest has to itself, and notes where it is.
fn own_disk(folder: &Folder, path: &Path) -> io::Result<File> {
    folder.set_disk(path)?;
    OpenOptions::new().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        checkpoint::Network,
        engine::{GuestNetwork, Identity, kvm::exit_reason::ExitReason},
    };

    /// Whether a guest was slow or has died, and of what, is not to be guessed.
    #[test]
    fn a_guest_that_ends_while_it_is_restored_is_told_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let id = GuestId([7; 8]);
        let folder = Folder::of(dir.path(), &id);
        folder.create().unwrap();
        fs::write(folder.console(), "booting\nlast words\n").unwrap();
        let reason = ExitReason::OutOfMemory { group: None };
        let record = dir.path().join(format!("{id}.exit"));
        fs::write(record, serde_json::to_vec(&reason).unwrap()).unwrap();
        let source = Source {
            run_dir: dir.path().to_owned(),
            guest: LinuxGuest {
                machine_version: 1,
                virtualization: "svm".to_owned(),
                nonce: String::new(),
                image: String::new(),
                cpu_template: "host".to_owned(),
                network: Network::None,
                root: false,
                disk: None,
            },
            called_off: AtomicBool::new(false),
        };
        let order = GuestOrder {
            id,
            identity: Identity::fresh("guest-1").unwrap(),
            disk: None,
            memory_limit: None,
            network: GuestNetwork::default(),
        };
        let reported = RestoredProcess {
            // No process has this number.
            pid: i32::MAX,
            nonce: 0,
            counter: 0,
            landlock: None,
        };
        let failed = source.restored(&order, reported).unwrap_err();
        assert_eq!(
            failed,
            format!("its process ended ({reason}); the last on its console: last words")
        );
        assert!(!folder.exists());
    }
}
