//! Minimal virtual machine for Linux guests, on KVM: memory, processors, an interrupt controller, a
//! serial port and virtio devices, described to the guest by ACPI.
//!
//! Debian's stock cloud kernel boots in it unchanged. There is no PCI bus, no firmware and no legacy
//! timer: the ACPI tables say so (hardware-reduced ACPI), and time comes from kvm-clock.
//!
//! A [`Machine`](machine::Machine) is made over memory that the caller gives, and its processors run
//! in a thread each ([`threads::Threads`]). What the guest does to a device comes to
//! [`bus::Bus`], which all threads share.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod channel;
pub mod cpu_template;
mod cpuid;
pub mod error;
pub mod generation;
pub mod irq;
pub mod layout;
pub mod line;
pub mod machine;
pub mod memory;
pub mod park;
pub mod power;
mod prefault;
pub mod serial;
pub mod state;
pub mod threads;
pub mod vcpu;
pub mod virtio;
