//! `brood checkpoint make`: boots an image and makes a checkpoint of it.

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    bar::Bar,
    checkpoint::print_sealed,
    complete,
    output::{cancellation, local, note},
};
use crate::{config::Config, failure::Failure, ops::ImageBoot};
use brood_core::{
    checkpoint::{BundlePath, Network},
    disk,
    engine::{BootDisk, Booted, Limit, kvm::CpuTemplate},
    units::{Bytes, parse_duration},
};

/// Makes a checkpoint of a real Linux: boots an image on QEMU, or with --engine kvm on brood's own KVM
/// engine, waits for the agent in it, runs what should be warm, freezes the guest and seals it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood image build --minimal tiny
  brood checkpoint make tiny /var/tmp/ckp/tiny
  brood checkpoint make tiny /var/tmp/ckp/warm --memory 256M --cpus 2 --warm 'ls -R /lib'
  brood checkpoint make web /var/tmp/ckp/web --root disk --disk 4G
  brood checkpoint make tiny /var/tmp/ckp/small --engine kvm
  brood checkpoint make tiny /var/tmp/ckp/anywhere --engine kvm --cpu-template v3
  brood checkpoint make web /var/tmp/ckp/own --disk reflink:/images/data.img")]
pub(super) struct Make {
    /// Name of the image
    #[arg(add = complete::with(complete::images))]
    image: String,
    /// DIR/NAME of the new checkpoint (files DIR/NAME.ckp, .ckp.kern, .ckp.meta, .ckp.brood)
    checkpoint: BundlePath,
    /// Guest memory: 48M to 3G, or with --engine kvm 64M to 64G
    #[arg(long, default_value = "128M", value_name = "SIZE")]
    memory: Bytes,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u32,
    /// Processor that the guest sees, with --engine kvm: host, all that this host has; or v2 or v3, the
    /// features of that level of x86-64, so that its checkpoint is restored on each host that has them
    #[arg(long, default_value = "host", value_name = "TEMPLATE")]
    cpu_template: CpuTemplate,
    /// Network that the guest has a card for: none, user, or tap (KVM)
    #[arg(long, default_value = "none", value_name = "NET")]
    net: Network,
    /// Where the root file system of a debian or oci image is: in the guest's memory, or on a disk
    /// that all clones read, for images that are large beside the memory
    #[arg(long, value_enum, default_value_t = RootPlace::Memory, value_name = "PLACE")]
    root: RootPlace,
    /// Disk that each clone has to itself: a size, for an empty one that holds what the guest writes
    /// to its file system (a minimal image has it at /data); or zfs:POOL/VOLUME@SNAPSHOT,
    /// reflink:FILE, reflink-or-copy:FILE or qcow2:FILE, for a clone of that, which the guest finds as
    /// a virtio disk with the serial number "disk" [default: none]
    #[arg(long, value_name = "DISK", value_parser = disk)]
    disk: Option<BootDisk>,
    /// Command of the guest's shell that succeeds when the guest is ready; it is repeated until then
    #[arg(long, value_name = "CMD")]
    ready: Option<String>,
    /// Command of the guest's shell to run before the seal; repeat the option for more
    #[arg(long, value_name = "CMD")]
    warm: Vec<String>,
    /// How long the guest may take to boot, to become ready and for each command
    #[arg(long, default_value = "3m", value_name = "TIME", value_parser = parse_duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where a root file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RootPlace {
    /// In the guest's memory.
    Memory,
    /// On a disk that all clones read.
    Disk,
}

/// A disk, as the command line names it.
fn disk(text: &str) -> Result<BootDisk, String> {
    match text.contains(':') {
        true => text
            .parse()
            .map(BootDisk::Of)
            .map_err(|e: disk::Error| e.to_string()),
        false => match text.parse::<Bytes>() {
            Ok(size) => Ok(BootDisk::Empty(size)),
            Err(e) => Err(format!("{e}; or name a disk as reflink:FILE")),
        },
    }
}

impl Make {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let cancelled = cancellation();
        let boot = ImageBoot {
            image: &self.image,
            memory: self.memory,
            vcpus: self.cpus,
            cpu_template: self.cpu_template,
            network: self.net,
            root_on_disk: self.root == RootPlace::Disk,
            disk: self.disk.as_ref(),
            ready: self.ready.as_deref(),
            warm: &self.warm,
            limit: Limit {
                timeout: self.timeout,
                cancelled: &cancelled,
            },
        };
        let told = |step| {
            if !self.json {
                note(match step {
                    Booted::Started => "booting ...",
                    Booted::Answered => "its agent has answered",
                    Booted::Warm => "ready; sealing ...",
                });
            }
        };
        let bar = Bar::bytes("sealing", self.json).until(&cancelled);
        let progress = |p| bar.advance(p);
        let made = local(config).make(&boot, &self.checkpoint, &told, &progress)?;
        bar.clear();
        let how = format!(
            "booted, answering, sealed by {}",
            made.manifest.engine_version
        );
        print_sealed(&made, &how, self.json);
        Ok(ExitCode::SUCCESS)
    }
}
