//! Where things stand in the guest's physical address space.

/// Memory up to here is low memory; the rest lies above [`HIGH_START`].
pub const LOW_END: u64 = 0xc000_0000;
/// Where memory goes on above the hole for devices.
pub const HIGH_START: u64 = 1 << 32;

/// Global descriptor table of the boot, 4 entries of 8 bytes.
pub const GDT: u64 = 0x500;
/// The kernel's boot parameters ("zero page"), one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the boot: one page of each level.
pub const PML4: u64 = 0x9000;
/// See [`PML4`].
pub const PDPT: u64 = 0xa000;
/// See [`PML4`].
pub const PD: u64 = 0xb000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line, with its final zero.
pub const COMMAND_LINE_MAX: usize = 2048;
/// End of the memory that the kernel may use below 1 MiB.
pub const BASE_END: u64 = 0x9_fc00;
/// ACPI tables, from the root pointer on. The kernel looks for it here.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;
/// Memory from here on is the kernel's.
pub const KERNEL: u64 = 0x10_0000;

/// Registers of the virtio devices, a page each.
pub const VIRTIO: u64 = 0xd000_0000;
/// Distance between two devices' registers.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Interrupt of the first virtio device; the next has the next. These pins are the I/O APIC's
/// alone: no legacy controller shares them.
pub const VIRTIO_GSI: u32 = 16;
/// Most virtio devices: the I/O APIC has 24 pins.
pub const VIRTIO_MAX: usize = 8;

/// The VM generation id, in a page of its own behind the virtio devices.
pub const GENERATION: u64 = VIRTIO + GENERATION_PAGE as u64 * VIRTIO_STRIDE;
/// Number of that page among those of the virtio devices.
pub const GENERATION_PAGE: usize = VIRTIO_MAX;
/// Interrupt that says that it is another.
pub const GENERATION_GSI: u32 = 5;

/// The I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The processors' own APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors for real mode.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page that KVM needs on Intel processors for real mode.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Ports of the serial line.
pub const SERIAL: u16 = 0x3f8;
/// How many ports the serial line has.
pub const SERIAL_PORTS: u16 = 8;
/// Interrupt of the serial line.
pub const SERIAL_GSI: u32 = 4;

/// Port of the ACPI sleep control register, with which the guest powers off.
pub const SLEEP_CONTROL: u16 = 0x600;
/// Port of the ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// Port of the ACPI reset register.
pub const RESET: u16 = 0x602;
/// What is written to it for a reset.
pub const RESET_VALUE: u8 = 1;
