//! Guest process: from the fork to its end.
//!
//! Code that runs once or seldom stands outside the frames of the loop that waits for clients
//! (`inline(never)`): each page of stack that a guest touches is private memory.

use std::{
    borrow::Cow,
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::exit,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigHandler, Signal},
    unistd::{Pid, getppid},
};
use zerocopy::FromZeros;

use super::life::{
    self, Destination, accept, await_commit, control_socket, die_with_parent, fail, hung_up,
    listen_as, receive_call, stop_after, take_order,
};
use crate::engine::kvm::{
    exit_reason::ExitReason,
    fork_server::{
        descriptors::{SOCKET, close_own},
        inheritance::{Inheritance, Spare},
    },
    guest::{
        plan::GuestPlan,
        port::{GuestPort, Proof},
    },
    limit_group,
    signals::handle,
    vm::{
        machine::{Machine, ParkedGuest, Stop},
        ram::Ram,
        vcpu::VcpuState,
    },
    wire::{
        CALL_ASK, Order, REPLY_BUSY, REPLY_DEAD, REPLY_DONE, REPLY_FAILED, REPORT_RESTORED, Reply,
        Report, RequestBytes, send_message,
    },
};
use crate::{checkpoint::FileStamp, guest_id::GuestId, units::Bytes};

/// Makes a virtual machine in this process, which was just forked for it, takes an order, becomes
/// that guest, and serves it to its end.
pub(crate) fn run<P: GuestPort>(inheritance: &Inheritance<GuestPlan>, spare: &Spare<'_>) -> ! {
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
    match prepared.and_then(|prepared| restore::<P>(inheritance, prepared, &order)) {
        Ok(guest) => guest.serve(),
        Err(text) => fail(order.seq, &text),
    }
}

/// What a spare has before its order.
struct Prepared {
    /// A machine in the checkpoint's state.
    machine: Machine,
    /// The socket that its clients will come to, without an address.
    control: OwnedFd,
}

/// Everything that is the same for all clones.
#[inline(never)]
fn prepare(inheritance: &Inheritance<GuestPlan>) -> Result<Prepared, String> {
    handle(Signal::SIGUSR1, SigHandler::Handler(kicked));
    handle(Signal::SIGBUS, SigHandler::Handler(life::checkpoint_cut));
    let ram =
        Ram::private(&inheritance.layers).map_err(|e| format!("cannot map the checkpoint: {e}"))?;
    let (kvm, plan) = (&inheritance.kvm, &inheritance.plan.restore);
    let mut machine =
        Machine::new(kvm, ram, &inheritance.plan.regions).map_err(|(_, e)| e.to_string())?;
    plan.apply(&mut machine.vcpu, &plan.registers())
        .map_err(|e| e.to_string())?;
    let control = control_socket().map_err(|e| format!("cannot make its control socket: {e}"))?;
    // A control group of its own has to be made first, by an order that is yet to come.
    if !inheritance.enforces_limits {
        inheritance.jail.enter(control.as_fd())?;
    }
    Ok(Prepared { machine, control })
}

struct Guest<'a, P> {
    inheritance: &'a Inheritance<GuestPlan>,
    body: Body,
    control: OwnedFd,
    port: P,
    /// The stamps of the checkpoint's files when their content was last known to be right.
    stamps: Cow<'a, [FileStamp]>,
    /// Why the guest cannot go on.
    exit_reason: Option<ExitReason>,
}

/// What there is of the guest beside its state in the inherited plan.
enum Body {
    /// It has a virtual machine.
    Awake(Machine),
    /// It has been idle, and gave its virtual machine back.
    Parked(Box<ParkedGuest>),
    /// On the way from one to the other.
    Between,
}

#[inline(never)]
fn restore<'a, P: GuestPort>(
    inheritance: &'a Inheritance<GuestPlan>,
    prepared: Prepared,
    order: &Order,
) -> Result<Guest<'a, P>, String> {
    let Prepared { machine, control } = prepared;
    // So that a guest can be told from another, and from a spare, in a list of processes.
    let _ = order.process_name.as_c_str().map(nix::sys::prctl::set_name);
    let id = GuestId(order.id);
    if order.memory_limit > 0 {
        limit_group::enter(&id, Bytes(order.memory_limit))?;
    }
    let plan = &inheritance.plan.restore;
    let mut port = P::default();
    port.lay_down_identity(&machine.ram, &order.identity, plan.state().tsc_khz);
    listen_as(&control, &id).map_err(|e| format!("cannot name its control socket: {e}"))?;
    inheritance.jail.change_user(inheritance.nursery)?;
    if inheritance.enforces_limits {
        inheritance.jail.enter(control.as_fd())?;
    }
    let mut guest = Guest {
        inheritance,
        body: Body::awake(machine),
        control,
        port,
        stamps: Cow::Borrowed(inheritance.layers.stamps()),
        exit_reason: None,
    };
    if plan.state().busy {
        guest
            .run_until_it_waits()
            .map_err(|reason| reason.to_string())?;
    }
    let proof = guest.first_answer()?;
    guest.announce(order.seq, proof);
    Ok(guest)
}

impl Body {
    fn awake(mut machine: Machine) -> Self {
        KICK.store(machine.immediate_exit(), Ordering::Relaxed);
        Self::Awake(machine)
    }
}

impl<P: GuestPort> Guest<'_, P> {
    /// Has the guest answer its first request.
    #[inline(never)]
    fn first_answer(&mut self) -> Result<Proof, String> {
        let reply = self.ask(&P::FIRST_REQUEST);
        if reply.kind == REPLY_DONE {
            Ok(P::proof(&reply.answer))
        } else {
            Err(String::from(&reply.text))
        }
    }

    /// Lets go of the nursery and the manager, and tells the manager of the guest.
    #[inline(never)]
    fn announce(&self, seq: u64, proof: Proof) {
        die_with_parent(false);
        // SAFETY: this process's descriptor of the lock, which nothing in it uses from here on.
        drop(unsafe { OwnedFd::from_raw_fd(self.inheritance.restore_lock) });
        let report = Report {
            seq,
            kind: REPORT_RESTORED,
            pid: Pid::this().as_raw(),
            nonce: proof.nonce,
            counter: proof.counter,
            landlock: self.inheritance.jail.landlock(),
            ..Report::new_zeroed()
        };
        let _ = send_message(SOCKET, &report);
        // SAFETY: the descriptor is this process's and nothing uses it from here on.
        drop(unsafe { OwnedFd::from_raw_fd(SOCKET) });
    }

    /// Answers calls until the guest dies or is committed to a checkpoint. The process dies with
    /// the guest.
    fn serve(mut self) -> ! {
        let mut idle_limit = self.inheritance.park_after;
        loop {
            if self.client_within(idle_limit) {
                if let Some(client) = accept(&self.control) {
                    self.converse(&client);
                }
                idle_limit = self.inheritance.park_after;
            } else {
                self.park();
                idle_limit = None;
            }
        }
    }

    /// Whether a client is there, or comes within `limit`.
    fn client_within(&self, limit: Option<Duration>) -> bool {
        let limit = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        // A signal that ends the wait is for a vCPU that does not run: then there is none.
        poll(&mut fds, limit) != Ok(0)
    }

    /// Gives the virtual machine back, if all of its state can be kept without it.
    #[inline(never)]
    fn park(&mut self) {
        // A client that came and asked nothing leaves a parked guest parked.
        if !matches!(self.body, Body::Awake(_)) {
            return;
        }
        let Body::Awake(machine) = mem::replace(&mut self.body, Body::Between) else {
            return;
        };
        // From here on a signal has no vCPU to stop.
        KICK.store(ptr::null_mut(), Ordering::Relaxed);
        self.body = match machine.park(&self.inheritance.plan.restore) {
            Ok(parked) => Body::Parked(Box::new(parked)),
            Err(machine) => Body::awake(machine),
        };
    }

    /// The guest's virtual machine, made again if it was given back, and its port.
    fn machine(&mut self) -> Result<(&mut Machine, &mut P), String> {
        if matches!(self.body, Body::Parked(_)) {
            self.unpark()?;
        }
        match &mut self.body {
            Body::Awake(machine) => Ok((machine, &mut self.port)),
            Body::Parked(_) | Body::Between => Err("the guest has no virtual machine".to_owned()),
        }
    }

    /// Makes the virtual machine of a parked guest again.
    #[inline(never)]
    fn unpark(&mut self) -> Result<(), String> {
        let Inheritance { kvm, plan, .. } = self.inheritance;
        let body = mem::replace(&mut self.body, Body::Between);
        let Body::Parked(parked) = body else {
            self.body = body;
            return Ok(());
        };
        match parked.unpark(kvm, &plan.regions, &plan.restore) {
            Ok(machine) => {
                self.body = Body::awake(machine);
                Ok(())
            }
            Err((parked, e)) => {
                self.body = Body::Parked(Box::new(parked));
                Err(e.to_string())
            }
        }
    }

    /// One call and its reply.
    #[inline(never)]
    fn converse(&mut self, client: &OwnedFd) {
        let Some((call, files)) = receive_call(client.as_raw_fd()) else {
            return;
        };
        let reply = match Destination::of(&call, files) {
            Some(to) => self.suspend(client, to, false),
            None if call.kind == CALL_ASK => self.ask(&call.request),
            None => Reply::new(REPLY_FAILED, "the guest does not know this call"),
        };
        let _ = send_message(client.as_raw_fd(), &reply);
        if reply.kind == REPLY_DEAD {
            self.end();
        }
        stop_after(&call);
    }

    /// Has the guest answer one request.
    fn ask(&mut self, request: &RequestBytes) -> Reply {
        let put = match self.machine() {
            Ok((machine, port)) => port.put_request(&machine.ram, request),
            // The guest is as it was; memory or pids may come back.
            Err(e) => return Reply::new(REPLY_FAILED, &e),
        };
        let outcome = self.run_until_it_waits();
        // The guest may have read from a file whose content is no longer the sealed one.
        if let Err(reason) = outcome.and_then(|()| self.check_checkpoint()) {
            return self.died(&reason);
        }
        let mut reply = Reply::new(REPLY_DONE, "");
        let answered = put
            && self
                .machine()
                .is_ok_and(|(machine, port)| port.take_answer(&machine.ram, &mut reply.answer));
        if answered {
            reply
        } else {
            Reply::new(
                REPLY_FAILED,
                "the guest waits without an answer to this request",
            )
        }
    }

    /// Ends the process of a guest that cannot go on.
    fn end(&self) -> ! {
        life::end(&self.inheritance.messages, self.exit_reason.as_ref())
    }

    fn died(&mut self, reason: &ExitReason) -> Reply {
        self.exit_reason = Some(reason.clone());
        Reply::new(REPLY_DEAD, &reason.to_string())
    }

    /// Runs the guest until it waits for a request. When a signal stops it on the way, serves the
    /// client that sent the signal.
    fn run_until_it_waits(&mut self) -> Result<(), ExitReason> {
        loop {
            let (machine, port) = self
                .machine()
                .map_err(|detail| ExitReason::InternalError { detail })?;
            match machine.run(port) {
                Stop::Waiting => return Ok(()),
                Stop::Dead(reason) => return Err(reason),
                Stop::Interrupted => {
                    machine.vcpu.set_kvm_immediate_exit(0);
                    while self.client_within(Some(Duration::ZERO)) {
                        let Some(client) = accept(&self.control) else {
                            break;
                        };
                        self.converse_while_busy(&client);
                    }
                }
            }
        }
    }

    /// A call that comes while the guest is in the middle of a request.
    #[inline(never)]
    fn converse_while_busy(&mut self, client: &OwnedFd) {
        let Some((call, files)) = receive_call(client.as_raw_fd()) else {
            return;
        };
        let reply = match Destination::of(&call, files) {
            Some(to) => self.suspend(client, to, true),
            None => Reply::new(REPLY_BUSY, "the guest is busy with an earlier request"),
        };
        let _ = send_message(client.as_raw_fd(), &reply);
        stop_after(&call);
    }

    /// Writes the guest into a bundle. Ends the process when the client commits; otherwise the
    /// guest goes on as if nothing had happened: that is how a snapshot is taken, too.
    fn suspend(&mut self, client: &OwnedFd, to: Destination, busy: bool) -> Reply {
        let inheritance = self.inheritance;
        let captured = self.machine().and_then(|(machine, _)| {
            machine.finish_exit().map_err(|e| e.to_string())?;
            let state = VcpuState::capture(&inheritance.kvm, &machine.vcpu, busy)
                .map_err(|e| e.to_string())?;
            Ok((state.to_bytes(), &machine.ram))
        });
        let written = match captured {
            Ok((state, ram)) => to.write(&state, &inheritance.layers, ram, &|| !hung_up(client)),
            Err(e) => return Reply::new(REPLY_FAILED, &e),
        };
        if let Err(reply) = written {
            return reply;
        }
        if let Err(reason) = self.check_checkpoint() {
            let reply = self.died(&reason);
            let _ = send_message(client.as_raw_fd(), &reply);
            self.end();
        }
        await_commit(client)
    }

    /// Checks that the memory which the guest shares still has the sealed content.
    fn check_checkpoint(&mut self) -> Result<(), ExitReason> {
        self.inheritance
            .layers
            .check(&mut self.stamps)
            .map_err(|detail| ExitReason::CheckpointChanged { detail })
    }
}

/// Where a signal tells the vCPU to stop: `immediate_exit` of its run page. A signal handler can
/// reach nothing but a static.
static KICK: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

extern "C" fn kicked(_: libc::c_int) {
    let flag = KICK.load(Ordering::Relaxed);
    if !flag.is_null() {
        // SAFETY: it points into the run page, which is mapped as long as the guest's process
        // lives, and is made to be written at any time.
        unsafe { flag.write_volatile(1) };
    }
}
