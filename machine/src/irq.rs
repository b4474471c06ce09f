//! Interrupt lines of devices.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use kvm_ioctls::VmFd;

/// A line by which a device tells the guest that something has happened.
pub trait Irq: Send + Sync {
    /// Raises it once. The guest sees one edge.
    fn raise(&self);
}

/// The VM whose lines the devices raise. Devices outlive it: while their guest is parked there is
/// none.
#[derive(Debug, Default)]
pub(crate) struct CurrentVm(RwLock<Weak<VmFd>>);

impl CurrentVm {
    /// From here on it is this one.
    pub(crate) fn set(&self, vm: &Arc<VmFd>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(vm);
    }

    fn get(&self) -> Option<Arc<VmFd>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.upgrade()
    }
}

/// A pin of the interrupt controller in the kernel.
#[derive(Debug)]
pub struct GsiLine {
    vm: Arc<CurrentVm>,
    gsi: u32,
}

impl GsiLine {
    /// The pin with this number.
    pub(crate) fn new(vm: Arc<CurrentVm>, gsi: u32) -> Self {
        Self { vm, gsi }
    }
}

impl Irq for GsiLine {
    fn raise(&self) {
        // A parked guest is woken before anything reaches its devices.
        let Some(vm) = self.vm.get() else { return };
        // The controller is there, and so is the pin: there is nothing that a device could do.
        let _ = vm.set_irq_line(self.gsi, true);
        let _ = vm.set_irq_line(self.gsi, false);
    }
}
