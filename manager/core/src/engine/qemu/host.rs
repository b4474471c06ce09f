//! QEMU on this host: the program, its version, and what executes guests' instructions.

use std::{fs::File, path::Path, process::Command, sync::OnceLock};

use crate::{
    checkpoint::{Accelerator, Network, QemuGuest},
    engine::Error,
};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The setting that names the accelerator.
const ACCELERATOR_SETTING: &str = "qemu.accel";

/// The machine type whose newest version new checkpoints get.
const MACHINE: &str = "pc";

/// QEMU as it is installed here.
#[derive(Clone, Debug)]
pub struct QemuHost {
    /// The accelerator that was named.
    named: Option<Accelerator>,
    /// What the program said of itself, once it has. A host that could not ask may do so later.
    asked: std::sync::Arc<OnceLock<Installed>>,
}

/// What a QEMU says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Installed {
    version: String,
    machine: String,
}

impl QemuHost {
    /// This host, with the accelerator that is named, if one is.
    #[must_use]
    pub fn new(named: Option<Accelerator>) -> Self {
        Self {
            named,
            asked: std::sync::Arc::default(),
        }
    }

    /// The accelerator for new checkpoints, and why it is not KVM, if it is not.
    #[must_use]
    pub fn accelerator(&self) -> (Accelerator, Option<String>) {
        match (self.named, kvm_obstacle()) {
            (Some(Accelerator::Tcg), _) => {
                let why = format!("{ACCELERATOR_SETTING} names it");
                (Accelerator::Tcg, Some(why))
            }
            (Some(Accelerator::Kvm), _) | (None, None) => (Accelerator::Kvm, None),
            (None, why) => (Accelerator::Tcg, why),
        }
    }

    /// QEMU's version.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn version(&self) -> Result<String, Error> {
        Ok(self.installed()?.version.clone())
    }

    /// What a guest that is booted now will need.
    ///
    /// # Errors
    /// When QEMU is not installed.
    pub(super) fn new_guest(&self, image: &str, network: Network) -> Result<QemuGuest, Error> {
        let installed = self.installed()?;
        let (accelerator, _) = self.accelerator();
        Ok(QemuGuest {
            version: installed.version.clone(),
            machine: installed.machine.clone(),
            accelerator,
            cpu: match accelerator {
                Accelerator::Kvm => "host".to_owned(),
                Accelerator::Tcg => "max".to_owned(),
            },
            devices_version: super::command::DEVICES_VERSION,
            nonce: String::new(),
            image: image.to_owned(),
            network,
            root: false,
            disk: None,
        })
    }

    /// Says why this QEMU cannot go on with a guest.
    pub(super) fn suits(&self, guest: &QemuGuest) -> Result<(), String> {
        let installed = self.installed().map_err(|e| e.to_string())?;
        if installed.version != guest.version {
            return Err(format!(
                "it was made by QEMU {}, and this host has QEMU {}",
                guest.version, installed.version
            ));
        }
        if installed.machine != guest.machine {
            return Err(format!(
                "its machine type is {}, and this QEMU's is {}",
                guest.machine, installed.machine
            ));
        }
        if guest.accelerator == Accelerator::Kvm {
            if self.named == Some(Accelerator::Tcg) {
                return Err(format!(
                    "it runs with kvm, and {ACCELERATOR_SETTING} is tcg"
                ));
            }
            if let Some(obstacle) = kvm_obstacle() {
                return Err(format!("it runs with kvm: {obstacle}"));
            }
        }
        Ok(())
    }

    fn installed(&self) -> Result<&Installed, Error> {
        if let Some(installed) = self.asked.get() {
            return Ok(installed);
        }
        let installed = ask().map_err(|reason| Error::Unavailable {
            engine: "QEMU",
            reason,
        })?;
        Ok(self.asked.get_or_init(|| installed))
    }
}

/// Why the kernel of a guest cannot run on this host's KVM; none when it can.
#[must_use]
pub fn kvm_obstacle() -> Option<String> {
    if let Err(e) = File::options().read(true).write(true).open("/dev/kvm") {
        return Some(format!("cannot open /dev/kvm: {e}"));
    }
    // A KVM in software for guests that are made for it: it runs no ordinary kernel.
    Path::new("/sys/module/kvm_pvm")
        .exists()
        .then(|| "/dev/kvm is served by kvm_pvm, which boots no ordinary kernel".to_owned())
}

/// Asks the program for its version and for the machine type.
fn ask() -> Result<Installed, String> {
    let run = |word: &[&str]| {
        let output = Command::new(PROGRAM).args(word).output();
        let output = output.map_err(|e| format!("cannot run {PROGRAM}: {e}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(format!("{PROGRAM} {}: {said}", word.join(" ")))
        }
    };
    let version = version(&run(&["--version"])?)
        .ok_or_else(|| format!("{PROGRAM} --version says no version"))?;
    let machine = machine(&run(&["-machine", "help"])?)
        .ok_or_else(|| format!("{PROGRAM} has no machine type {MACHINE}"))?;
    Ok(Installed { version, machine })
}

/// The version, from what `--version` prints.
fn version(text: &str) -> Option<String> {
    let (_, version) = text.lines().next()?.split_once(" version ")?;
    Some(version.trim().to_owned())
}

/// The machine type that [`MACHINE`] stands for, from what `-machine help` prints.
fn machine(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(MACHINE))?;
    let (_, alias) = line.split_once("(alias of ")?;
    Some(alias.split(')').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 of Debian 12 prints it.
    #[test]
    fn version_and_machine_are_read() {
        let said =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright ...\n";
        assert_eq!(
            version(said).unwrap(),
            "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"
        );
        let list = "Supported machines are:\n\
            microvm              microvm (i386)\n\
            pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)\n\
            pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)\n";
        assert_eq!(machine(list).unwrap(), "pc-i440fx-7.2");
        assert_eq!(machine("none  empty machine\n"), None);
    }

    #[test]
    fn a_checkpoint_of_another_qemu_is_refused_by_name() {
        let host = QemuHost::new(Some(Accelerator::Tcg));
        host.asked
            .set(Installed {
                version: "7.2.22".to_owned(),
                machine: "pc-i440fx-7.2".to_owned(),
            })
            .unwrap();
        let guest = host.new_guest(&"0".repeat(64), Network::None).unwrap();
        host.suits(&guest).unwrap();
        let other = |change: fn(&mut QemuGuest)| {
            let mut guest = guest.clone();
            change(&mut guest);
            host.suits(&guest).unwrap_err()
        };
        let version = other(|guest| guest.version = "9.1.0".to_owned());
        assert_eq!(
            version,
            "it was made by QEMU 9.1.0, and this host has QEMU 7.2.22"
        );
        let machine = other(|guest| guest.machine = "pc-q35-7.2".to_owned());
        assert!(machine.contains("pc-q35-7.2") && machine.contains("pc-i440fx-7.2"));
        let kvm = other(|guest| guest.accelerator = Accelerator::Kvm);
        assert_eq!(kvm, "it runs with kvm, and qemu.accel is tcg");
    }
}
