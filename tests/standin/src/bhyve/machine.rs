//! Running VM: it waits for its consoles, its checkpoint socket, signals, and for changes in the
//! kernel.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{
    console::Output,
    devices::Devices,
    framed::FramedAgent,
    guest::{Does, Guest},
    suspend::Saved,
};
use crate::{
    errno::ENXIO,
    exit::{EX_OSERR, Exit},
    fault,
    nvlist::Nvlist,
    vm::{Suspend, Vm},
    world::World,
};

/// A VM with its process.
pub(crate) struct Machine {
    pub(crate) world: World,
    pub(crate) vm: Vm,
    pub(crate) output: Output,
    pub(crate) devices: Devices,
    pub(crate) guest: Guest,
    /// Its agent at each console; the first console is the guest's own.
    pub(crate) agents: Vec<FramedAgent>,
    pub(crate) ncpus: u32,
    /// Whether SIGTERM presses the power button. That begins when the guest turns ACPI on
    /// (amd64/pm.c, smi_cmd_handler()), which a restored guest did in another process: there,
    /// SIGTERM does what it does to any process.
    pub(crate) power_button: bool,
}

/// How long a request may take to come in whole, once it has begun to. The real one has a thread
/// that would wait for ever; the stand-in has none, so that a thousand of them are a thousand
/// threads and not two thousand.
const REQUEST: Duration = Duration::from_secs(5);

impl Machine {
    /// Runs the guest until it ends. Returns only to fail.
    ///
    /// # Errors
    /// Ends bhyve; the VM stays.
    pub(crate) fn run(mut self, listener: &UnixListener) -> Result<(), Exit> {
        let system = |e: io::Error| Exit::err("bhyve", EX_OSERR, "standin", (&e).into());
        let signals = if self.power_button {
            let mut set = SigSet::empty();
            set.add(Signal::SIGTERM);
            set.thread_block().map_err(|e| system(e.into()))?;
            let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
            Some(SignalFd::with_flags(&set, flags).map_err(|e| system(e.into()))?)
        } else {
            None
        };
        let mut kernel = self.vm.waker().map_err(system)?;
        let owner = self.world.owner().map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let mut asking = None;

        fault::pass(&self.world, fault::GUEST_READY)?;
        let first = self.guest.run();
        self.act(first)?;
        let mut line = Vec::new();
        let mut open = vec![true; self.devices.consoles.len()];
        loop {
            self.look()?;
            let ready = {
                // checkpoint_thread() deals with one request after another.
                let request = asking.as_ref().map_or(listener.as_fd(), AsFd::as_fd);
                let mut descriptors: Vec<BorrowedFd<'_>> = vec![kernel.as_fd(), request];
                descriptors.extend(owner.as_ref().map(AsFd::as_fd));
                descriptors.extend(signals.as_ref().map(AsFd::as_fd));
                for (console, open) in self.devices.consoles.iter().zip(&open) {
                    if *open {
                        descriptors.extend(console.descriptors());
                    }
                }
                wait(&descriptors).map_err(system)?
            };
            if ready[0] {
                let _ = kernel.read(&mut [0; 64]);
            }
            if ready[1] {
                match asking.take() {
                    None => asking = listener.accept().ok().map(|(stream, _)| stream),
                    Some(stream) => self.asked(&stream)?,
                }
            }
            if owner.is_some() && ready[2] {
                return Err(Exit::silent(EX_OSERR));
            }
            if let Some(signals) = &signals
                && let Ok(Some(_)) = signals.read_signal()
            {
                let does = self.guest.power_button();
                self.act(Ok(does))?;
            }
            for (n, open) in open.iter_mut().enumerate() {
                match self.devices.consoles[n].read() {
                    // Only the first port leads to the guest's console.
                    Some(bytes) if n == 0 => self.typed(&mut line, &bytes)?,
                    Some(bytes) => self.framed(n, &bytes)?,
                    None => *open = false,
                }
            }
        }
    }

    fn typed(&mut self, line: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Exit> {
        for byte in bytes {
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(line).into_owned();
            line.clear();
            if text.trim().is_empty() {
                continue;
            }
            fault::pass(&self.world, fault::GUEST_ANSWER)?;
            let does = self.guest.line(&text);
            self.books();
            self.act(does)?;
        }
        Ok(())
    }

    /// Bytes that came in at another port than the first.
    fn framed(&mut self, port: usize, bytes: &[u8]) -> Result<(), Exit> {
        if bytes.is_empty() {
            return Ok(());
        }
        fault::pass(&self.world, fault::GUEST_ANSWER)?;
        let answered = self.agents[port].take(&mut self.guest, bytes);
        let (answer, does) = match answered {
            Ok((answer, does)) => (answer, Ok(does)),
            Err(e) => (Vec::new(), Err(e)),
        };
        self.devices.consoles[port].write(&answer);
        self.books();
        self.act(does)
    }

    fn act(&mut self, does: io::Result<Does>) -> Result<(), Exit> {
        match does {
            Ok(Does::Says(text)) => {
                if let Some(console) = self.devices.consoles.first_mut() {
                    console.write(text.as_bytes());
                }
                Ok(())
            }
            Ok(Does::Ends(how)) => {
                let _ = self.vm.suspend(how);
                self.look()
            }
            Ok(Does::Nothing) => Ok(()),
            // The file went away under the guest: its next fault cannot be resolved.
            Err(_) => Err(Exit::saying(
                4,
                self.output.line("vm_run error -1, errno 14"),
            )),
        }
    }

    /// Tells the kernel's books what the guest has to itself.
    pub(crate) fn books(&self) {
        let private = self.guest.memory.private();
        let _ = self.vm.change(|record| {
            record.resident = private * super::memory::PAGE;
            record.process = Some(process::id());
            if let Some(segment) = &mut record.segment {
                segment.private = private;
            }
            Ok(())
        });
    }

    /// What vm_run() would return now: nothing, or the end.
    fn look(&mut self) -> Result<(), Exit> {
        match self.vm.record() {
            Err(_) => Err(self.gone()),
            Ok(record) => match record.suspend {
                None => Ok(()),
                Some(how) => self.end(how),
            },
        }
    }

    /// The VM was destroyed: vm_run() fails, vm_loop() returns, and bhyve exits with 4.
    fn gone(&self) -> Exit {
        let text = format!("vm_run error -1, errno {}", ENXIO.number);
        Exit::saying(4, self.output.line(&text))
    }

    /// vmexit_suspend() of amd64/vmexit.c.
    fn end(&mut self, how: Suspend) -> Result<(), Exit> {
        let stopped = self.vm.change(|record| {
            record.running = false;
            Ok(())
        });
        if stopped.is_err() {
            return Err(self.gone());
        }
        // destroy_on_poweroff has vm_destroy() called too, in capability mode (amd64/vmexit.c).
        Err(Exit::silent(how.exit_code()))
    }

    /// handle_message() and vm_do_checkpoint(): a request is not answered.
    fn asked(&self, stream: &UnixStream) -> Result<(), Exit> {
        let received = stream
            .set_read_timeout(Some(REQUEST))
            .and_then(|()| Nvlist::receive(stream));
        let list = match received {
            Ok(list) => list,
            Err(e) => {
                Output::default().eprint(&format!("nvlist_recv() failed: {e}"));
                return Ok(());
            }
        };
        let filename = list.string("filename");
        let suspend = list.bool("suspend");
        let folder = list.descriptor("fddir");
        if let (Some("checkpoint"), Some(filename), Some(suspend), Some(folder)) =
            (list.string("cmd"), filename, suspend, folder)
        {
            self.checkpoint(folder.as_fd(), filename, suspend)?;
        }
        Ok(())
    }

    fn checkpoint(&self, folder: BorrowedFd<'_>, name: &str, suspend: bool) -> Result<(), Exit> {
        let saved = Saved {
            world: &self.world,
            name: self.vm.name(),
            ncpus: self.ncpus,
            devices: &self.devices.list,
            guest: &self.guest,
            output: self.output,
        };
        match saved.write(folder, name) {
            Ok(()) if suspend => {
                // vm_destroy() is a sysctl, which capability mode does not permit, and nobody says
                // so: the VM stays (seen with bhyve 14.2).
                fault::pass(&self.world, fault::SUSPEND_DESTROYED)?;
                super::flush();
                process::exit(0)
            }
            Ok(()) => Ok(()),
            // The guest goes on; only standard error tells.
            Err(exit) => {
                let _ = io::stderr().write_all(exit.message.as_bytes());
                Ok(())
            }
        }
    }
}

/// Waits until something can be read, and says from which.
fn wait(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(polled
        .iter()
        .map(|fd| fd.any().unwrap_or_default())
        .collect())
}
