//! Boot of an image, and the first checkpoint: a guest is started, waited for, made warm, and sealed.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use brood_machine::cpu_template::CpuTemplate;
use serde_json::json;

use super::{
    Qemu, TEMPLATES, cancelled,
    command::{self, Machine, devices},
    folder::Folder,
    jail::Walls,
    qmp::Qmp,
    remove,
    suspend::{end, save_state},
};
use crate::{
    agent::{Agent, prepare_suspend, rehearse},
    checkpoint::{
        BundlePath, Description, QemuGuest, Writer,
        manifest::{EngineKind, Manifest, Memory, Segment},
    },
    engine::{
        Error, GuestNetwork, Limit, Process, agent_ask,
        agent_session::CRASH_PATIENCE,
        boot::{
            Boot, BootObserver, Booted, make_warm, punch_zeros, step, template_identity, to_name,
        },
        guest_disks::{self, BootDisk, NewDisk},
        template_lock::{self, TemplateLock, TemplateParts},
    },
    guest_id::GuestId,
    units::Bytes,
};

/// Memory that a guest may have: enough for a kernel, and all of it below the hole for devices
/// (`pc_init1()` of QEMU).
const MEMORY: std::ops::RangeInclusive<Bytes> = Bytes::mib(48)..=Bytes::gib(3);
/// Most virtual CPUs.
const VCPUS_MAX: u32 = 64;
/// How long the agent has for its part of the seal.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// How often a QEMU is looked at that may be ending.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// The guest that is booted, and what is left of it when something fails.
struct Template<'a> {
    run_dir: &'a Path,
    id: GuestId,
    lock: TemplateLock,
    folder: Folder,
    child: Option<Child>,
    disk: Option<NewDisk>,
}

impl Drop for Template<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Before the folder, which may be where it is.
        self.disk = None;
        // The next look tries again what cannot be removed now.
        if remove(self.run_dir, &self.id).is_ok() {
            self.lock.forget();
        }
    }
}

impl Qemu {
    /// Boots an image and makes a checkpoint of it. QEMU works in the run folder meanwhile.
    ///
    /// # Errors
    /// When QEMU is not installed, the guest does not become ready, a command in it fails, or the
    /// bundle cannot be written. Nothing is left then.
    pub fn make_checkpoint(
        &self,
        run_dir: &Path,
        to: &BundlePath,
        boot: &Boot<'_>,
        observer: BootObserver<'_>,
    ) -> Result<Manifest, Error> {
        check(boot)?;
        let mut guest = self.host.new_guest(&boot.image.digest, boot.network)?;
        let run_dir = run_dir.canonicalize().map_err(io("enter the run folder"))?;
        template_lock::sweep(&TEMPLATES, &run_dir)
            .map_err(io("look for guests of killed commands"))?;
        let id = GuestId::random().map_err(io("draw a random number"))?;
        let source = match boot.disk {
            Some(BootDisk::Of(source)) => Some(source),
            Some(BootDisk::Empty(_)) | None => None,
        };
        let parts = TemplateParts::new(boot.owner, source, to)?;
        let mut template = Template {
            run_dir: &run_dir,
            id,
            lock: TemplateLock::take(&TEMPLATES, &run_dir, &id, &parts)?,
            folder: Folder::of(&run_dir, &id),
            child: None,
            disk: None,
        };
        let writer = Writer::create(to, boot.memory)?;
        // Only now it has a folder.
        let to = &to.absolute()?;
        let created = template.folder.create();
        created.map_err(io("make the guest's folder"))?;
        guest.root = boot.root.is_some();
        guest.disk = template.make_disk(boot)?;
        template.start(&guest, boot, writer.memory())?;
        (observer.booted)(Booted::Started);
        template.seal(guest, boot, (writer, to), observer)
    }
}

fn check(boot: &Boot<'_>) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::Refused(reason));
    if !MEMORY.contains(&boot.memory) || !boot.memory.0.is_multiple_of(1 << 20) {
        return refuse(format!(
            "guest memory is whole MiB from {} to {}, not {}",
            MEMORY.start(),
            MEMORY.end(),
            boot.memory
        ));
    }
    if !(1..=VCPUS_MAX).contains(&boot.vcpus) {
        return refuse(format!("a guest has 1 to {VCPUS_MAX} virtual CPUs"));
    }
    if boot.cpu_template != CpuTemplate::Host {
        return refuse(
            "CPU templates are the KVM engine's (--engine kvm); QEMU names processors of its own"
                .to_owned(),
        );
    }
    super::has_network(boot.network)?;
    guest_disks::check(boot.disk)
}

impl Template<'_> {
    /// Makes the guest's own disk; returns its size.
    fn make_disk(&mut self, boot: &Boot<'_>) -> Result<Option<Bytes>, Error> {
        let Some(disk) = boot.disk else {
            return Ok(None);
        };
        let folder = self.folder.run_dir().join(self.folder.name());
        let disk = NewDisk::make(
            disk,
            self.id,
            boot.owner,
            &folder,
            self.lock.file(),
            boot.limit.cancelled,
        )?;
        let size = disk.disk.size;
        self.disk = Some(disk);
        Ok(Some(size))
    }

    /// Starts QEMU; the guest writes its memory straight into the bundle's file.
    fn start(&mut self, guest: &QemuGuest, boot: &Boot<'_>, memory: &File) -> Result<(), Error> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(io("find the image"));
        let root = boot.root.map(|root| absolute(&root.file)).transpose()?;
        let this = std::process::id();
        let file = PathBuf::from(format!("/proc/{this}/fd/{}", memory.as_raw_fd()));
        let machine = Machine {
            guest,
            vcpus: boot.vcpus,
            memory: boot.memory,
            file: &file,
            writes_file: true,
            folder: &self.folder,
            network: &GuestNetwork::default(),
            root: root.as_deref(),
            disk: self.disk.as_ref().map(|disk| &disk.disk),
            walls: Walls::default(),
        };
        let mut command = machine.command();
        command
            .arg("-kernel")
            .arg(absolute(&boot.image.kernel)?)
            .arg("-initrd")
            .arg(absolute(&boot.image.initramfs)?)
            .arg("-append")
            .arg(guest_disks::command_line(boot));
        let child = command::start(&machine, command, Stdio::null(), self.lock.file());
        let (child, _) = child.map_err(io("start QEMU"))?;
        self.child = Some(child);
        Ok(())
    }

    fn process(&self) -> Result<Option<Process>, Error> {
        let pid = self.child.as_ref().map_or(0, Child::id).cast_signed();
        let process = Process::with_pid(pid).map_err(io("look at the guest's process"))?;
        Ok(process.filter(Process::may_live))
    }

    /// How the guest ended, or what it said last.
    fn died(&self) -> Error {
        let console = self.folder.last_of_console();
        let console = console.map(|said| format!("; the last on its console: {said}"));
        Error::Boot(format!(
            "{}{}",
            self.folder.reason(),
            console.unwrap_or_default()
        ))
    }

    /// Why a step failed, when it may have failed since QEMU ended or the command was cancelled.
    fn cause(&mut self, error: agent_ask::Error, limit: Limit<'_>) -> Error {
        let (is_lost, error) = match error {
            agent_ask::Error::Lost(e) => (true, e),
            agent_ask::Error::Other(e) => (false, e),
        };
        if limit.is_cancelled() {
            return Error::Interrupted;
        }
        match is_lost && self.has_ended() {
            true => self.died(),
            false => error,
        }
    }

    /// Whether QEMU has ended, or does so just now: one that is killed closes its sockets before its
    /// end can be seen.
    fn has_ended(&mut self) -> bool {
        let begin = Instant::now();
        while let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(Some(status)) => {
                    self.folder.set_exit(&status.to_string());
                    return true;
                }
                Ok(None) if begin.elapsed() < CRASH_PATIENCE => {
                    std::thread::sleep(POLL_INTERVAL);
                }
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    /// Waits for the agent.
    fn agent(&self, process: Process, limit: Limit<'_>) -> Result<Agent, agent_ask::Error> {
        let wanted = || match process.may_live() {
            true => Ok(()),
            false => Err(Error::Gone),
        };
        let begin = Instant::now();
        let agent = loop {
            let timeout = limit.timeout.saturating_sub(begin.elapsed());
            match self.folder.own_agent(Limit { timeout, ..limit }, &wanted) {
                // A QEMU that goes on boots a guest whose agent has just opened its port, or opens it
                // again.
                Err(agent_ask::Error::Lost(_)) if !timeout.is_zero() => {
                    let lost = Instant::now();
                    while process.may_live()
                        && !limit.is_cancelled()
                        && lost.elapsed() < CRASH_PATIENCE
                    {
                        std::thread::sleep(POLL_INTERVAL);
                    }
                }
                agent => break agent,
            }
        };
        agent.map_err(|e| match e {
            agent_ask::Error::Other(Error::Gone) => agent_ask::Error::Lost(Error::Gone),
            agent_ask::Error::Other(Error::Timeout(_)) => {
                let console = self.folder.last_of_console().unwrap_or_default();
                let seconds = limit.timeout.as_secs();
                agent_ask::Error::Other(Error::Boot(format!(
                    "its agent did not answer within {seconds} s; the last on its console: {console}"
                )))
            }
            other => other,
        })
    }

    /// Everything from the start of QEMU to the end of it: waits for the guest, makes it ready and
    /// warm, and returns the state of its devices.
    fn run(
        &self,
        process: Process,
        guest: &mut QemuGuest,
        boot: &Boot<'_>,
        told: &dyn Fn(Booted),
    ) -> Result<Vec<u8>, agent_ask::Error> {
        let agent = self.agent(process, boot.limit)?;
        told(Booted::Answered);
        make_warm(&agent, boot)?;
        let rehearsed = rehearse(&agent, &template_identity(self.id)).map_err(|e| step(&e))?;
        let nonce = rehearsed.ready.map_or([0; 16], |ready| ready.nonce);
        guest.nonce = format!("{:032x}", u128::from_be_bytes(nonce));
        told(Booted::Warm);
        let limits = super::step_limits(guest);
        prepare_suspend(&agent.with_limit(AGENT_LIMIT), limits).map_err(|e| step(&e))?;
        let mut qmp = Qmp::open(&self.folder).map_err(monitor)?;
        qmp.execute("stop", &json!({})).map_err(monitor)?;
        let state = save_state(&self.folder, &mut qmp).map_err(monitor)?;
        end(&mut qmp, process).map_err(monitor)?;
        Ok(state)
    }

    /// Runs the guest, and seals its bundle.
    fn seal(
        mut self,
        mut guest: QemuGuest,
        boot: &Boot<'_>,
        (mut writer, to): (Writer, &BundlePath),
        observer: BootObserver<'_>,
    ) -> Result<Manifest, Error> {
        let BootObserver {
            booted,
            note,
            progress,
        } = observer;
        let gone = || agent_ask::Error::Lost(Error::Gone);
        let ran = match self.process()? {
            None => Err(gone()),
            Some(process) => match process.open().map_err(io("look at the guest's process"))? {
                None => Err(gone()),
                Some(qemu) => cancelled::kill_when(boot.limit.cancelled, &qemu, || {
                    self.run(process, &mut guest, boot, booted)
                })
                .map_err(io("start a thread"))?,
            },
        };
        let state = ran.map_err(|e| self.cause(e, boot.limit))?;
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        let go_on = || !boot.limit.is_cancelled();
        let punched = punch_zeros(writer.memory(), boot.memory, &go_on);
        if !punched.map_err(io("free unused pages"))? {
            return Err(Error::Interrupted);
        }
        writer.write_kern(&state)?;
        let devices = devices(&guest);
        let engine_version = format!(
            "brood {}, QEMU {}, {}",
            env!("CARGO_PKG_VERSION"),
            guest.version,
            guest.accelerator
        );
        writer.set_qemu(guest);
        let description = Description {
            guest: to_name(boot),
            engine: EngineKind::Qemu,
            engine_version,
            memory: Memory {
                size: boot.memory,
                segments: vec![Segment {
                    guest_address: 0,
                    size: boot.memory,
                    file_offset: 0,
                }],
            },
            vcpus: boot.vcpus,
            devices,
            disks: guest_disks::seal_booted(boot, self.disk.as_ref(), to)?,
            working_set: Vec::new(),
        };
        let (now, disks) = (jiff::Timestamp::now(), description.disks.clone());
        let sealed = writer.seal_noted(description, now, note, progress);
        let forget = |_: &_| guest_disks::forget_booted(self.disk.as_ref(), to, &disks);
        Ok(sealed.inspect_err(forget)?)
    }
}

/// Something that QEMU did not do.
fn monitor(error: impl Into<Error>) -> agent_ask::Error {
    match error.into() {
        e @ (Error::Gone | Error::Io { .. }) => agent_ask::Error::Lost(e),
        e => agent_ask::Error::Other(e),
    }
}
