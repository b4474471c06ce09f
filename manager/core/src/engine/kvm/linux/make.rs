//! First checkpoint of an image's guest: it is booted in a machine of this process, waited for, made
//! warm and sealed. Its memory is the bundle's file from the start.

use std::{
    fs::File,
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use brood_machine::{
    acpi, boot, channel,
    error::Error as MachineError,
    line,
    machine::{Machine, VCPUS_MAX},
    memory::{self, Backing},
    state::MachineState,
    threads::{Threads, Told},
};
use kvm_ioctls::Kvm;
use nix::sys::eventfd::EventFd;

use super::{
    MACHINE_VERSION,
    disk::{Disks, OwnDisk},
    engine::{KvmLinux, TEMPLATES, segments},
    folder::Folder,
    machine::{MAC, Parts, devices},
    network,
};
use crate::{
    agent::{Agent, Channel, StepLimits, prepare_suspend, rehearse},
    checkpoint::{
        BundlePath, Description, LinuxGuest, Writer,
        manifest::{EngineKind, Manifest, Memory},
    },
    disk::{self, Source},
    engine::{
        Error, GuestNetwork, Limit, agent_ask,
        boot::{
            Boot, BootObserver, Booted, make_warm, punch_zeros, step, template_identity, to_name,
        },
        guest_disks::{self, BootDisk, NewDisk},
        kvm::device::{engine_version, open_kvm, virtualization},
        template_lock::{self, TemplateLock, TemplateParts},
    },
    guest_id::GuestId,
};

/// How long the agent has for its part of the seal.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether the boot is still wanted.
const LOOK: Duration = Duration::from_millis(50);

fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

fn refused(error: &MachineError) -> Error {
    match error {
        MachineError::Refused(why) => Error::Refused(why.clone()),
        other => Error::Boot(other.to_string()),
    }
}

/// Refuses what this machine does not have.
fn check(boot: &Boot<'_>) -> Result<(), Error> {
    let refuse = |reason: &str| Err(Error::Refused(reason.to_owned()));
    memory::check_size(boot.memory.0).map_err(|e| Error::Refused(e.to_string()))?;
    if !(1..=u32::from(VCPUS_MAX)).contains(&boot.vcpus) {
        return refuse(&format!("a guest has 1 to {VCPUS_MAX} virtual CPUs"));
    }
    network::check(boot.network)?;
    if let Some(BootDisk::Of(source @ Source::Overlay { .. })) = boot.disk {
        return Err(disk::Error::NoOverlays {
            disk: source.to_string(),
        }
        .into());
    }
    guest_disks::check(boot.disk)
}

/// What there is of a guest that boots outside of its machine. It goes with this value.
struct Place {
    folder: Folder,
    lock: TemplateLock,
    disk: Option<NewDisk>,
}

impl Place {
    fn make(run_dir: &Path, to: &BundlePath, boot: &Boot<'_>) -> Result<Self, Error> {
        let run_dir = run_dir.canonicalize().map_err(io("enter the run folder"))?;
        let swept = template_lock::sweep(&TEMPLATES, &run_dir);
        swept.map_err(io("look for guests of killed commands"))?;
        let id = GuestId::random().map_err(io("draw a random number"))?;
        let source = match boot.disk {
            Some(BootDisk::Of(source)) => Some(source),
            Some(BootDisk::Empty(_)) | None => None,
        };
        let parts = TemplateParts::new(boot.owner, source, to)?;
        let lock = TemplateLock::take(&TEMPLATES, &run_dir, &id, &parts)?;
        let mut place = Self {
            folder: Folder::of(&run_dir, &id),
            lock,
            disk: None,
        };
        if let Some(disk) = boot.disk {
            let created = place.folder.create();
            created.map_err(io("make the guest's folder"))?;
            let (folder, lock) = (place.folder.path(), place.lock.file());
            place.disk = Some(NewDisk::make(
                disk,
                id,
                boot.owner,
                folder,
                lock,
                boot.limit.cancelled,
            )?);
        }
        Ok(place)
    }

    /// The disks of the guest's machine.
    fn disks(&self, boot: &Boot<'_>) -> Result<Disks, Error> {
        let mut disks = Disks::default();
        if let Some(root) = boot.root {
            disks.root = Some(File::open(&root.file).map_err(io("open the image"))?);
        }
        if let Some(NewDisk { disk, .. }) = &self.disk {
            let own = OwnDisk::new(disk.size);
            let file = File::options().read(true).write(true).open(&disk.path);
            own.set_file(file.map_err(io("open the guest's disk"))?)
                .map_err(Error::Refused)?;
            disks.own = Some(own);
        }
        Ok(disks)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the folder, which may be where it is.
        self.disk = None;
        // The next look tries again what cannot be removed now.
        if self.folder.remove().is_ok() {
            self.lock.forget();
        }
    }
}

/// A guest that boots.
struct Template {
    kvm: Kvm,
    machine: Machine,
    parts: Parts,
    threads: Threads,
    /// The agent's end of the channel.
    stream: UnixStream,
    _network: Option<BootNetwork>,
}

impl KvmLinux {
    /// Boots an image and makes a checkpoint of it.
    ///
    /// # Errors
    /// When there is no KVM, the guest does not become ready, a command in it fails, or the bundle
    /// cannot be written. Nothing is left then.
    pub fn make_checkpoint(
        &self,
        run_dir: &Path,
        to: &BundlePath,
        boot: &Boot<'_>,
        observer: BootObserver<'_>,
    ) -> Result<Manifest, Error> {
        check(boot)?;
        let kvm = open_kvm()?;
        let place = Place::make(run_dir, to, boot)?;
        let writer = Writer::create(to, boot.memory)?;
        // Only now it has a folder.
        let to = &to.absolute()?;
        let mut template = Template::start(kvm, boot, writer.memory(), place.disks(boot)?)?;
        (observer.booted)(Booted::Started);
        let ran = while_wanted(&template.stream, boot.limit, || {
            template.run(boot, observer.booted)
        });
        let nonce = ran.map_err(|e| template.cause(e, boot.limit))?;
        let state = template.capture()?;
        let version = engine_version(&template.kvm);
        drop(template);
        let linux = LinuxGuest {
            machine_version: MACHINE_VERSION,
            virtualization: virtualization().to_owned(),
            nonce: format!("{:032x}", u128::from_be_bytes(nonce)),
            image: boot.image.digest.clone(),
            cpu_template: boot.cpu_template.to_string(),
            network: boot.network,
            root: boot.root.is_some(),
            disk: place.disk.as_ref().map(|disk| disk.disk.size),
        };
        place.seal(boot, (writer, to), (linux, version, &state), observer)
    }
}

impl Place {
    /// Seals the bundle of a guest that has stopped.
    fn seal(
        &self,
        boot: &Boot<'_>,
        (mut writer, to): (Writer, &BundlePath),
        (linux, engine_version, state): (LinuxGuest, String, &[u8]),
        observer: BootObserver<'_>,
    ) -> Result<Manifest, Error> {
        let BootObserver { note, progress, .. } = observer;
        let go_on = || !boot.limit.is_cancelled();
        let punched = punch_zeros(writer.memory(), boot.memory, &go_on);
        if !punched.map_err(io("free unused pages"))? {
            return Err(Error::Interrupted);
        }
        writer.write_kern(state)?;
        let devices = devices(&linux);
        writer.set_linux(linux);
        let disks = guest_disks::seal_booted(boot, self.disk.as_ref(), to)?;
        let description = Description {
            guest: to_name(boot),
            engine: EngineKind::Kvm,
            engine_version,
            memory: Memory {
                size: boot.memory,
                segments: segments(boot.memory),
            },
            vcpus: boot.vcpus,
            devices,
            disks: disks.clone(),
            working_set: Vec::new(),
        };
        let now = jiff::Timestamp::now();
        let sealed = writer.seal_noted(description, now, note, progress);
        let forget = |_: &_| guest_disks::forget_booted(self.disk.as_ref(), to, &disks);
        Ok(sealed.inspect_err(forget)?)
    }
}

/// The network of a guest that boots. It ends with this value.
struct BootNetwork {
    end: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl BootNetwork {
    /// Connects the guest's card, if it is to reach anything.
    fn connect(parts: &mut Parts, boot: &Boot<'_>) -> Result<Option<Self>, Error> {
        let host = network::open(boot.network, &GuestNetwork::default(), &to_name(boot))?;
        let Some(host) = host else {
            return Ok(None);
        };
        let mut line = std::mem::take(&mut parts.line);
        line.connect(host.into_connection(MAC));
        let (bus, wake) = (Arc::clone(&parts.bus), Arc::clone(&parts.room));
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                let _ = line::carry(&bus, line, &wake, &ended);
            })
            .map_err(io("start a thread"))?;
        Ok(Some(Self {
            end,
            wake: Arc::clone(&parts.room),
            thread: Some(thread),
        }))
    }
}

impl Drop for BootNetwork {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        // A counter that is full wakes as well.
        let _ = self.wake.write(1);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Does something with the agent at the other end of a stream; ends that when the command is
/// cancelled.
fn while_wanted<T>(stream: &UnixStream, limit: Limit<'_>, act: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && !limit.is_cancelled() {
                thread::sleep(LOOK);
            }
            if limit.is_cancelled() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        let acted = act();
        done.store(true, Ordering::Relaxed);
        acted
    })
}

impl Template {
    /// Starts the guest, which writes its memory straight into the bundle's file.
    fn start(kvm: Kvm, boot: &Boot<'_>, file: &File, disks: Disks) -> Result<Self, Error> {
        let open = |path: &Path| File::open(path).map_err(io("open the image"));
        let (kernel, initrd) = (open(&boot.image.kernel)?, open(&boot.image.initramfs)?);
        let ram = memory::map(boot.memory.0, Backing::Shared(file)).map_err(|e| refused(&e))?;
        let vcpus = u8::try_from(boot.vcpus).expect("their number was checked");
        let card = boot.network.has_card();
        let parts = Parts::new(&kvm, ram.clone(), vcpus, boot.cpu_template, disks, card);
        let (mut machine, mut parts) = parts.map_err(|e| refused(&e))?;
        let network = BootNetwork::connect(&mut parts, boot)?;
        let rsdp = acpi::write(&ram, vcpus, parts.bus.virtio_count()).map_err(|e| refused(&e))?;
        let line = guest_disks::command_line(boot);
        let line = format!("{line} {}", boot::COMMAND_LINE);
        let kernel = boot::Kernel {
            image: &kernel,
            initrd: Some(&initrd),
            command_line: &line,
        };
        let entry = boot::load(&ram, kernel, rsdp).map_err(|e| refused(&e))?;
        machine.vcpus[0].begin_at(entry).map_err(|e| refused(&e))?;
        let (ours, theirs) = UnixStream::pair().map_err(io("make a socket pair"))?;
        let (bus, wake) = (Arc::clone(&parts.bus), Arc::clone(&parts.wake));
        let carried = theirs.try_clone().map_err(io("make a socket pair"))?;
        thread::Builder::new()
            .name("channel".to_owned())
            .spawn(move || channel::carry(&bus, carried, &wake))
            .map_err(io("start a thread"))?;
        // A processor that stops ends the session with the agent.
        let told: Told = Arc::new(move || {
            let _ = theirs.shutdown(Shutdown::Both);
        });
        let mut generation = [0; _];
        let drawn = getrandom::fill(&mut generation).map_err(io::Error::other);
        drawn.map_err(io("draw a random number"))?;
        parts.bus.set_generation(generation);
        let mut threads = Threads::new(vcpus.into(), &parts.bus, &told).map_err(|e| refused(&e))?;
        threads.run(std::mem::take(&mut machine.vcpus));
        Ok(Self {
            kvm,
            machine,
            parts,
            threads,
            stream: ours,
            _network: network,
        })
    }

    /// Waits for the guest, makes it ready and warm; returns its nonce.
    fn run(&self, boot: &Boot<'_>, told: &dyn Fn(Booted)) -> Result<[u8; 16], agent_ask::Error> {
        let other = |e| agent_ask::Error::Other(e);
        let stream = self.stream.try_clone().map_err(io("join the agent"));
        let channel = stream.and_then(|stream| Channel::over(stream).map_err(io("join the agent")));
        let agent = Agent::over(channel.map_err(other)?, boot.limit.timeout);
        let agent = agent.map_err(|e| agent_ask::Error::of(e, boot.limit.timeout))?;
        let agent = agent.with_limit(boot.limit.timeout);
        told(Booted::Answered);
        make_warm(&agent, boot)?;
        let id = GuestId::random().map_err(|e| other(io("draw a random number")(e)))?;
        let rehearsed = rehearse(&agent, &template_identity(id)).map_err(|e| step(&e))?;
        told(Booted::Warm);
        let agent = agent.with_limit(AGENT_LIMIT);
        prepare_suspend(&agent, StepLimits::default()).map_err(|e| step(&e))?;
        Ok(rehearsed.ready.map_or([0; 16], |ready| ready.nonce))
    }

    /// Why the guest did not come so far.
    fn cause(&mut self, error: agent_ask::Error, limit: Limit<'_>) -> Error {
        if limit.is_cancelled() {
            return Error::Interrupted;
        }
        let said = self
            .parts
            .log
            .panic()
            .or_else(|| self.parts.log.last_line());
        let said = said.map(|said| format!("; the last on its console: {said}"));
        let said = said.unwrap_or_default();
        let of_host = match virtualization() {
            "pvm" => {
                "; the KVM of this host is software (kvm_pvm), and boots only kernels that are made for it: QEMU boots others"
            }
            _ => "",
        };
        if let Some((_, stop)) = self.threads.stopped() {
            return Error::Boot(format!("its machine stopped ({stop:?}){said}{of_host}"));
        }
        match error {
            agent_ask::Error::Other(Error::Timeout(limit)) => Error::Boot(format!(
                "its agent did not answer within {} s{said}{of_host}",
                limit.as_secs()
            )),
            agent_ask::Error::Lost(e) | agent_ask::Error::Other(e) => e,
        }
    }

    /// Stops the guest for good; its state.
    fn capture(&mut self) -> Result<Vec<u8>, Error> {
        let vcpus = self.threads.call_back();
        let state = MachineState::capture(&self.kvm, &self.machine, &vcpus, &self.parts.bus);
        let state = state.map_err(|e| refused(&e))?;
        let flushed = self.parts.disks.own.as_ref().map_or(Ok(()), OwnDisk::flush);
        flushed.map_err(io("write the guest's disk"))?;
        Ok(state.to_bytes())
    }
}
