//! `/dev/vmmctl`: the device that creates and destroys virtual machines.

use nix::errno::Errno;

use crate::{
    Error, VMM_CTL_PATH, Vm, VmName, abi, descriptor::Descriptor, error::Feature, request,
};

/// How long a virtual machine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is destroyed, whatever becomes of the process that created it.
    UntilDestroyed,
    /// Until the [`VmmCtl`] that created it is dropped, at the latest when the process ends: a
    /// killed process leaves no virtual machine behind (`VMMCTL_CREATE_DESTROY_ON_CLOSE`). Came
    /// with FreeBSD's commit bd16bac27e7e; a kernel without it gives [`Error::Unsupported`].
    UntilClosed,
}

/// The control device of vmm(4), open.
///
/// Opening it needs the rights of root or, in a jail, `allow.vmm`.
///
/// ```no_run
/// use vmm_sys::{Lifetime, SegmentId, VmmCtl};
///
/// let control = VmmCtl::open()?;
/// let vm = control.create(&"guest-1".parse()?, Lifetime::UntilClosed)?;
/// vm.allocate_segment(SegmentId::SYSTEM, 256 << 20)?;
/// # Ok::<(), vmm_sys::Error>(())
/// ```
#[derive(Debug)]
pub struct VmmCtl {
    device: Descriptor,
}

impl VmmCtl {
    /// Opens `/dev/vmmctl` (vmm(4)).
    ///
    /// # Errors
    /// [`Error::NotFreeBsd`] elsewhere; [`Error::Unsupported`] if the vmm(4) module is not loaded;
    /// [`Error::Open`] else.
    pub fn open() -> Result<Self, Error> {
        match Descriptor::open(VMM_CTL_PATH) {
            Ok(device) => Ok(Self { device }),
            Err(Error::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::Unsupported {
                    action: "open /dev/vmmctl",
                    what: Feature::Vmm,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a virtual machine without memory and virtual CPUs, and opens it
    /// (`VMMCTL_VM_CREATE` of `dev/vmm/vmm_dev.h`).
    ///
    /// # Errors
    /// [`Error::Request`]: `ENOMEM` if the user has `hw.vmm.maxvmms` machines (15.1 and later),
    /// `EEXIST` if the name is taken. [`Error::Unsupported`] if the kernel does not know
    /// [`Lifetime::UntilClosed`]. Errors of [`Vm::open`]; the machine is destroyed again then.
    pub fn create(&self, name: &VmName, lifetime: Lifetime) -> Result<Vm, Error> {
        self.create_only(name, lifetime)?;
        Vm::open(name).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.destroy(name);
        })
    }

    fn create_only(&self, name: &VmName, lifetime: Lifetime) -> Result<(), Error> {
        let action = "create a virtual machine";
        let flags = match lifetime {
            Lifetime::UntilDestroyed => 0,
            Lifetime::UntilClosed => abi::VMMCTL_CREATE_DESTROY_ON_CLOSE,
        };
        let mut vm = abi::vmmctl_vm_create {
            name: name.to_c(),
            flags,
            ..Default::default()
        };
        // SAFETY: the argument holds no pointers.
        match unsafe {
            self.device
                .request(action, request::VMMCTL_VM_CREATE, &mut vm)
        } {
            // The name is known to be good, so it is the flag, which older kernels hold to be a
            // reserved member that is not zero.
            Err(Error::Request {
                errno: Errno::EINVAL,
                ..
            }) if flags != 0 => Err(Error::Unsupported {
                action,
                what: Feature::DestroyOnClose,
            }),
            result => result,
        }
    }

    /// Destroys a virtual machine: its virtual CPUs exit, its memory is given back, and requests
    /// on open descriptors of it fail (`VMMCTL_VM_DESTROY` of `dev/vmm/vmm_dev.h`).
    ///
    /// # Errors
    /// [`Error::Request`]: `EINVAL` if there is no such machine, or if it is not this user's to
    /// see.
    pub fn destroy(&self, name: &VmName) -> Result<(), Error> {
        let mut vm = abi::vmmctl_vm_destroy {
            name: name.to_c(),
            ..Default::default()
        };
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.device.request(
                "destroy a virtual machine",
                request::VMMCTL_VM_DESTROY,
                &mut vm,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{made_up::Kernel, name};

    fn control(kernel: Kernel) -> VmmCtl {
        let device = Descriptor::made_up(VMM_CTL_PATH, tempfile::tempfile().unwrap(), kernel);
        VmmCtl { device }
    }

    fn g1() -> VmName {
        "g1".parse().unwrap()
    }

    #[test]
    fn the_lifetime_is_a_flag_and_the_rest_is_zero() {
        for (lifetime, flags) in [(Lifetime::UntilDestroyed, 0), (Lifetime::UntilClosed, 1)] {
            let kernel = Kernel::new().on(request::VMMCTL_VM_CREATE, move |vm| {
                assert_eq!(name::text(&vm.name), "g1");
                assert_eq!(vm.flags, flags);
                assert_eq!(vm.reserved, [0; 15]);
                Ok(())
            });
            control(kernel.clone())
                .create_only(&g1(), lifetime)
                .unwrap();
            assert_eq!(kernel.answered(), ["VMMCTL_VM_CREATE"]);
        }
    }

    #[test]
    fn an_old_kernel_is_told_from_a_bad_request() {
        let old = Kernel::new().on(request::VMMCTL_VM_CREATE, |vm| {
            if vm.flags == 0 {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        });
        let control = control(old);
        control
            .create_only(&g1(), Lifetime::UntilDestroyed)
            .unwrap();
        let error = control
            .create_only(&g1(), Lifetime::UntilClosed)
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Unsupported {
                    what: Feature::DestroyOnClose,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn too_many_machines_name_the_limit_to_raise() {
        let full = Kernel::new().on(request::VMMCTL_VM_CREATE, |_| Err(Errno::ENOMEM));
        let error = control(full)
            .create_only(&g1(), Lifetime::UntilClosed)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot create a virtual machine on /dev/vmmctl: VMMCTL_VM_CREATE: Out of memory"
        );
        assert!(error.hint().unwrap().contains("hw.vmm.maxvmms"));
    }

    #[test]
    fn destroying_names_the_machine() {
        let kernel = Kernel::new().on(request::VMMCTL_VM_DESTROY, |vm| {
            assert_eq!(name::text(&vm.name), "g1");
            Err(Errno::EINVAL)
        });
        let error = control(kernel).destroy(&g1()).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Request {
                    errno: Errno::EINVAL,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("no such virtual machine"));
    }

    #[cfg(not(target_os = "freebsd"))]
    #[test]
    fn elsewhere_opening_is_a_typed_error() {
        let error = VmmCtl::open().unwrap_err();
        assert!(matches!(error, Error::NotFreeBsd { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("cannot open /dev/vmmctl: it is FreeBSD/amd64's")
        );
        assert!(error.hint().unwrap().contains("KVM"));
        assert!(matches!(
            Vm::open(&g1()).unwrap_err(),
            Error::NotFreeBsd { .. }
        ));
    }
}
