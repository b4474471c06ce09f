//! Process of a Linux guest: from the fork to its end. Its main thread serves the control socket
//! (`calls.rs`) and carries what goes between the guest and its host; the others run the guest's
//! processors.

use std::{
    borrow::Cow,
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::exit,
    sync::Arc,
    time::{Duration, Instant},
};

use brood_machine::{
    channel::Channel,
    error::Error,
    generation::GenerationId,
    machine::Machine,
    memory,
    power::PowerEvent,
    state::MachineState,
    threads::{Threads, Told},
    vcpu::{Stop, Vcpu},
};
use kvm_ioctls::Kvm;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigHandler, Signal},
        socket::{MsgFlags, recv},
    },
    unistd::{Pid, getppid},
};
use zerocopy::FromZeros;

use super::{
    body::{AfterPark, Body},
    disk::{Disks, OwnDisk},
    machine::{Parts, waker},
    working_set::WorkingSet,
};
use crate::{
    checkpoint::FileStamp,
    engine::{
        Identity,
        kvm::{
            exit_reason::ExitReason,
            fork_server::{
                descriptors::{SOCKET, close_own},
                inheritance::{GuestKind, Inheritance, Spare, StartError},
            },
            guest::life::{
                self, accept, control_socket, die_with_parent, fail, listen_as, receive_call,
                take_order,
            },
            limit_group,
            signals::handle,
            vm::{layers::Layers, ram::Ram, slots::Region},
            wire::{
                IdentityBytes, LinuxDevices, Order, REPLY_FAILED, REPORT_RESTORED, Reply, Report,
                Start, StartGuest, send_message,
            },
        },
    },
    guest_id::GuestId,
    units::Bytes,
};

/// A guest that ran because of its timer is parked again when nothing happened for so long. No guest
/// is parked sooner: it may be at work between two exits.
const LEAST_IDLE: Duration = Duration::from_millis(50);
/// When it is tried again to give a parked guest a virtual machine, which the host has refused.
const RETRY: Duration = Duration::from_millis(200);
/// Bytes of what is typed that the guest's port is given at a time. It has room for 64.
const TYPED_MAX: usize = 16;

/// Linux guests, as a nursery sees them.
pub(in crate::engine::kvm) struct LinuxKind;

/// What all guests of a checkpoint begin with.
#[derive(Debug)]
pub(in crate::engine::kvm) struct LinuxPlan {
    pub(super) state: MachineState,
    devices: LinuxDevices,
    /// The file with their root file system, if they have that on a disk.
    root: Option<File>,
    /// What a clone uses first, once the nursery knows.
    pub(super) working_set: Option<WorkingSet>,
}

/// What the process of a clone is told of its identity: the generation. The rest is told to its agent.
pub(super) fn identity_bytes(identity: &Identity) -> IdentityBytes {
    let mut bytes = [0; _];
    for (to, from) in bytes.iter_mut().zip(identity.generation) {
        *to = from;
    }
    bytes
}

/// The generation in it.
fn generation_of(bytes: &IdentityBytes) -> GenerationId {
    std::array::from_fn(|n| bytes[n])
}

impl GuestKind for LinuxKind {
    type Plan = LinuxPlan;

    fn plan(
        kvm: &Kvm,
        layers: &Arc<Layers>,
        kern: &[u8],
        start: &Start,
        files: Vec<File>,
    ) -> Result<LinuxPlan, StartError> {
        let devices = match start.guest {
            StartGuest::Linux(devices) => devices,
            StartGuest::Demo => LinuxDevices::default(),
        };
        let plan = LinuxPlan {
            state: MachineState::from_bytes(kern).map_err(StartError::kern)?,
            devices,
            root: files.into_iter().next(),
            working_set: None,
        };
        // One machine is made and thrown away: a refusal by KVM shows before any guest is forked.
        let (ram, machine, parts) = machine(kvm, layers, &plan)?;
        let set = plan.state.set_time(&machine);
        set.map_err(StartError::kern)?;
        drop((machine, parts));
        drop(ram);
        Ok(plan)
    }

    fn learn(plan: &mut LinuxPlan, layers: &Layers, pid: Pid, memory: u64) {
        if plan.working_set.is_none() {
            let pagemap = File::open(format!("/proc/{pid}/pagemap"));
            let set = pagemap.and_then(|pages| WorkingSet::of(&pages, memory, layers.memory()));
            // Without it, restores only take longer.
            plan.working_set = set.ok();
        }
    }

    fn live(inheritance: &Inheritance<LinuxPlan>, spare: &Spare<'_>) -> ! {
        // Until the guest has a control socket nobody could find it: it must not outlive its nursery.
        die_with_parent(true);
        if getppid() != inheritance.nursery {
            exit(1);
        }
        let prepared = prepare(inheritance);
        let order = take_order(spare);
        // Nothing of the guest has run yet, and it is to reach no sibling by what its process has.
        close_own();
        // SAFETY: this process does not come back to the nursery's code, and takes no other order.
        unsafe { spare.desk.unmap() };
        match prepared.and_then(|prepared| restore(inheritance, prepared, &order)) {
            Ok(guest) => guest.serve(),
            Err(text) => fail(order.seq, &text),
        }
    }
}

/// A machine in the checkpoint's state, but for its time; and its memory, which has to outlive it.
fn machine(
    kvm: &Kvm,
    layers: &Arc<Layers>,
    plan: &LinuxPlan,
) -> Result<(Ram, Machine, Parts), StartError> {
    let cannot_map = |e: std::io::Error| format!("cannot map the checkpoint: {e}");
    let mut ram = Ram::private(layers).map_err(cannot_map)?;
    let all = Region {
        start: 0,
        end: ram.size(),
    };
    ram.place(all).map_err(cannot_map)?;
    let start = ram.host_address() as *mut u8;
    // SAFETY: the mapping is dropped after the machine. No reference into it is ever made.
    let memory = unsafe { memory::over(start, ram.size()) }.map_err(|e| e.to_string())?;
    let vcpus = u8::try_from(plan.state.vcpus()).map_err(|e| e.to_string())?;
    let root = plan.root.as_ref().map(File::try_clone).transpose();
    let disks = Disks {
        root: root.map_err(|e| format!("cannot use the guests' root disk: {e}"))?,
        own: plan.devices.disk.map(OwnDisk::new),
    };
    let (machine, parts) = Parts::new(
        kvm,
        memory,
        vcpus,
        plan.state.template(),
        disks,
        plan.devices.card,
    )
    .map_err(|e| e.to_string())?;
    let applied = plan.state.apply(&machine, &parts.bus);
    applied.map_err(StartError::kern)?;
    Ok((ram, machine, parts))
}

/// What a spare has before its order.
struct Prepared {
    machine: Machine,
    /// How long it took to make.
    made_in: Duration,
    parts: Parts,
    threads: Threads,
    /// The socket that its clients will come to, without an address.
    control: OwnedFd,
    ram: Ram,
}

/// Everything that is the same for all clones.
fn prepare(inheritance: &Inheritance<LinuxPlan>) -> Result<Prepared, String> {
    // Guests with one processor and no thread for it are called back by it.
    handle(Signal::SIGUSR1, SigHandler::SigIgn);
    handle(Signal::SIGBUS, SigHandler::Handler(life::checkpoint_cut));
    let Inheritance {
        kvm, layers, plan, ..
    } = inheritance;
    let began = Instant::now();
    let (ram, machine, parts) = machine(kvm, layers, plan).map_err(|e| e.reason)?;
    let made_in = began.elapsed();
    if let Some(set) = &plan.working_set {
        // The pages are charged to the group that a guest with a limit is not in yet.
        set.take(&ram, &machine, !inheritance.enforces_limits);
    }
    let told: Told = Arc::new(waker(&parts.wake));
    let threads = Threads::new(plan.state.vcpus(), &parts.bus, &told).map_err(|e| e.to_string())?;
    let control = control_socket().map_err(|e| format!("cannot make its control socket: {e}"))?;
    // A control group of its own has to be made first, by an order that is yet to come.
    if !inheritance.enforces_limits {
        inheritance.jail.enter(control.as_fd())?;
    }
    Ok(Prepared {
        machine,
        made_in,
        parts,
        threads,
        control,
        ram,
    })
}

pub(super) struct Guest<'a> {
    pub(super) inheritance: &'a Inheritance<LinuxPlan>,
    pub(super) body: Body,
    pub(super) parts: Parts,
    pub(super) threads: Threads,
    pub(super) ram: Ram,
    pub(super) control: OwnedFd,
    /// The stream to whoever speaks with the agent.
    pub(super) channel: Option<Channel>,
    /// The stream of whoever types on the console.
    pub(super) line: Option<Arc<UnixStream>>,
    /// The stamps of the checkpoint's files when their content was last known to be right.
    pub(super) stamps: Cow<'a, [FileStamp]>,
    /// The clone's own.
    pub(super) generation: GenerationId,
    /// Whether the guest was handed out, and lets go of nursery and manager.
    pub(super) is_out: bool,
}

fn restore<'a>(
    inheritance: &'a Inheritance<LinuxPlan>,
    prepared: Prepared,
    order: &Order,
) -> Result<Guest<'a>, String> {
    let Prepared {
        machine,
        made_in,
        parts,
        threads,
        control,
        ram,
    } = prepared;
    // So that a guest can be told from another, and from a spare, in a list of processes.
    let _ = order.process_name.as_c_str().map(nix::sys::prctl::set_name);
    let id = GuestId(order.id);
    if order.memory_limit > 0 {
        limit_group::enter(&id, Bytes(order.memory_limit))?;
    }
    listen_as(&control, &id).map_err(|e| format!("cannot name its control socket: {e}"))?;
    inheritance.jail.change_user(inheritance.nursery)?;
    if inheritance.enforces_limits {
        inheritance.jail.enter(control.as_fd())?;
    }
    let report = Report {
        seq: order.seq,
        kind: REPORT_RESTORED,
        pid: Pid::this().as_raw(),
        landlock: inheritance.jail.landlock(),
        ..Report::new_zeroed()
    };
    let _ = send_message(SOCKET, &report);
    Ok(Guest {
        inheritance,
        body: Body::new(machine, made_in),
        parts,
        threads,
        ram,
        control,
        channel: None,
        line: None,
        stamps: Cow::Borrowed(inheritance.layers.stamps()),
        generation: generation_of(&order.identity),
        is_out: false,
    })
}

/// What a wait saw of each descriptor.
struct Seen {
    control: PollFlags,
    channel: PollFlags,
    /// Of the stream of whoever types on the console.
    line: PollFlags,
    network: PollFlags,
}

/// How a wait came to its end.
enum Waited {
    /// There is something to do.
    Seen(Seen),
    /// A signal came.
    Interrupted,
    /// Nothing happened for as long as it should take, or a timer of the guest is due.
    Idle,
}

impl Guest<'_> {
    /// Serves clients, and the guest's channel and console, until the guest dies or is committed to
    /// a checkpoint. The process dies with the guest.
    fn serve(mut self) -> ! {
        let mut idle_limit = self.idle_limit();
        loop {
            let waited = self.wait(idle_limit);
            let woken = match &waited {
                Waited::Seen(_) => self.wake(),
                Waited::Idle => self.idle(&mut idle_limit),
                Waited::Interrupted => Ok(()),
            };
            if let Err(e) = woken {
                self.refuse(&e);
                continue;
            }
            let Waited::Seen(seen) = waited else { continue };
            idle_limit = self.idle_limit();
            if let Some((number, stop)) = self.threads.stopped() {
                self.end(number, stop);
            }
            if let Some(channel) = &mut self.channel
                && !matches!(channel.carry(&self.parts.bus, seen.channel), Ok(true))
            {
                self.channel = None;
            }
            if !seen.network.is_empty() {
                self.parts.line.carry(&self.parts.bus, seen.network);
            }
            if !seen.line.is_empty() {
                self.hear_line();
            }
            if !seen.control.is_empty()
                && let Some(client) = accept(&self.control)
            {
                self.converse(&client);
            }
        }
    }

    /// Nothing has happened: the guest is parked, or, when it was, one of its timers is due.
    fn idle(&mut self, limit: &mut Option<Duration>) -> Result<(), Error> {
        if self.body.is_parked() {
            self.wake()?;
            // What a timer brings takes little time.
            *limit = limit.map(|_| LEAST_IDLE);
        } else {
            let again = self.park();
            // It is never looked at before its timer has fired.
            *limit = self.idle_limit().max(again.map(|again| again + LEAST_IDLE));
        }
        Ok(())
    }

    /// How long nothing must happen after a client's call until the guest is parked.
    fn idle_limit(&self) -> Option<Duration> {
        let limit = self.inheritance.park_after;
        limit.map(|limit| limit.max(LEAST_IDLE))
    }

    /// Parks the guest if it rests and that pays; when it is worth to try again, if that is known.
    fn park(&mut self) -> Option<Duration> {
        let began = Instant::now();
        let vcpus = self.threads.call_back();
        if let Some((number, stop)) = self.threads.stopped() {
            self.end(number, stop);
        }
        let parked = self
            .body
            .park(&self.inheritance.kvm, vcpus, &self.parts.bus, began);
        let parked = parked.unwrap_or_else(|e| {
            let detail = format!("it cannot be parked: {e}");
            let reason = ExitReason::InternalError { detail };
            life::end(&self.inheritance.messages, Some(&reason))
        });
        match parked {
            AfterPark::Parked => None,
            AfterPark::Awake(vcpus, again) => {
                self.threads.run(vcpus);
                again
            }
        }
    }

    /// Has the guest run, in a new virtual machine if it was parked.
    fn wake(&mut self) -> Result<(), Error> {
        let vcpus = self.body.wake(&self.inheritance.kvm)?;
        self.threads.run(vcpus);
        Ok(())
    }

    /// The host gives the guest no virtual machine: whoever calls is told, and it is tried again.
    fn refuse(&self, error: &Error) {
        let mut call = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(RETRY).unwrap_or(PollTimeout::MAX);
        if poll(&mut call, wait).is_ok_and(|calls| calls > 0)
            && let Some(client) = accept(&self.control)
            && receive_call(client.as_raw_fd()).is_some()
        {
            let reason = format!("its virtual machine cannot be made again: {error}");
            let _ = send_message(client.as_raw_fd(), &Reply::new(REPLY_FAILED, &reason));
        }
    }

    /// Waits until there is something to do, or nothing was for this long, or a parked guest's timer
    /// is due.
    fn wait(&self, idle_limit: Option<Duration>) -> Waited {
        let limit = match self.body.is_parked() {
            true => self.body.may_rest(),
            false => idle_limit.filter(|_| self.is_out),
        };
        let bus = &self.parts.bus;
        let mut fds = vec![
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.parts.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.parts.room.as_fd(), PollFlags::POLLIN),
        ];
        let channel = self.channel.as_ref().map(|channel| {
            fds.push(channel.poll_fd(bus));
            fds.len() - 1
        });
        // What is typed waits in its stream until the guest has room for it.
        let takes = bus.serial().room() >= TYPED_MAX;
        let line = self.line.as_ref().filter(|_| takes).map(|line| {
            fds.push(PollFd::new(line.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let network = self.parts.line.poll_fd(bus).map(|fd| {
            fds.push(fd);
            fds.len() - 1
        });
        // It may take a millisecond more, and never less.
        let limit = limit.map(|limit| limit + Duration::from_millis(1));
        let limit = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, limit) {
            Ok(0) => return Waited::Idle,
            Ok(_) => {}
            Err(_) => return Waited::Interrupted,
        }
        let seen = |n: Option<usize>| {
            let fd = n.and_then(|n| fds.get(n));
            fd.and_then(PollFd::revents).unwrap_or(PollFlags::empty())
        };
        if !seen(Some(1)).is_empty() {
            let _ = self.parts.wake.read();
        }
        if !seen(Some(2)).is_empty() {
            let _ = self.parts.room.read();
        }
        Waited::Seen(Seen {
            control: seen(Some(0)),
            channel: seen(channel),
            line: seen(line),
            network: seen(network),
        })
    }

    /// What is typed goes to the guest, whose port has room for it.
    fn hear_line(&mut self) {
        let mut typed = [0; TYPED_MAX];
        let line = self.line.as_ref();
        let read = line.map(|line| recv(line.as_raw_fd(), &mut typed, MsgFlags::MSG_DONTWAIT));
        match read {
            Some(Ok(length)) if length > 0 => {
                let _ = self.parts.bus.serial().input(&typed[..length]);
            }
            Some(Err(Errno::EAGAIN | Errno::EINTR)) => {}
            _ => {
                self.line = None;
                self.parts.log.set_line(None);
            }
        }
    }

    /// Ends the process of a guest one of whose processors has stopped.
    fn end(&mut self, number: usize, stop: Stop) -> ! {
        let vcpus = self.threads.call_back();
        let reason = self.reason(number, stop, &vcpus);
        life::end(&self.inheritance.messages, Some(&reason))
    }

    /// Why the guest cannot go on.
    pub(super) fn reason(&self, number: usize, stop: Stop, vcpus: &[Vcpu]) -> ExitReason {
        let said = |otherwise| match self.parts.log.panic() {
            Some(line) => ExitReason::Panic { line },
            None => otherwise,
        };
        match stop {
            Stop::Power(PowerEvent::Off) => ExitReason::PowerOff,
            // A kernel that panics starts again.
            Stop::Power(PowerEvent::Reset) => said(ExitReason::Restart),
            Stop::TripleFault => {
                let regs = vcpus.get(number).and_then(|vcpu| vcpu.fd().get_regs().ok());
                said(ExitReason::Shutdown {
                    rip: regs.map_or(0, |regs| regs.rip),
                })
            }
            Stop::Failed(detail) => ExitReason::InternalError { detail },
            Stop::Interrupted => ExitReason::Unknown,
        }
    }
}
