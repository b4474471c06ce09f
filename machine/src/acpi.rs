//! ACPI tables: what tells the guest of its processors and devices.
//!
//! The guest has no firmware, so the tables describe all there is: hardware-reduced ACPI without
//! legacy devices, one I/O APIC, the serial port, a virtio device at each of its pages, and the VM
//! generation id with the interrupt that tells of its change.

use acpi_tables::{
    Aml, aml,
    facs::FACS,
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    error::{Error, memory},
    layout as l,
    memory::Memory,
    power,
};

const OEM: [u8; 6] = *b"BROOD ";
const TABLE: [u8; 8] = *b"BROODVM ";
const REVISION: u32 = 1;

/// Writes the tables for so many processors and virtio devices; where the root pointer stands.
///
/// # Errors
/// When they do not fit.
pub fn write(ram: &Memory, vcpus: u8, virtio: usize) -> Result<GuestAddress, Error> {
    let mut writer = Writer {
        ram,
        next: l::ACPI + 64,
    };
    let dsdt = writer.put(&dsdt(virtio))?;
    let facs = writer.put(&FACS::new())?;
    let fadt = writer.put(&fadt(dsdt, facs).finalize())?;
    let madt = writer.put(&madt(vcpus))?;
    let mut root = XSDT::new(OEM, TABLE, REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    let root = writer.put(&root)?;
    writer.next = l::ACPI;
    writer.put(&Rsdp::new(OEM, root))?;
    Ok(GuestAddress(l::ACPI))
}

struct Writer<'a> {
    ram: &'a Memory,
    next: u64,
}

impl Writer<'_> {
    /// Writes one table; its address.
    fn put(&mut self, table: &dyn Aml) -> Result<u64, Error> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        let end = at + bytes.len() as u64;
        if end > l::ACPI_END {
            return Err(Error::Refused("the ACPI tables do not fit".to_owned()));
        }
        let written = self.ram.write_slice(&bytes, GuestAddress(at));
        written.map_err(memory("write the ACPI tables"))?;
        // FACS wants 64 bytes.
        self.next = end.next_multiple_of(64);
        Ok(at)
    }
}

fn io_register(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn fadt(dsdt: u64, facs: u64) -> FADTBuilder {
    /// There is no VGA and no CMOS clock to probe for.
    const NO_VGA_NO_CLOCK: u16 = 1 << 2 | 1 << 5;
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .preferred_pm_profile(PmProfile::PerformanceServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = NO_VGA_NO_CLOCK.into();
    fadt.reset_reg = io_register(l::RESET);
    fadt.reset_value = l::RESET_VALUE;
    fadt.sleep_control_reg = io_register(l::SLEEP_CONTROL);
    fadt.sleep_status_reg = io_register(l::SLEEP_STATUS);
    fadt
}

fn madt(vcpus: u8) -> MADT {
    let controller = LocalInterruptController::Address(l::LOCAL_APIC);
    let mut madt = MADT::new(OEM, TABLE, REVISION, controller);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, l::IO_APIC, 0));
    madt
}

fn dsdt(virtio: usize) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let mut bytes = Vec::new();
    serial(&mut bytes);
    for number in 0..virtio {
        virtio_device(number, &mut bytes);
    }
    generation(&mut bytes);
    let (off, zero) = (power::OFF, 0_u8);
    let sleep = aml::Package::new(vec![&off, &zero, &zero, &zero]);
    aml::Name::new("_S5_".into(), &sleep).to_aml_bytes(&mut bytes);
    table.append_slice(&bytes);
    table
}

fn serial(bytes: &mut Vec<u8>) {
    let id = aml::EISAName::new("PNP0501");
    let hid = aml::Name::new("_HID".into(), &id);
    let number = 0_u8;
    let uid = aml::Name::new("_UID".into(), &number);
    let ports = aml::IO::new(l::SERIAL, l::SERIAL, 1, l::SERIAL_PORTS.to_le_bytes()[0]);
    let irq = aml::Interrupt::new(true, true, false, false, l::SERIAL_GSI);
    let resources = aml::ResourceTemplate::new(vec![&ports, &irq]);
    let crs = aml::Name::new("_CRS".into(), &resources);
    aml::Device::new("_SB_.COM1".into(), vec![&hid, &uid, &crs]).to_aml_bytes(bytes);
}

fn virtio_device(number: usize, bytes: &mut Vec<u8>) {
    let at = u32::try_from(number).expect("there are few devices");
    let stride = u32::try_from(l::VIRTIO_STRIDE).expect("a page is short");
    let base = u32::try_from(l::VIRTIO).expect("devices lie below 4 GiB") + at * stride;
    let hid = aml::Name::new("_HID".into(), &"LNRO0005");
    let uid = aml::Name::new("_UID".into(), &at);
    let coherent = 1_u8;
    let cca = aml::Name::new("_CCA".into(), &coherent);
    let registers = aml::Memory32Fixed::new(true, base, stride);
    let irq = aml::Interrupt::new(true, true, false, false, l::VIRTIO_GSI + at);
    let resources = aml::ResourceTemplate::new(vec![&registers, &irq]);
    let crs = aml::Name::new("_CRS".into(), &resources);
    let path = format!("_SB_.VIO{number}");
    aml::Device::new(path.as_str().into(), vec![&hid, &uid, &cca, &crs]).to_aml_bytes(bytes);
}

/// The VM generation id, and the device whose interrupt has the guest look at it again (ACPI 6.5,
/// section 5.6.9: without fixed hardware, events are those of a Generic Event Device).
fn generation(bytes: &mut Vec<u8>) {
    /// The id is another.
    const CHANGED: u8 = 0x80;
    let (low, high) = (l::GENERATION & 0xffff_ffff, l::GENERATION >> 32);
    let hid = aml::Name::new("_HID".into(), &"BROD0001");
    let cid = aml::Name::new("_CID".into(), &"VM_Gen_Counter");
    let ddn = aml::Name::new("_DDN".into(), &"VM_Gen_Counter");
    let at = aml::Package::new(vec![&low, &high]);
    let addr = aml::Name::new("ADDR".into(), &at);
    aml::Device::new("_SB_.VGEN".into(), vec![&hid, &cid, &ddn, &addr]).to_aml_bytes(bytes);

    let hid = aml::Name::new("_HID".into(), &"ACPI0013");
    let number = 0_u8;
    let uid = aml::Name::new("_UID".into(), &number);
    let irq = aml::Interrupt::new(true, true, false, false, l::GENERATION_GSI);
    let resources = aml::ResourceTemplate::new(vec![&irq]);
    let crs = aml::Name::new("_CRS".into(), &resources);
    let device = aml::Path::new("\\_SB_.VGEN");
    let tell = aml::Notify::new(&device, &CHANGED);
    // The event of an interrupt that is an edge.
    let event = format!("_E{:02X}", l::GENERATION_GSI);
    let method = aml::Method::new(event.as_str().into(), 0, true, vec![&tell]);
    aml::Device::new("_SB_.GED_".into(), vec![&hid, &uid, &crs, &method]).to_aml_bytes(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, map};

    /// Sum of a table's bytes, which must be zero, and its length.
    fn table(ram: &Memory, at: u64) -> (u8, Vec<u8>) {
        let length: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        (bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b)), bytes)
    }

    #[test]
    fn each_table_is_found_from_the_root_and_sums_to_zero() {
        let ram = map(64 << 20, Backing::Anonymous).unwrap();
        let root = write(&ram, 8, l::VIRTIO_MAX).unwrap();
        let mut rsdp = [0; 36];
        ram.read_slice(&mut rsdp, root).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(rsdp.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        let xsdt = u64::from_le_bytes(rsdp[24..32].try_into().unwrap());
        let (sum, bytes) = table(&ram, xsdt);
        assert_eq!((sum, &bytes[..4]), (0, &b"XSDT"[..]));
        let entries = bytes[36..].chunks_exact(8);
        let entries: Vec<u64> = entries
            .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()))
            .collect();
        let names: Vec<Vec<u8>> = entries
            .iter()
            .map(|&at| {
                let (sum, bytes) = table(&ram, at);
                assert_eq!(sum, 0);
                bytes[..4].to_vec()
            })
            .collect();
        assert_eq!(names, [b"FACP", b"APIC"]);
        let (_, fadt) = table(&ram, entries[0]);
        let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
        let (sum, bytes) = table(&ram, dsdt);
        assert_eq!((sum, &bytes[..4]), (0, &b"DSDT"[..]));
        let facs = u64::from_le_bytes(fadt[132..140].try_into().unwrap());
        assert!(facs.is_multiple_of(64));
        assert_eq!(&table(&ram, facs).1[..4], b"FACS");
    }
}
