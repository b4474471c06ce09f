//! Tests of the vCPU loop with a guest of a few instructions and devices of its own.

use kvm_bindings::kvm_regs;

use super::*;
use crate::units::Bytes;

/// Each access that reached a device.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    WritePort(u16, Vec<u8>),
    ReadPort(u16),
    WriteAddress(u64, Vec<u8>),
    ReadAddress(u64),
}

/// Devices at ports 0x10 to 0x12 and from address 0xf0000 to 0xf00ff. Port 0x12 has the guest wait.
#[derive(Default)]
struct Recorder(Vec<Seen>);

impl Devices for Recorder {
    fn write_port(&mut self, port: u16, data: &[u8]) -> Option<Flow> {
        self.0.push(Seen::WritePort(port, data.to_vec()));
        match port {
            0x10 => Some(Flow::RunOn),
            0x12 => Some(Flow::Wait),
            _ => None,
        }
    }

    fn read_port(&mut self, port: u16, data: &mut [u8]) -> Option<Flow> {
        self.0.push(Seen::ReadPort(port));
        data.fill(7);
        (port == 0x11).then_some(Flow::RunOn)
    }

    fn write_address(&mut self, address: u64, data: &[u8]) -> Option<Flow> {
        self.0.push(Seen::WriteAddress(address, data.to_vec()));
        (0xf_0000..0xf_0100)
            .contains(&address)
            .then_some(Flow::RunOn)
    }

    fn read_address(&mut self, address: u64, data: &mut [u8]) -> Option<Flow> {
        self.0.push(Seen::ReadAddress(address));
        data.fill(9);
        (0xf_0000..0xf_0100)
            .contains(&address)
            .then_some(Flow::RunOn)
    }
}

/// A machine in real mode with 64 KiB of memory and a slot over the page of `code`, which runs from
/// address 0; `None` where there is no KVM.
fn machine(code: &[u8]) -> Option<Machine> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => {
            let required = std::env::var_os("BROOD_REQUIRE_KVM").is_some_and(|value| value == "1");
            assert!(!required, "BROOD_REQUIRE_KVM=1, and /dev/kvm: {e}");
            return None;
        }
    };
    let ram = Ram::anonymous(Bytes(0x1_0000)).unwrap();
    assert!(ram.write(0, code));
    let page = Region {
        start: 0,
        end: 0x1000,
    };
    let machine = Machine::new(&kvm, ram, &[page])
        .map_err(|(_, e)| e)
        .unwrap();
    let mut sregs = machine.vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    machine.vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_regs {
        rflags: 2,
        ..kvm_regs::default()
    };
    machine.vcpu.set_regs(&regs).unwrap();
    Some(machine)
}

#[test]
fn a_guest_of_any_kind_speaks_to_its_devices() {
    let code = [
        0xb0, 0x42, // mov al, 0x42
        0xa2, 0x00, 0x20, // mov [0x2000], al
        0xe6, 0x10, // out 0x10, al
        0xe4, 0x11, // in al, 0x11
        0xbb, 0x00, 0xf0, // mov bx, 0xf000
        0x8e, 0xdb, // mov ds, bx
        0xa2, 0x10, 0x00, // mov [0x10], al
        0xa0, 0x11, 0x00, // mov al, [0x11]
        0xe6, 0x12, // out 0x12, al
        0xe6, 0x99, // out 0x99, al
    ];
    let Some(mut machine) = machine(&code) else {
        return;
    };
    let mut devices = Recorder::default();
    assert_eq!(machine.run(&mut devices), Stop::Waiting);
    // Memory that had no slot is memory still.
    let mut byte = [0];
    assert!(machine.ram.read(0x2000, &mut byte));
    assert_eq!(byte, [0x42]);
    let seen = [
        Seen::WritePort(0x10, vec![0x42]),
        Seen::ReadPort(0x11),
        Seen::WriteAddress(0xf_0010, vec![7]),
        Seen::ReadAddress(0xf_0011),
        Seen::WritePort(0x12, vec![9]),
    ];
    assert_eq!(devices.0, seen);
    let dead = ExitReason::BadPort { port: 0x99 };
    assert_eq!(machine.run(&mut devices), Stop::Dead(dead));
}

#[test]
fn an_access_that_no_device_takes_is_the_guests_death() {
    let code = [
        0xbb, 0x00, 0xe0, // mov bx, 0xe000
        0x8e, 0xdb, // mov ds, bx
        0xa0, 0x34, 0x12, // mov al, [0x1234]
    ];
    let Some(mut machine) = machine(&code) else {
        return;
    };
    let dead = ExitReason::BadAddress { address: 0xe_1234 };
    assert_eq!(machine.run(&mut Recorder::default()), Stop::Dead(dead));
}
