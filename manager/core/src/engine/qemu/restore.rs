//! Restore of one guest from a checkpoint: its QEMU, and the steps in the guest that make it a guest
//! of its own. Nobody gets it before they are done.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Seek, Write},
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::{
    command::{self, Machine},
    folder::{Folder, Record},
    jail::Walls,
    memory_image::MemoryImage,
    remove,
};
use crate::{
    agent::{Agent, AgentError, prepare_clone},
    checkpoint::QemuGuest,
    engine::{
        self, GuestOrder, Limit, Process, RestoredProcess, agent_ask,
        agent_session::CRASH_PATIENCE, guest_disks, network, restore_threads::Restorer,
    },
    guest_id::GuestId,
    units::Bytes,
};

/// How long a guest may take from its process's start to its agent's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(50);

/// Why a guest was not restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot {action}: {source}")]
    Io {
        action: &'static str,
        source: io::Error,
    },
    #[error("{0}")]
    Port(#[from] network::PortTaken),
    #[error("QEMU ended ({status}){}", .said.as_ref().map(|s| format!(": {s}")).unwrap_or_default())]
    Ended {
        status: ExitStatus,
        said: Option<String>,
    },
    #[error("its agent did not answer within {} s{}", ANSWER_TIMEOUT.as_secs(),
        .console.as_ref().map(|s| format!("; the last on its console: {s}")).unwrap_or_default())]
    NotReady { console: Option<String> },
    #[error("{0}")]
    Step(#[from] crate::agent::StepError),
    #[error("cannot reach its agent: {0}")]
    Agent(engine::Error),
    #[error("{0}")]
    Disk(#[from] guest_disks::NoDisk),
    #[error("the restore was called off")]
    CalledOff,
}

impl Error {
    /// Whether the channel to the agent ended.
    fn is_of_channel(&self) -> bool {
        match self {
            Self::Agent(_) => true,
            Self::Step(failed) => matches!(failed.source, AgentError::Lost { .. }),
            _ => false,
        }
    }
}

fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// What all guests of a session have in common.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) run_dir: PathBuf,
    /// The bundle, `DIR/NAME`.
    pub(super) bundle: String,
    pub(super) memory: Bytes,
    pub(super) vcpus: u32,
    /// State of QEMU's devices.
    pub(super) state: Vec<u8>,
    pub(super) guest: QemuGuest,
    pub(super) image: MemoryImage,
    /// The file with the root file system, if that is on a disk.
    pub(super) root: Option<PathBuf>,
    /// Held by all that may still be restoring.
    pub(super) lock: File,
    pub(super) called_off: AtomicBool,
    /// Processes of guests under way.
    pub(super) restoring: Mutex<Vec<u32>>,
    /// Guests that were restored, by their processes.
    pub(super) restored: Mutex<HashMap<u32, GuestId>>,
}

/// What a thread that panicked was doing to a list does not matter.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Restorer for Source {
    fn restore(&self, order: &GuestOrder) -> Result<(RestoredProcess, Child), String> {
        let folder = Folder::of(&self.run_dir, &order.id);
        let result = self
            .start(order, &folder)
            .and_then(|(mut child, landlock)| {
                let pid = child.id();
                locked(&self.restoring).push(pid);
                let brought = self.bring_up(order, &folder, &mut child);
                if brought.is_err() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                // Until here nobody has waited for it, so the number is its own.
                locked(&self.restoring).retain(|other| *other != pid);
                let restored = RestoredProcess {
                    landlock: Some(landlock),
                    ..brought?
                };
                Ok((restored, child))
            });
        match result {
            Ok((restored, child)) => {
                locked(&self.restored).insert(child.id(), order.id);
                Ok((restored, child))
            }
            Err(e) => {
                // The error is told; a later command finds by the folder what cannot be removed now.
                let _ = remove(&self.run_dir, &order.id);
                Err(e.to_string())
            }
        }
    }

    fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
        for pid in &*locked(&self.restoring) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    fn ended(&self, pid: u32, status: ExitStatus) {
        if let Some(id) = locked(&self.restored).remove(&pid) {
            Folder::of(&self.run_dir, &id).set_exit(&status.to_string());
        }
    }
}

impl Source {
    /// Starts the guest's QEMU; with it comes the version of Landlock that confines it.
    fn start(&self, order: &GuestOrder, folder: &Folder) -> Result<(Child, u32), Error> {
        if self.called_off.load(Ordering::Relaxed) {
            return Err(Error::CalledOff);
        }
        folder.create().map_err(io("make the guest's folder"))?;
        network::check_ports(&order.network.forwards)?;
        let record = Record {
            name: order.identity.name.clone(),
            checkpoint: self.bundle.clone(),
            memory: self.memory,
            guest: self.guest.clone(),
            image: self.image.name().to_owned(),
            disk: guest_disks::of_restored(self.guest.disk, order.disk.as_deref())?,
        };
        folder.set_record(&record).map_err(io("record the guest"))?;
        let machine = Machine {
            guest: &self.guest,
            vcpus: self.vcpus,
            memory: self.memory,
            file: &self.image.path(),
            writes_file: false,
            folder,
            network: &order.network,
            root: self.root.as_deref(),
            disk: record.disk.as_ref(),
            walls: Walls::of_host().map_err(io("see what confines it"))?,
        };
        let mut command = machine.command();
        // It reads the state from its standard input, and then lets the guest run.
        command.args(["-incoming", "fd:0"]);
        let state = self.state().map_err(io("lay out the guest's state"))?;
        command::start(&machine, command, state, &self.lock).map_err(io("start QEMU"))
    }

    /// The state as a file that nobody else reads: the bundle may be another by now.
    fn state(&self) -> io::Result<Stdio> {
        let mut file = File::from(memfd_create(c"brood-state", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&self.state)?;
        file.rewind()?;
        Ok(file.into())
    }

    /// Everything from the start of QEMU until the guest may be handed out.
    fn bring_up(
        &self,
        order: &GuestOrder,
        folder: &Folder,
        child: &mut Child,
    ) -> Result<RestoredProcess, Error> {
        let agent = self.agent(folder, child)?;
        let nonce = nonce(&self.guest.nonce);
        let identity = agent_ask::clone_identity(&order.identity, self.guest.network.has_card());
        let prepared = prepare_clone(&agent, &identity, nonce, super::step_limits(&self.guest));
        let prepared = prepared.map_err(|e| self.why(folder, child, Error::Step(e)))?;
        // Its port is free for the next one who asks.
        drop(agent);
        let process = Process::with_pid(child.id().cast_signed());
        let process = process.map_err(io("look at the guest's process"))?;
        let process = process.filter(Process::may_live).ok_or_else(|| {
            let console = folder.last_of_console();
            self.why(folder, child, Error::NotReady { console })
        })?;
        folder.set_ready(process).map_err(io("record the guest"))?;
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

    /// Waits for the agent.
    fn agent(&self, folder: &Folder, child: &mut Child) -> Result<Agent, Error> {
        let limit = Limit {
            timeout: ANSWER_TIMEOUT,
            cancelled: &self.called_off,
        };
        let process = Process::with_pid(child.id().cast_signed());
        let process = process.map_err(io("look at the guest's process"))?;
        let wanted = || match process {
            Some(process) if process.may_live() => Ok(()),
            _ => Err(engine::Error::Gone),
        };
        folder.own_agent(limit, &wanted).map_err(|e| {
            let (agent_ask::Error::Lost(e) | agent_ask::Error::Other(e)) = e;
            let console = folder.last_of_console();
            let error = match e {
                engine::Error::Timeout(_) | engine::Error::Gone => Error::NotReady { console },
                other => Error::Agent(other),
            };
            self.why(folder, child, error)
        })
    }

    /// The reason behind an error: that the restore was called off, or that QEMU has ended. A QEMU
    /// that is killed closes its sockets before its end can be seen.
    fn why(&self, folder: &Folder, child: &mut Child, error: Error) -> Error {
        if self.called_off.load(Ordering::Relaxed) {
            return Error::CalledOff;
        }
        let patience = if error.is_of_channel() {
            CRASH_PATIENCE
        } else {
            Duration::ZERO
        };
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Error::Ended {
                    status,
                    said: folder.last_words(),
                };
            }
            if begin.elapsed() >= patience {
                return error;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A nonce, from its hexadecimal digits.
fn nonce(text: &str) -> Option<[u8; 16]> {
    Some(u128::from_str_radix(text, 16).ok()?.to_be_bytes())
}
