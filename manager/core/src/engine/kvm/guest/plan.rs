//! Plan of guests with a port: what a nursery makes once for all clones of a checkpoint.

use std::{fs::File, marker::PhantomData, sync::Arc};

use kvm_ioctls::Kvm;

use super::{port::GuestPort, serve};
use crate::{
    engine::kvm::{
        fork_server::inheritance::{GuestKind, Inheritance, Spare, StartError},
        vm::{
            layers::Layers,
            machine::Machine,
            ram::Ram,
            slots::Region,
            vcpu::{RestorePlan, VcpuState},
        },
        wire::Start,
    },
    units::PAGE_SIZE,
};

/// The way from a fresh virtual machine to the checkpoint's.
#[derive(Debug)]
pub(crate) struct GuestPlan {
    pub(crate) restore: RestorePlan,
    /// Memory that gets slots at once.
    pub(crate) regions: Vec<Region>,
}

/// Guests that such a port leads to.
pub(crate) struct PortGuest<P>(PhantomData<P>);

impl<P: GuestPort> GuestKind for PortGuest<P> {
    type Plan = GuestPlan;

    fn plan(
        kvm: &Kvm,
        layers: &Arc<Layers>,
        kern: &[u8],
        start: &Start,
        _: Vec<File>,
    ) -> Result<GuestPlan, StartError> {
        let state = VcpuState::from_bytes(kern).map_err(StartError::kern)?;
        let regions = start.working_set.iter().map(|range| Region {
            start: range.first * PAGE_SIZE,
            end: (range.first + range.count) * PAGE_SIZE,
        });
        let regions: Vec<_> = regions.collect();
        // One machine is made and thrown away: state that it shares with the checkpoint need not be
        // restored, and a refusal by KVM shows before any guest is forked.
        let ram = Ram::private(layers).map_err(|e| format!("cannot map the checkpoint: {e}"))?;
        let mut machine = Machine::new(kvm, ram, &regions).map_err(|(_, e)| e.to_string())?;
        let restore = RestorePlan::new(kvm, state, &machine.vcpu).map_err(StartError::kern)?;
        restore
            .try_on(&mut machine.vcpu)
            .map_err(StartError::kern)?;
        Ok(GuestPlan { restore, regions })
    }

    fn live(inheritance: &Inheritance<GuestPlan>, spare: &Spare<'_>) -> ! {
        serve::run::<P>(inheritance, spare)
    }
}
