//! Boot of the demo guest: from the reset vector to its first answer, after which its memory and
//! vCPU make a checkpoint.

use std::{fs::File, io};

use kvm_bindings::{CpuId, kvm_userspace_memory_region};
use kvm_ioctls::Kvm;
use zerocopy::FromZeros;

use super::{DemoPort, code, layout as l, mailbox::DemoAnswer};
use crate::{
    checkpoint::{Progress, Watch},
    engine::{
        Identity,
        kvm::{
            exit_reason::ExitReason,
            guest::port::GuestPort,
            vm::{
                error::{KvmError, at},
                machine::{Machine, Stop},
                ram::Ram,
                slots::Region,
                vcpu::VcpuState,
            },
            wire::AnswerBytes,
        },
    },
    units::Bytes,
};

/// The demo guest did not come up.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootError {
    #[error("cannot map the guest's memory: {0}")]
    Map(io::Error),
    #[error("{0}")]
    Kvm(String),
    #[error("the guest died while booting: {0}")]
    Died(ExitReason),
    #[error("the guest came up but did not answer its first request rightly")]
    NoAnswer,
    #[error("interrupted")]
    Interrupted,
}

impl From<KvmError> for BootError {
    fn from(error: KvmError) -> Self {
        Self::Kvm(error.to_string())
    }
}

/// Where the boot ROM lies: the last 64 KiB below 4 GiB, as the reset vector wants it.
const ROM_START: u64 = 0xffff_0000;
const ROM_SIZE: u64 = 0x1_0000;
/// A slot number that guest memory never uses.
const ROM_SLOT: u32 = 1000;

/// Boots the guest in `memory`, asks it something, and returns the state of its vCPU. Its memory
/// is then what `memory` holds.
pub(in crate::engine::kvm) fn boot(
    kvm: &Kvm,
    memory: &File,
    size: Bytes,
    identity: &Identity,
    watch: Watch<'_>,
) -> Result<VcpuState, BootError> {
    let ram = Ram::shared(memory, size).map_err(BootError::Map)?;
    fill(&ram, watch)?;
    let rom = Ram::anonymous(Bytes(ROM_SIZE)).map_err(BootError::Map)?;
    assert!(
        ram.write(l::CODE, code::guest()),
        "the smallest guest holds its code"
    );
    assert!(
        rom.write(ROM_SIZE - 16, code::reset_vector()),
        "the ROM holds the reset vector"
    );

    let mut machine = Machine::new(
        kvm,
        ram,
        &[Region {
            start: 0,
            end: l::USER,
        }],
    )
    .map_err(|(_, e)| e)?;
    let mut rom_slot = kvm_userspace_memory_region {
        slot: ROM_SLOT,
        flags: 0,
        guest_phys_addr: ROM_START,
        memory_size: ROM_SIZE,
        userspace_addr: rom.host_address(),
    };
    // SAFETY: the ROM's mapping lives until the slot is removed below, or the machine is dropped
    // first: it was declared later.
    unsafe { machine.vm.set_user_memory_region(rom_slot) }.map_err(at("add the boot ROM"))?;

    machine
        .vcpu
        .set_cpuid2(&cpuid(kvm)?)
        .map_err(at("set the CPUID table"))?;
    let tsc_khz = machine
        .vcpu
        .get_tsc_khz()
        .map_err(at("read the TSC rate"))?;
    let mut port = DemoPort::default();
    let identity = DemoPort::identity_bytes(identity);
    port.lay_down_identity(&machine.ram, &identity, tsc_khz);
    run_to_doorbell(&mut machine, &mut port)?;
    rom_slot.memory_size = 0;
    // SAFETY: a slot of size zero removes the ROM; nothing is mapped by it.
    unsafe { machine.vm.set_user_memory_region(rom_slot) }.map_err(at("remove the boot ROM"))?;

    port.put_request(&machine.ram, &DemoPort::FIRST_REQUEST);
    run_to_doorbell(&mut machine, &mut port)?;
    let mut bytes = AnswerBytes::new_zeroed();
    let answered = port.take_answer(&machine.ram, &mut bytes);
    let answer = DemoAnswer::of_wire(bytes);
    if !answered || (answer.status, answer.counter) != (l::STATUS_OK, 1) || answer.nonce == 0 {
        return Err(BootError::NoAnswer);
    }
    machine.finish_exit()?;
    Ok(VcpuState::capture(kvm, &machine.vcpu, false)?)
}

/// The processor that the guest sees: a 64-bit one with nothing on it that the guest does not use.
fn cpuid(kvm: &Kvm) -> Result<CpuId, BootError> {
    const BASIC: u32 = 0;
    const FEATURES: u32 = 1;
    const EXTENDED: u32 = 0x8000_0000;
    const EXTENDED_FEATURES: u32 = 0x8000_0001;
    /// XSAVE, OSXSAVE, AVX, F16C and RDRAND, in ECX of leaf 1.
    const ABOVE_XSAVE: u32 = 0b1_1111 << 26;

    let host = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(at("list the processor's features"))?;
    let leaves = [BASIC, FEATURES, EXTENDED, EXTENDED_FEATURES];
    let mut entries: Vec<_> = host
        .as_slice()
        .iter()
        .filter(|leaf| leaves.contains(&leaf.function))
        .copied()
        .collect();
    for leaf in &mut entries {
        match leaf.function {
            BASIC => leaf.eax = FEATURES,
            FEATURES => leaf.ecx &= !ABOVE_XSAVE,
            EXTENDED => leaf.eax = EXTENDED_FEATURES,
            _ => {}
        }
    }
    Ok(CpuId::from_entries(&entries).expect("four leaves fit"))
}

fn run_to_doorbell(machine: &mut Machine, port: &mut DemoPort) -> Result<(), BootError> {
    loop {
        match machine.run(port) {
            Stop::Waiting => return Ok(()),
            Stop::Interrupted => {}
            Stop::Dead(reason) => return Err(BootError::Died(reason)),
        }
    }
}

/// Fills all memory that is not the guest's own with words that differ everywhere (SplitMix64 of
/// the word's number), so that a page in the wrong place, or a missing one, changes every sum. The
/// guest would need minutes for it.
fn fill(ram: &Ram, watch: Watch<'_>) -> Result<(), BootError> {
    const CHUNK: usize = 1 << 20;
    let mut chunk = vec![0_u8; CHUNK];
    let mut address = l::USER;
    while address < ram.size() {
        let length = usize::try_from(ram.size() - address).map_or(CHUNK, |left| left.min(CHUNK));
        for (word, number) in chunk[..length].chunks_exact_mut(8).zip(address / 8..) {
            word.copy_from_slice(&split_mix(number).to_le_bytes());
        }
        ram.write(address, &chunk[..length]);
        address += length as u64;
        // The hash reports progress, since it takes most of the time.
        let told = Progress {
            done: Bytes(0),
            total: Bytes(ram.size()),
        };
        if watch(told).is_break() {
            return Err(BootError::Interrupted);
        }
    }
    Ok(())
}

fn split_mix(number: u64) -> u64 {
    let mut z = number
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
