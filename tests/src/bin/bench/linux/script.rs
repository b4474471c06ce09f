//! The bare script: QEMU, started by hand on a checkpoint's memory and devices, as lean as its own
//! options make it, and nothing else: no record, no limits, no filter of system calls, and a guest
//! that is a copy of all the others. Its guests outlive it, as brood's do: each has a session of its
//! own.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use brood_core::agent::Agent;
use nix::unistd::setsid;

use super::{
    ANSWER,
    place::{MEMORY_MIB, Place},
};
use crate::{command::Interrupt, error::Error};

const QEMU: &str = "qemu-system-x86_64";
/// The machine type and processor that brood gives its guests, of which the state is.
const MACHINE: &str = "pc,memory-backend=memory,vmport=off,suppress-vmdesc=on";

/// What all of its guests have in common.
pub(super) struct Script {
    folder: PathBuf,
    memory: PathBuf,
    state: PathBuf,
    pub(super) interrupt: Interrupt,
}

/// A guest. It is killed when this is dropped.
pub(super) struct Guest {
    process: Child,
    /// When its process was started.
    pub(super) began: Instant,
    /// A session with its agent.
    pub(super) agent: Agent,
}

impl Script {
    /// Copies the memory file, which QEMU opens for writing whatever it does with it.
    pub(super) fn of(place: &Place) -> Result<Self, Error> {
        let folder = place.folder();
        let memory = folder.join("memory.ckp");
        fs::create_dir(&folder).map_err(Error::io("make a folder"))?;
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always")
            .arg(place.file("ckp"))
            .arg(&memory);
        let interrupt = place.brood.interrupt.clone();
        let _ = crate::command::run(&mut copy, &interrupt)?;
        Ok(Self {
            folder,
            memory,
            state: place.file("ckp.kern"),
            interrupt,
        })
    }

    /// Starts a guest, and waits until its agent says hello.
    pub(super) fn start(&self, number: u32) -> Result<Guest, Error> {
        self.interrupt.check()?;
        let socket = self.folder.join(format!("{number}.agent"));
        let monitor = self.folder.join(format!("{number}.qmp"));
        for old in [&socket, &monitor] {
            let _ = fs::remove_file(old);
        }
        let began = Instant::now();
        let state = File::open(&self.state).map_err(Error::io("open the devices' state"))?;
        let mut command = Command::new(QEMU);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", MACHINE, "-accel", "tcg", "-cpu", "max"])
            .args(["-m", &format!("{MEMORY_MIB}M"), "-object"])
            .arg(format!(
                "memory-backend-file,id=memory,size={MEMORY_MIB}M,share=off,mem-path={}",
                self.memory.display()
            ))
            .args(["-chardev", "null,id=console"])
            .args(["-device", "isa-serial,chardev=console"])
            .args(["-device", "virtio-serial-pci,id=ports,max_ports=2"])
            .args(["-chardev", &listening("agent", &socket)])
            .args([
                "-device",
                "virtserialport,bus=ports.0,chardev=agent,name=brood.agent",
            ])
            .args(["-chardev", &listening("qmp", &monitor)])
            .args(["-mon", "chardev=qmp,mode=control"])
            .args(["-global", "migration.send-configuration=off"])
            .args(["-incoming", "fd:0"])
            .stdin(Stdio::from(state));
        // The scheduler gives each session its share of the processors (sched_autogroup_enabled), and
        // counts priorities within a session only: on a busy host the measurement's own priority
        // would be one that brood's guests do not have.
        // SAFETY: setsid(2) is safe between fork and exec.
        unsafe {
            command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
        }
        let mut process = command.spawn().map_err(Error::io("start QEMU"))?;
        match Agent::connect(&socket, ANSWER) {
            Ok(agent) => Ok(Guest {
                process,
                began,
                agent,
            }),
            Err(e) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(Error::Guest(e.to_string()))
            }
        }
    }
}

fn listening(id: &str, path: &std::path::Path) -> String {
    format!("socket,id={id},server=on,wait=off,path={}", path.display())
}

impl Guest {
    /// Asks it once.
    pub(super) fn answers(&self) -> Result<(), Error> {
        let answer = self.agent.ready();
        answer.map(drop).map_err(|e| Error::Guest(e.to_string()))
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
