//! `/dev/vmm/NAME`: the device of one virtual machine.

mod mapping;
mod memory;
mod segment;
mod snapshot;
mod statistics;
mod usage;

use nix::errno::Errno;

pub use mapping::GuestMapping;
pub use memory::{Mapping, Protection};
pub use segment::{Segment, SegmentId};
pub use snapshot::KernelState;
pub use usage::GuestMemory;

use crate::{Error, VmName, VnodeProvider, abi, descriptor::Descriptor, request};

/// A virtual machine's device, open for reading and writing.
///
/// Dropping it closes the descriptor; the machine lives on as its
/// [`Lifetime`](crate::Lifetime) says.
#[derive(Debug)]
pub struct Vm {
    device: Descriptor,
}

/// Why the virtual CPUs of a machine are made to exit (`enum vm_suspend_how` of `machine/vmm.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendReason {
    /// As on a reset of the machine.
    Reset,
    /// As when the machine is switched off.
    PowerOff,
    /// As when all virtual CPUs have halted with interrupts off.
    Halt,
    /// As on a triple fault.
    TripleFault,
}

/// Sockets, cores and threads of a machine (`struct vm_cpu_topology` of `machine/vmm_dev.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u16,
    /// Cores of a socket.
    pub cores: u16,
    /// Threads of a core.
    pub threads: u16,
    /// Most virtual CPUs that the machine can have. The kernel sets it, and ignores it when a
    /// topology is set.
    pub max_cpus: u16,
}

impl Vm {
    /// Opens the device of a machine that exists (vmm(4)).
    ///
    /// # Errors
    /// [`Error::NotFreeBsd`] elsewhere; [`Error::Open`] else, with `NotFound` if there is no such
    /// machine.
    pub fn open(name: &VmName) -> Result<Self, Error> {
        Ok(Self {
            device: Descriptor::open(&name.device_path())?,
        })
    }

    #[cfg(test)]
    pub(crate) fn made_up(kernel: crate::made_up::Kernel, memory: std::fs::File) -> Self {
        Self {
            device: Descriptor::made_up("/dev/vmm/g1", memory, kernel),
        }
    }

    pub(crate) fn device(&self) -> &Descriptor {
        &self.device
    }

    /// What vmm_vnode(4) adds to this machine's device.
    ///
    /// # Errors
    /// As [`VnodeProvider::of`].
    pub fn vnode_provider(&self) -> Result<VnodeProvider<'_>, Error> {
        VnodeProvider::of(self)
    }

    /// Makes all virtual CPUs exit to their process, which then acts on `reason` as it does when
    /// the guest itself brings that about (`VM_SUSPEND`). To stop a guest for a while, stop its
    /// process instead.
    ///
    /// # Errors
    /// [`Error::Request`]: `EALREADY` if the machine was suspended before.
    pub fn suspend(&self, reason: SuspendReason) -> Result<(), Error> {
        let how = match reason {
            SuspendReason::Reset => abi::VM_SUSPEND_RESET,
            SuspendReason::PowerOff => abi::VM_SUSPEND_POWEROFF,
            SuspendReason::Halt => abi::VM_SUSPEND_HALT,
            SuspendReason::TripleFault => abi::VM_SUSPEND_TRIPLEFAULT,
        };
        let mut suspend = abi::vm_suspend { how };
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.device
                .request("suspend", request::VM_SUSPEND, &mut suspend)
        }
    }

    /// Puts the machine back to its state after creation; its system memory and what is in it
    /// stay (`VM_REINIT`). All virtual CPUs must have exited after a [`Vm::suspend`].
    ///
    /// # Errors
    /// [`Error::Request`]: `EBUSY` if one has not.
    pub fn reinitialize(&self) -> Result<(), Error> {
        // SAFETY: there is no argument.
        unsafe {
            self.device
                .request("reinitialize", request::VM_REINIT, &mut ())
        }
    }

    /// Sockets, cores and threads (`VM_GET_TOPOLOGY`).
    ///
    /// # Errors
    /// [`Error::Request`]: `ENXIO` if the machine is destroyed.
    pub fn topology(&self) -> Result<Topology, Error> {
        let mut topology = abi::vm_cpu_topology::default();
        let action = "read the topology";
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.device
                .request(action, request::VM_GET_TOPOLOGY, &mut topology)?;
        };
        let abi::vm_cpu_topology {
            sockets,
            cores,
            threads,
            maxcpus,
        } = topology;
        Ok(Topology {
            sockets,
            cores,
            threads,
            max_cpus: maxcpus,
        })
    }

    /// Sets sockets, cores and threads (`VM_SET_TOPOLOGY`), which the guest sees through CPUID.
    ///
    /// # Errors
    /// [`Error::Request`]: `EINVAL` if their product is more than the machine can have.
    pub fn set_topology(&self, topology: Topology) -> Result<(), Error> {
        let Topology {
            sockets,
            cores,
            threads,
            max_cpus: _,
        } = topology;
        let mut topology = abi::vm_cpu_topology {
            sockets,
            cores,
            threads,
            maxcpus: 0,
        };
        let action = "set the topology";
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.device
                .request(action, request::VM_SET_TOPOLOGY, &mut topology)
        }
    }
}

/// Whether `error` is the kernel's answer to a request that it does not know.
pub(crate) fn unknown(error: &Error) -> bool {
    matches!(
        error,
        Error::Request {
            errno: Errno::ENOTTY,
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::Kernel;

    fn vm(kernel: Kernel) -> Vm {
        Vm::made_up(kernel, tempfile::tempfile().unwrap())
    }

    #[test]
    fn each_reason_is_the_kernels() {
        for (reason, expected) in [
            (SuspendReason::Reset, 1),
            (SuspendReason::PowerOff, 2),
            (SuspendReason::Halt, 3),
            (SuspendReason::TripleFault, 4),
        ] {
            let kernel = Kernel::new().on(request::VM_SUSPEND, move |suspend| {
                assert_eq!(suspend.how, expected);
                Ok(())
            });
            vm(kernel).suspend(reason).unwrap();
        }
    }

    #[test]
    fn a_topology_is_set_and_read() {
        let set = std::rc::Rc::new(std::cell::Cell::new(None));
        let seen = set.clone();
        let kernel = Kernel::new()
            .on(request::VM_SET_TOPOLOGY, move |topology| {
                set.set(Some(*topology));
                Ok(())
            })
            .on(request::VM_GET_TOPOLOGY, move |topology| {
                *topology = abi::vm_cpu_topology {
                    maxcpus: 16,
                    ..seen.get().unwrap()
                };
                Ok(())
            });
        let vm = vm(kernel);
        let asked = Topology {
            sockets: 1,
            cores: 2,
            threads: 3,
            max_cpus: 99,
        };
        vm.set_topology(asked).unwrap();
        assert_eq!(
            vm.topology().unwrap(),
            Topology {
                max_cpus: 16,
                ..asked
            }
        );
    }

    #[test]
    fn a_destroyed_machine_says_so() {
        let gone = Kernel::new()
            .on(request::VM_GET_TOPOLOGY, |_| Err(Errno::ENXIO))
            .on(request::VM_REINIT, |()| Err(Errno::ENXIO));
        let vm = vm(gone);
        assert_eq!(
            vm.topology().unwrap_err().to_string(),
            "cannot read the topology on /dev/vmm/g1: VM_GET_TOPOLOGY: No such device or address"
        );
        assert!(vm.reinitialize().is_err());
    }
}
