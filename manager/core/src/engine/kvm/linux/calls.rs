//! Calls of a Linux guest's clients, over its control socket: what each has the guest's process do.

use std::{
    fs::File,
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use brood_machine::{channel::Channel, state::MachineState};

use super::{disk::OwnDisk, guest::Guest, machine::Parts, network};
use crate::engine::kvm::{
    exit_reason::ExitReason,
    fork_server::{
        descriptors::SOCKET,
        inheritance::Inheritance,
        messages::{self, Message},
    },
    guest::life::{
        self, Destination, await_commit, die_with_parent, hung_up, receive_call, stop_after,
    },
    wire::{
        CALL_AGENT, CALL_BEGIN, CALL_CONSOLE, CALL_HAND_OUT, Call, REPLY_BUSY, REPLY_DEAD,
        REPLY_DONE, REPLY_FAILED, Reply, send_message,
    },
};

impl Guest<'_> {
    /// One call and its reply.
    pub(super) fn converse(&mut self, client: &OwnedFd) {
        let Some((call, files)) = receive_call(client.as_raw_fd()) else {
            return;
        };
        let reply = match call.kind {
            CALL_HAND_OUT => self.hand_out(),
            CALL_BEGIN => match self.begin(&call, files) {
                Ok(()) => Reply::new(REPLY_DONE, ""),
                Err(reason) => Reply::new(REPLY_FAILED, &reason),
            },
            CALL_AGENT | CALL_CONSOLE => match <[File; 1]>::try_from(files) {
                Ok([file]) => self.take(call.kind, file),
                Err(_) => Reply::new(REPLY_FAILED, "the call has no descriptor"),
            },
            _ => match Destination::of(&call, files) {
                Some(to) => self.suspend(client, to),
                None => Reply::new(REPLY_FAILED, "the guest does not know this call"),
            },
        };
        let _ = send_message(client.as_raw_fd(), &reply);
        stop_after(&call);
    }

    /// Runs the guest, with what it has to itself.
    fn begin(&mut self, call: &Call, files: Vec<File>) -> Result<(), String> {
        let Parts {
            bus,
            log,
            disks,
            line,
            ..
        } = &mut self.parts;
        let machine = self.body.machine().filter(|m| !m.vcpus.is_empty());
        let machine = machine.ok_or("the guest has begun already")?;
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or("the call has too few descriptors");
        log.set_file(next()?);
        if let Some(disk) = &disks.own {
            disk.set_file(next()?)?;
        }
        if let Some(end) = files.next() {
            line.connect(network::connection(&call.request, end.into()));
        }
        // Until now no time has passed for the guest.
        let set = self.inheritance.plan.state.set_time(machine);
        set.map_err(|e| e.to_string())?;
        bus.set_generation(self.generation);
        self.threads.run(mem::take(&mut machine.vcpus));
        Ok(())
    }

    /// Takes one end of what is to be joined to the guest.
    fn take(&mut self, kind: u64, file: File) -> Reply {
        match kind {
            CALL_AGENT => {
                if self.channel.as_ref().is_some_and(Channel::is_open) {
                    return Reply::new(REPLY_BUSY, "another has the agent's channel");
                }
                self.channel = Some(Channel::new(OwnedFd::from(file).into()));
            }
            _ => {
                let line = Arc::new(UnixStream::from(OwnedFd::from(file)));
                self.parts.log.set_line(Some(Arc::clone(&line)));
                self.line = Some(line);
            }
        }
        Reply::new(REPLY_DONE, "")
    }

    /// Lets go of the nursery and the manager: the guest is safe to hand out.
    fn hand_out(&mut self) -> Reply {
        if !self.is_out {
            self.is_out = true;
            let Inheritance { plan, messages, .. } = self.inheritance;
            if plan.working_set.is_none() {
                let memory = self.ram.host_address();
                let _ = messages::send(messages, &Message::HandedOut { memory });
            }
            die_with_parent(false);
            for fd in [self.inheritance.restore_lock, SOCKET] {
                // SAFETY: the descriptor is this process's, and nothing in it uses it from here on.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Reply::new(REPLY_DONE, "")
    }

    /// Writes the guest into a bundle. Ends the process when the client commits; otherwise the guest
    /// goes on as if nothing had happened: that is how a snapshot is taken, too.
    fn suspend(&mut self, client: &OwnedFd, to: Destination) -> Reply {
        let Some(machine) = self.body.machine() else {
            return Reply::new(REPLY_FAILED, "the guest has no virtual machine");
        };
        let vcpus = self.threads.call_back();
        if let Some((number, stop)) = self.threads.stopped() {
            let reason = self.reason(number, stop, &vcpus);
            self.die(client, &reason);
        }
        let inheritance = self.inheritance;
        let (kvm, layers) = (&inheritance.kvm, &inheritance.layers);
        let Parts { bus, disks, .. } = &self.parts;
        let state = MachineState::capture(kvm, machine, &vcpus, bus);
        // A snapshot of a device does not see what waits in this host's memory.
        let flushed = disks.own.as_ref().map_or(Ok(()), OwnDisk::flush);
        let written = flushed
            .map_err(|e| format!("cannot write the guest's disk: {e}"))
            .and_then(|()| state.map_err(|e| e.to_string()))
            .map_err(|e| Reply::new(REPLY_FAILED, &e))
            .and_then(|state| to.write(&state.to_bytes(), layers, &self.ram, &|| !hung_up(client)));
        let reply = match written {
            Err(reply) => reply,
            // The guest may have read from a file whose content is no longer the sealed one.
            Ok(()) => match layers.check(&mut self.stamps) {
                Ok(()) => await_commit(client),
                Err(detail) => self.die(client, &ExitReason::CheckpointChanged { detail }),
            },
        };
        self.threads.run(vcpus);
        reply
    }

    /// Ends the process, and tells a client why.
    fn die(&self, client: &OwnedFd, reason: &ExitReason) -> ! {
        let reply = Reply::new(REPLY_DEAD, &reason.to_string());
        let _ = send_message(client.as_raw_fd(), &reply);
        life::end(&self.inheritance.messages, Some(reason))
    }
}
