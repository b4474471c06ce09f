//! `brood checkpoint make`: boots an image and makes a checkpoint of it.

use std::{process::ExitCode, sync::atomic::AtomicBool, time::Duration};

use clap::Args;

use super::{
    bar::Bar,
    complete, image,
    output::{cancellation, json, line, note, state},
};
use crate::{api::types, config::Config, failure::Failure};
use brood_core::{
    checkpoint::{BundlePath, Network},
    engine::{
        Limit,
        qemu::{Boot, BootImage, Booted, Qemu},
    },
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
        let images = image::images(config)?;
        let image = images.open(&self.image)?;
        let least = image.least_memory();
        if self.memory < least {
            let message = format!(
                "a guest of image {:?} needs {least} of memory at least, not {}",
                self.image, self.memory
            );
            let hint = format!("--memory {}M", least.0.div_ceil(1 << 20));
            return Err(Failure::new(&message, Some(hint)));
        }
        let files = images.verify(&self.image, &image)?;
        let initrd = images.initrd(&files)?;
        let image = BootImage {
            kernel: files.kernel,
            initramfs: initrd.path.clone(),
            command_line: image.command_line,
            digest: image.digest,
        };
        let cancelled = cancellation();
        let cancelled_now: &AtomicBool = &cancelled;
        let boot = Boot {
            image: &image,
            memory: self.memory,
            vcpus: self.cpus,
            network: self.net,
            ready: self.ready.as_deref(),
            warm: &self.warm,
            limit: Limit {
                timeout: self.timeout,
                cancelled: cancelled_now,
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
        let run_dir = state(config)?.run_dir();
        let bar = Bar::bytes("sealing", self.json).until(&cancelled);
        let progress = |p| bar.advance(p);
        // No broker is needed while the guest boots.
        let engine = Qemu::new("", config.qemu.accel.value.0);
        let manifest =
            engine.make_checkpoint(&run_dir, &self.checkpoint, &boot, &told, &progress)?;
        bar.clear();
        if self.json {
            json(&types::Checkpoint::new(&self.checkpoint, &manifest));
        } else {
            line(format_args!(
                "{}: {} of memory, booted, answering, sealed by {} (sha256 {})",
                self.checkpoint,
                manifest.memory.size,
                manifest.engine_version,
                &manifest.files.ckp.sha256[..16]
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
