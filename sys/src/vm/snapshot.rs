//! Kernel state of a virtual machine, saved and restored.
//!
//! This is the `.ckp.kern` part of a checkpoint, one piece per [`KernelState`]; bhyve(8) joins the
//! pieces with the state of its own devices. The kernel must have the option `BHYVE_SNAPSHOT`.

use nix::errno::Errno;

use super::{Vm, unknown};
use crate::{Error, abi, error::Feature, request};

/// First try and largest size of a piece, in bytes. The kernel logs a try that was too small.
const BUFFER: usize = 1 << 20;
const MOST: usize = 64 << 20;

/// A kind of state that the kernel keeps (`enum snapshot_req` of `machine/vmm_snapshot.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelState {
    /// I/O APIC.
    IoApic,
    /// The machine itself: which virtual CPUs have started, their exits and time stamps.
    Machine,
    /// Local APICs.
    LocalApic,
    /// High precision event timer.
    Hpet,
    /// Registers and control structures of the virtual CPUs (VMCS, VMCB).
    Vcpus,
    /// Legacy interrupt controller.
    Pic,
    /// Legacy timer.
    Pit,
    /// Power management timer.
    PmTimer,
    /// Real-time clock.
    Rtc,
}

impl KernelState {
    /// All kinds, in the order in which bhyve(8) saves and restores them.
    pub const ALL: [Self; 9] = [
        Self::Hpet,
        Self::Machine,
        Self::IoApic,
        Self::LocalApic,
        Self::Vcpus,
        Self::Pit,
        Self::Pic,
        Self::PmTimer,
        Self::Rtc,
    ];

    fn request(self) -> abi::snapshot_req {
        match self {
            Self::IoApic => abi::STRUCT_VIOAPIC,
            Self::Machine => abi::STRUCT_VM,
            Self::LocalApic => abi::STRUCT_VLAPIC,
            Self::Hpet => abi::STRUCT_VHPET,
            Self::Vcpus => abi::STRUCT_VMCX,
            Self::Pic => abi::STRUCT_VATPIC,
            Self::Pit => abi::STRUCT_VATPIT,
            Self::PmTimer => abi::STRUCT_VPMTMR,
            Self::Rtc => abi::STRUCT_VRTC,
        }
    }
}

impl Vm {
    /// Saves one kind of kernel state (`VM_SNAPSHOT_REQ`). The guest must not run: stop its
    /// virtual CPUs before the first kind and keep them so until the last.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without `BHYVE_SNAPSHOT`; [`Error::Request`] else.
    pub fn save_state(&self, state: KernelState) -> Result<Vec<u8>, Error> {
        let mut buffer = vec![0; BUFFER];
        loop {
            // SAFETY: the kernel writes to the buffer, which is there and writable.
            let result = unsafe {
                self.snapshot(
                    "save kernel state",
                    state,
                    abi::VM_SNAPSHOT_SAVE,
                    buffer.as_mut_ptr(),
                    buffer.len(),
                )
            };
            match result {
                Err(Error::Request {
                    errno: Errno::E2BIG,
                    ..
                }) if buffer.len() < MOST => {
                    buffer.resize(buffer.len() * 2, 0);
                }
                result => {
                    buffer.truncate(result?);
                    return Ok(buffer);
                }
            }
        }
    }

    /// Restores one kind of kernel state from what [`Vm::save_state`] gave (`VM_SNAPSHOT_REQ`).
    /// The guest must not have run yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without `BHYVE_SNAPSHOT`; [`Error::Request`]: `E2BIG` if the state
    /// is cut short.
    pub fn restore_state(&self, state: KernelState, saved: &[u8]) -> Result<(), Error> {
        let start = saved.as_ptr().cast_mut();
        // SAFETY: restoring reads from the buffer only.
        unsafe {
            self.snapshot(
                "restore kernel state",
                state,
                abi::VM_SNAPSHOT_RESTORE,
                start,
                saved.len(),
            )
        }?;
        Ok(())
    }

    /// Has the guest's time stamp counters go on from where they were when it was saved
    /// (`VM_RESTORE_TIME`): after all state is restored, before the guest runs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without `BHYVE_SNAPSHOT`; [`Error::Request`] else.
    pub fn restore_time(&self) -> Result<(), Error> {
        let action = "restore the guest's time";
        // SAFETY: the argument is a number that the kernel ignores.
        let result = unsafe {
            self.device
                .request(action, request::VM_RESTORE_TIME, &mut 0)
        };
        result.map_err(|error| without_snapshots(error, action))
    }

    /// Returns how many bytes of the buffer were used.
    ///
    /// # Safety
    /// At `start` there must be `length` bytes, writable if `op` is to save.
    unsafe fn snapshot(
        &self,
        action: &'static str,
        state: KernelState,
        op: abi::vm_snapshot_op,
        start: *mut u8,
        length: usize,
    ) -> Result<usize, Error> {
        let mut meta = abi::vm_snapshot_meta {
            dev_req: state.request(),
            buffer: abi::vm_snapshot_buffer {
                buf_start: start,
                buf_size: length,
                buf: start,
                buf_rem: length,
            },
            op,
            ..Default::default()
        };
        // SAFETY: the kernel goes from `buf` on by at most `buf_rem` bytes, which are there; the
        // other pointers are null, and of no use to it.
        unsafe {
            self.device
                .request(action, request::VM_SNAPSHOT_REQ, &mut meta)
        }
        .map_err(|error| without_snapshots(error, action))?;
        Ok(length.saturating_sub(meta.buffer.buf_rem))
    }
}

fn without_snapshots(error: Error, action: &'static str) -> Error {
    if unknown(&error) {
        Error::Unsupported {
            action,
            what: Feature::Snapshot,
        }
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::made_up::Kernel;

    fn vm(kernel: Kernel) -> Vm {
        Vm::made_up(kernel, tempfile::tempfile().unwrap())
    }

    /// Copies as `vm_snapshot_buf` of FreeBSD's `vmm_snapshot.c` does: to or from `state`.
    fn kernel(state: Rc<RefCell<Vec<u8>>>) -> Kernel {
        Kernel::new().on(request::VM_SNAPSHOT_REQ, move |meta| {
            let mut state = state.borrow_mut();
            if meta.dev_req != abi::STRUCT_VMCX {
                return Err(Errno::EINVAL);
            }
            if meta.buffer.buf_rem < state.len() {
                return Err(Errno::E2BIG);
            }
            let length = state.len();
            let (guest, ours) = (meta.buffer.buf, state.as_mut_ptr());
            // SAFETY: both have that many bytes, as was just seen.
            unsafe {
                match meta.op {
                    abi::VM_SNAPSHOT_SAVE => guest.copy_from(ours, length),
                    _ => guest.copy_to(ours, length),
                }
                meta.buffer.buf = guest.add(length);
            }
            meta.buffer.buf_rem -= length;
            Ok(())
        })
    }

    #[test]
    fn what_was_saved_is_restored_whatever_its_size() {
        for size in [1, BUFFER, BUFFER + 1, 5 * BUFFER] {
            let original: Vec<u8> = (0..size).map(|i| (i % 251).to_ne_bytes()[0]).collect();
            let state = Rc::new(RefCell::new(original.clone()));
            let vm = vm(kernel(state.clone()));
            let saved = vm.save_state(KernelState::Vcpus).unwrap();
            assert_eq!(saved, original);
            state.borrow_mut().fill(0);
            vm.restore_state(KernelState::Vcpus, &saved).unwrap();
            assert_eq!(*state.borrow(), original);
            let error = vm
                .restore_state(KernelState::Vcpus, &saved[1..])
                .unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Request {
                        errno: Errno::E2BIG,
                        ..
                    }
                ),
                "{error}"
            );
        }
    }

    #[test]
    fn a_kernel_that_never_has_enough_is_given_up_on() {
        let kernel = Kernel::new().on(request::VM_SNAPSHOT_REQ, |_| Err(Errno::E2BIG));
        let error = vm(kernel.clone()).save_state(KernelState::Rtc).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Request {
                    errno: Errno::E2BIG,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(kernel.answered().len(), 7, "1 MiB to 64 MiB, doubling");
    }

    #[test]
    fn each_kind_is_the_kernels() {
        let kinds: Vec<_> = KernelState::ALL
            .into_iter()
            .map(KernelState::request)
            .collect();
        assert_eq!(kinds, [5, 2, 1, 3, 6, 8, 7, 9, 10]);
    }

    #[test]
    fn a_kernel_without_the_option_is_told_from_a_failure() {
        let vm = vm(Kernel::new());
        for error in [
            vm.save_state(KernelState::Rtc).unwrap_err(),
            vm.restore_state(KernelState::Rtc, &[]).unwrap_err(),
            vm.restore_time().unwrap_err(),
        ] {
            let missing = matches!(
                error,
                Error::Unsupported {
                    what: Feature::Snapshot,
                    ..
                }
            );
            assert!(missing, "{error}");
            assert!(error.hint().unwrap().contains("BHYVE_SNAPSHOT"));
        }
    }
}
