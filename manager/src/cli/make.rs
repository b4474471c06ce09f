//! `brood checkpoint make`: boots an image and makes a checkpoint of it.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::{
    bar::Bar,
    checkpoint::print_sealed,
    complete,
    output::{cancellation, local, note},
};
use crate::{config::Config, failure::Failure, ops::ImageBoot};
use brood_core::{
    checkpoint::{BundlePath, Network},
    engine::{Limit, qemu::Booted},
    units::{Bytes, parse_duration},
};

/// Makes a checkpoint of a real Linux: boots an image on QEMU, waits for the agent in it, runs what
/// should be warm, freezes the guest and seals it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood image build --minimal tiny
  brood checkpoint make tiny /var/tmp/ckp/tiny
  brood checkpoint make tiny /var/tmp/ckp/warm --memory 256M --cpus 2 --warm 'ls -R /lib'")]
pub(super) struct Make {
    /// Name of the image
    #[arg(add = complete::with(complete::images))]
    image: String,
    /// DIR/NAME of the new checkpoint (files DIR/NAME.ckp, .ckp.kern, .ckp.meta, .ckp.brood)
    checkpoint: BundlePath,
    /// Guest memory, 48M to 3G
    #[arg(long, default_value = "128M", value_name = "SIZE")]
    memory: Bytes,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u32,
    /// Network that the guest has a card for: none or user
    #[arg(long, default_value = "none", value_name = "NET")]
    net: Network,
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

impl Make {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let cancelled = cancellation();
        let boot = ImageBoot {
            image: &self.image,
            memory: self.memory,
            vcpus: self.cpus,
            network: self.net,
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
