//! Body of a Linux guest: its virtual machine, which is there or was given back to the kernel.

use std::{mem, time::Duration};

use brood_machine::{
    bus::Bus,
    error::Error,
    machine::Machine,
    park::{ParkedMachine, Parking},
    vcpu::Vcpu,
};
use kvm_ioctls::Kvm;

/// A guest's virtual machine.
#[derive(Debug)]
pub(super) struct Body(Form);

#[derive(Debug)]
enum Form {
    /// It is there; its processors are with their threads once the guest has begun.
    Awake(Machine),
    /// It was given back.
    Parked(Box<ParkedMachine>),
    /// On the way from one to the other.
    Between,
}

impl Body {
    pub(super) fn new(machine: Machine) -> Self {
        Self(Form::Awake(machine))
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(self.0, Form::Parked(_))
    }

    /// The virtual machine, if it is there.
    pub(super) fn machine(&mut self) -> Option<&mut Machine> {
        match &mut self.0 {
            Form::Awake(machine) => Some(machine),
            Form::Parked(_) | Form::Between => None,
        }
    }

    /// How long it may stay parked; for ever, when there is no limit.
    pub(super) fn may_rest(&self) -> Option<Duration> {
        match &self.0 {
            Form::Parked(parked) => parked.may_rest(),
            Form::Awake(_) | Form::Between => None,
        }
    }

    /// Gives the virtual machine back if all of its processors wait; those that are to run on.
    pub(super) fn park(
        &mut self,
        kvm: &Kvm,
        vcpus: Vec<Vcpu>,
        bus: &Bus,
    ) -> Result<Vec<Vcpu>, Error> {
        let Form::Awake(machine) = mem::replace(&mut self.0, Form::Between) else {
            return Ok(vcpus);
        };
        match machine.park(kvm, vcpus, bus)? {
            Parking::Parked(parked) => {
                self.0 = Form::Parked(parked);
                Ok(Vec::new())
            }
            Parking::Busy(machine, vcpus) => {
                self.0 = Form::Awake(machine);
                Ok(vcpus)
            }
        }
    }

    /// Makes the virtual machine again if it was given back; its processors, which are to run then.
    pub(super) fn wake(&mut self, kvm: &Kvm) -> Result<Vec<Vcpu>, Error> {
        let Form::Parked(parked) = &self.0 else {
            return Ok(Vec::new());
        };
        let mut machine = parked.unpark(kvm)?;
        let vcpus = mem::take(&mut machine.vcpus);
        self.0 = Form::Awake(machine);
        Ok(vcpus)
    }
}
