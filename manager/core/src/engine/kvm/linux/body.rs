//! Body of a Linux guest: its virtual machine, which is there or was given back to the kernel.

use std::{
    mem,
    time::{Duration, Instant},
};

use brood_machine::{
    bus::Bus,
    error::Error,
    machine::Machine,
    park::{ParkedMachine, Parking},
    vcpu::Vcpu,
};
use kvm_ioctls::Kvm;

use super::parking::{Budget, Decision};

/// A guest's virtual machine.
#[derive(Debug)]
pub(super) struct Body {
    form: Form,
    budget: Budget,
    /// How long it took to give the virtual machine back.
    parking: Duration,
}

/// A guest after it was to be parked.
pub(super) enum AfterPark {
    Parked,
    /// These processors are to run on. When it is worth to try again, if that is known.
    Awake(Vec<Vcpu>, Option<Duration>),
}

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
    /// With a machine that took so long to make.
    pub(super) fn new(machine: Machine, made_in: Duration) -> Self {
        Self {
            form: Form::Awake(machine),
            budget: Budget::new(made_in, Instant::now()),
            parking: Duration::ZERO,
        }
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(self.form, Form::Parked(_))
    }

    /// The virtual machine, if it is there.
    pub(super) fn machine(&mut self) -> Option<&mut Machine> {
        match &mut self.form {
            Form::Awake(machine) => Some(machine),
            Form::Parked(_) | Form::Between => None,
        }
    }

    /// How long it may stay parked; for ever, when there is no limit.
    pub(super) fn may_rest(&self) -> Option<Duration> {
        match &self.form {
            Form::Parked(parked) => parked.may_rest(),
            Form::Awake(_) | Form::Between => None,
        }
    }

    /// Gives the virtual machine back if all of its processors wait, and if that pays. The processors
    /// have been called back since `began`.
    pub(super) fn park(
        &mut self,
        kvm: &Kvm,
        vcpus: Vec<Vcpu>,
        bus: &Bus,
        began: Instant,
    ) -> Result<AfterPark, Error> {
        let rest = Machine::rest(&vcpus)?;
        if let Decision::StayAwake(again) = self.budget.decide(rest, Instant::now()) {
            return Ok(AfterPark::Awake(vcpus, again));
        }
        let Form::Awake(machine) = mem::replace(&mut self.form, Form::Between) else {
            return Ok(AfterPark::Awake(vcpus, None));
        };
        match machine.park(kvm, vcpus, bus)? {
            Parking::Parked(parked) => {
                self.form = Form::Parked(parked);
                self.parking = began.elapsed();
                Ok(AfterPark::Parked)
            }
            Parking::Busy(machine, vcpus) => {
                self.form = Form::Awake(machine);
                Ok(AfterPark::Awake(vcpus, None))
            }
        }
    }

    /// Makes the virtual machine again if it was given back; its processors, which are to run then.
    pub(super) fn wake(&mut self, kvm: &Kvm) -> Result<Vec<Vcpu>, Error> {
        let Form::Parked(parked) = &self.form else {
            return Ok(Vec::new());
        };
        let began = Instant::now();
        let mut machine = parked.unpark(kvm)?;
        let vcpus = mem::take(&mut machine.vcpus);
        self.form = Form::Awake(machine);
        let now = Instant::now();
        let took = self.parking + now.duration_since(began);
        self.budget.spend(took, now);
        Ok(vcpus)
    }
}
