//! Builder of the minimal image: kernel, busybox and agent, all in the initramfs.

use super::{
    Error, Images,
    base::{Base, Ingredients},
    cpio::{Archive, Entry},
    description::{FORMAT, Image, VERSION},
    modules::Modules,
    scratch::Scratch,
};

/// Modules that a guest loads, with what they need.
pub(super) const MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
];
/// Options of the kernel that all guests have. A guest whose kernel has panicked ends; no page is
/// zeroed that nobody reads, since each is one that clones no longer share.
///
/// And nothing wakes an idle guest: no watchdog, no look at the fragments of free memory twice a
/// second (`HPAGE_FRAG_CHECK_INTERVAL_MSEC` of mm/compaction.c), no average of pressure every two
/// seconds (`PSI_FREQ` of kernel/sched/psi.c). A thousand guests that are woken five times a second
/// take a processor, and each wake-up writes pages.
pub(super) const OPTIONS: &str = "quiet panic=-1 nowatchdog psi=0 sysctl.vm.compaction_proactiveness=0 \
     init_on_alloc=0 init_on_free=0";

/// How a guest finds its disks.
pub(super) const DISKS: &str = include_str!("guest/disks");

impl Images {
    /// Builds a minimal image. `told` learns what is being done.
    pub(crate) fn build_minimal(
        &self,
        from: &Ingredients<'_>,
        told: &dyn Fn(&str),
    ) -> Result<Image, Error> {
        let scratch = Scratch::new(self, from.name)?;
        let base = Base::obtain(from, &scratch, told)?;
        told("writing the image");
        let kernel = scratch.write("vmlinuz", &base.kernel)?;
        let archive = files(base.busybox, base.agent, &base.modules)?;
        let initramfs = scratch.write("initramfs", &archive.to_bytes())?;
        let mut image = Image {
            format: FORMAT.to_owned(),
            version: VERSION,
            kind: "minimal".to_owned(),
            sources: base.sources,
            release: base.release,
            kernel,
            initramfs,
            root: None,
            command_line: format!("console=ttyS0 rdinit=/sbin/init {OPTIONS}"),
            process: None,
            digest: String::new(),
        };
        image.digest = image.compute_digest();
        scratch.publish(&image)?;
        Ok(image)
    }
}

/// All files of the guest.
fn files(busybox: Vec<u8>, agent: Vec<u8>, modules: &Modules) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    archive.add("bin/busybox", Entry::File(0o755, busybox));
    archive.add("bin/sh", Entry::Link("busybox"));
    archive.add("sbin/init", Entry::Link("../bin/busybox"));
    archive.add("sbin/brood-agent", Entry::File(0o755, agent));
    for (path, mode, text) in [
        ("etc/init.d/start", 0o755, include_str!("guest/minimal.sh")),
        ("etc/init.d/port", 0o755, include_str!("guest/port")),
        ("etc/init.d/network", 0o755, include_str!("guest/network")),
        ("etc/init.d/disks", 0o644, DISKS),
        ("etc/inittab", 0o644, include_str!("guest/inittab")),
        ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", 0o644, "root:x:0:\n"),
        ("etc/hostname", 0o644, "localhost\n"),
        ("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
    ] {
        archive.add(path, Entry::File(mode, text.into()));
    }
    for (path, mode) in [
        ("dev", 0o755),
        ("etc/brood/restored.d", 0o755),
        ("etc/brood/suspending.d", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var/tmp", 0o1777),
    ] {
        archive.add(path, Entry::Folder(mode));
    }
    add_modules(&mut archive, modules, &MODULES)?;
    Ok(archive)
}

/// Adds modules, and the order in which the guest loads them.
pub(super) fn add_modules(
    archive: &mut Archive,
    modules: &Modules,
    wanted: &[&str],
) -> Result<(), Error> {
    let ordered = modules.in_order(wanted)?;
    let order: String = ordered
        .iter()
        .map(|module| format!("{}.ko\n", module.name))
        .collect();
    archive.add("lib/modules/order", Entry::File(0o644, order.into()));
    for module in ordered {
        let path = format!("lib/modules/{}.ko", module.name);
        archive.add(&path, Entry::File(0o644, module.content));
    }
    Ok(())
}
