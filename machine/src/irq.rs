//! Interrupt lines of devices.

use std::sync::Arc;

use kvm_ioctls::VmFd;

/// A line by which a device tells the guest that something has happened.
pub trait Irq: Send + Sync {
    /// Raises it once. The guest sees one edge.
    fn raise(&self);
}

/// A pin of the interrupt controller in the kernel.
#[derive(Debug)]
pub struct GsiLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl GsiLine {
    /// The pin with this number.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm, gsi }
    }
}

impl Irq for GsiLine {
    fn raise(&self) {
        // The controller is there, and so is the pin: there is nothing that a device could do.
        let _ = self.vm.set_irq_line(self.gsi, true);
        let _ = self.vm.set_irq_line(self.gsi, false);
    }
}
