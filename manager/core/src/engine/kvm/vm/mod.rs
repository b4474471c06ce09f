//! Virtual machine of the KVM engine: KVM's file descriptors, the vCPU's state, and guest memory as
//! a private mapping of the checkpoint's layers.

pub(crate) mod devices;
pub(crate) mod dump;
pub(crate) mod error;
pub(crate) mod layers;
pub(crate) mod machine;
pub(crate) mod pagemap;
pub(crate) mod ram;
pub(crate) mod slots;
pub(crate) mod vcpu;
