//! Devices of a virtual machine, as its vCPU's loop sees them: whatever stands at I/O ports, and at
//! addresses that are no memory.

/// What comes of an access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The guest runs on.
    RunOn,
    /// The guest waits for the host: its vCPU stops.
    Wait,
}

/// The devices of one guest. `None` says that no device stands there, and the guest dies of the access.
///
/// A guest's accesses to memory are the vCPU loop's, with or without a slot: no device sees them.
pub(crate) trait Devices {
    /// The guest writes to an I/O port.
    fn write_port(&mut self, _port: u16, _data: &[u8]) -> Option<Flow> {
        None
    }

    /// The guest reads from an I/O port what the device puts into `data`.
    fn read_port(&mut self, _port: u16, _data: &mut [u8]) -> Option<Flow> {
        None
    }

    /// The guest writes to an address that is no memory.
    fn write_address(&mut self, _address: u64, _data: &[u8]) -> Option<Flow> {
        None
    }

    /// The guest reads, from an address that is no memory, what the device puts into `data`.
    fn read_address(&mut self, _address: u64, _data: &mut [u8]) -> Option<Flow> {
        None
    }
}
