//! Boot of a Linux kernel: what its boot protocol wants in memory, and where its first processor
//! begins (the kernel's Documentation/arch/x86/boot.rst, "64-bit boot protocol").

use std::{fs::File, io::Read};

use linux_loader::{
    configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator},
    loader::{
        KernelLoader,
        bootparam::{boot_e820_entry, boot_params},
        bzimage::BzImage,
    },
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::{
    error::{Error, memory},
    layout as l,
    memory::Memory,
};

/// Offset of the 64-bit entry in the kernel's protected-mode part.
const ENTRY_64: u64 = 0x200;
/// The kernel has a 64-bit entry (`xloadflags`).
const HAS_ENTRY_64: u16 = 1;
/// Kind of memory that the kernel may use.
const E820_RAM: u32 = 1;
/// Kind of memory with ACPI tables.
const E820_ACPI: u32 = 3;
/// A loader that has no number of its own.
const OTHER_LOADER: u8 = 0xff;

/// What a kernel's command line says of this machine.
///
/// By default a kernel on hardware-reduced ACPI restarts by its EFI firmware, which is not there, and
/// hangs. And it reports free memory in blocks of 2 MiB, and only while 64 MiB are free
/// (`page_reporting_cycle()` of mm/page_reporting.c), so a small guest would never report any: here
/// in blocks of 64 KiB, while 2 MiB are free.
///
/// And it compares its time stamp counter with kvm-clock twice a second, until it finds the counter
/// wrong: which each clone does anew where KVM itself is emulated.
pub const COMMAND_LINE: &str = "reboot=acpi page_reporting.page_reporting_order=4 tsc=nowatchdog";

/// What is booted.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// The kernel, as a bzImage.
    pub image: &'a File,
    /// Its initial file system.
    pub initrd: Option<&'a File>,
    /// Its command line.
    pub command_line: &'a str,
}

/// Lays a kernel down; where the first processor begins.
///
/// # Errors
/// When the kernel is none that can be booted so, or memory is too small for it.
pub fn load(ram: &Memory, kernel: Kernel<'_>, rsdp: GuestAddress) -> Result<GuestAddress, Error> {
    let mut image = kernel.image;
    let loaded = BzImage::load(ram, None, &mut image, Some(GuestAddress(l::KERNEL)))
        .map_err(|e| Error::Kernel(e.to_string()))?;
    let header = loaded.setup_header.unwrap_or_default();
    if header.xloadflags & HAS_ENTRY_64 == 0 {
        return Err(Error::Kernel("it has no 64-bit entry".to_owned()));
    }
    let mut params = boot_params {
        hdr: header,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = OTHER_LOADER;
    params.acpi_rsdp_addr = rsdp.raw_value();
    // The kernel unpacks itself at the address that it prefers, if it was loaded below.
    let unpacked = loaded.kernel_load.raw_value().max(header.pref_address);
    let needed = unpacked + u64::from(header.init_size);
    if let Some(initrd) = kernel.initrd {
        let (at, size) = load_initrd(ram, initrd, needed.max(loaded.kernel_end))?;
        params.hdr.ramdisk_image = at;
        params.hdr.ramdisk_size = size;
    }
    params.hdr.cmd_line_ptr = u32::try_from(l::COMMAND_LINE).expect("it lies low");
    write_command_line(ram, kernel.command_line)?;
    for (entry, (address, size, kind)) in params.e820_table.iter_mut().zip(memory_map(ram)) {
        *entry = boot_e820_entry {
            addr: address,
            size,
            r#type: kind,
        };
        params.e820_entries += 1;
    }
    let params = BootParams::new(&params, GuestAddress(l::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, ram)
        .map_err(|e| Error::Kernel(e.to_string()))?;
    write_tables(ram)?;
    Ok(GuestAddress(loaded.kernel_load.raw_value() + ENTRY_64))
}

/// The guest's memory, as the kernel is told of it.
fn memory_map(ram: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, l::BASE_END, E820_RAM),
        (l::ACPI, l::ACPI_END - l::ACPI, E820_ACPI),
    ];
    for region in ram.iter() {
        let start = region.start_addr().raw_value().max(l::KERNEL);
        let end = region.start_addr().raw_value() + region.len();
        map.push((start, end - start, E820_RAM));
    }
    map
}

fn write_command_line(ram: &Memory, line: &str) -> Result<(), Error> {
    if line.len() >= l::COMMAND_LINE_MAX || line.contains('\0') {
        return Err(Error::Kernel(format!(
            "its command line has {} bytes; {} are possible",
            line.len(),
            l::COMMAND_LINE_MAX - 1
        )));
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    let written = ram.write_slice(&bytes, GuestAddress(l::COMMAND_LINE));
    written.map_err(memory("write the command line"))
}

/// Reads the initial file system to the end of low memory; its address and size.
fn load_initrd(ram: &Memory, mut initrd: &File, above: u64) -> Result<(u32, u32), Error> {
    let mut bytes = Vec::new();
    initrd.read_to_end(&mut bytes).map_err(|source| Error::Io {
        action: "read the initial file system",
        source,
    })?;
    let low = ram.iter().next().map_or(0, GuestMemoryRegion::len);
    let at = low.min(1 << 31).checked_sub(bytes.len() as u64);
    let at = at.map(|at| at & !0xfff).filter(|&at| at >= above);
    let at = at.ok_or_else(|| {
        let needed = (above + bytes.len() as u64).div_ceil(1 << 20);
        Error::Kernel(format!(
            "the kernel and its initial file system need {needed} MiB of memory"
        ))
    })?;
    let written = ram.write_slice(&bytes, GuestAddress(at));
    written.map_err(memory("write the initial file system"))?;
    let short = |n: u64| u32::try_from(n).map_err(memory("place the initial file system"));
    Ok((short(at)?, short(bytes.len() as u64)?))
}

/// Flat segments, and page tables that map the first GiB to itself.
fn write_tables(ram: &Memory) -> Result<(), Error> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let put = |value: u64, at: u64| {
        let written = ram.write_obj(value, GuestAddress(at));
        written.map_err(memory("write the boot's page tables"))
    };
    for (entry, at) in GDT_ENTRIES.into_iter().zip((l::GDT..).step_by(8)) {
        put(entry, at)?;
    }
    put(l::PDPT | PRESENT_WRITABLE, l::PML4)?;
    put(l::PD | PRESENT_WRITABLE, l::PDPT)?;
    for n in 0..512 {
        put(n << 21 | LARGE | PRESENT_WRITABLE, l::PD + n * 8)?;
    }
    Ok(())
}

/// Null, null, 64-bit code and flat data, at the selectors 0x10 and 0x18 that the kernel expects.
pub(crate) const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
