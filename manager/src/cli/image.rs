//! `brood image`: builds, lists, inspects and removes images of guests.

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::{
    complete,
    output::{json, line, note, table},
};
use crate::{
    config::Config,
    failure::Failure,
    image::{Build, Image, Images, agent_beside_program},
};
use brood_core::units::Bytes;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood image build --minimal tiny
  brood image list
  brood image remove tiny")]
pub(super) enum Command {
    /// Build an image from Debian's packages, without mounting anything
    Build(BuildImage),
    /// List images
    List(List),
    /// Show what an image was made of, and check its files
    Inspect(Inspect),
    /// Remove an image; checkpoints that were made of it stay good
    Remove(Remove),
}

impl Command {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        match self {
            Self::Build(command) => command.run(config),
            Self::List(command) => command.run(config),
            Self::Inspect(command) => command.run(config),
            Self::Remove(command) => command.run(config),
        }
    }
}

/// The images of this host.
pub(super) fn images(config: &Config) -> Result<Images, Failure> {
    Ok(Images::in_folder(config.images()?))
}

/// An image, as JSON.
#[derive(Serialize)]
struct Described<'a> {
    image: &'a str,
    path: PathBuf,
    #[serde(flatten)]
    described: &'a Image,
}

fn describe(images: &Images, name: &str, image: &Image) -> Result<(), Failure> {
    json(&Described {
        image: name,
        path: images.path(name)?,
        described: image,
    });
    Ok(())
}

/// Builds an image: a kernel of Debian (linux-image-cloud-amd64), busybox and brood's agent. Needs
/// apt-get and dpkg-deb, and no privilege. The same packages and agent give the same digest
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("kind").required(true),
    after_help = "\
Examples:
  brood image build --minimal tiny
  brood image build --minimal tiny --deb linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb"
)]
pub(super) struct BuildImage {
    /// Name of the image
    name: String,
    /// Kernel, busybox and agent only
    #[arg(long, group = "kind")]
    minimal: bool,
    /// A package to use instead of fetching it: the kernel's or busybox-static's; repeat the option
    /// for both
    #[arg(long = "deb", value_name = "FILE")]
    packages: Vec<PathBuf>,
    /// The agent's program [default: brood-agent beside this program, or as tools/agent builds it]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl BuildImage {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let images = images(config)?;
        let agent = match self.agent {
            Some(agent) => agent,
            None => agent_beside_program()?,
        };
        let build = Build {
            name: &self.name,
            agent: &agent,
            packages: &self.packages,
        };
        let image = images.build(&build, &|step| {
            if !self.json {
                note(format_args!("{step} ..."));
            }
        })?;
        if self.json {
            describe(&images, &self.name, &image)?;
        } else {
            line(format_args!(
                "{}: Linux {}, kernel {}, initramfs {} (digest {})",
                self.name,
                image.release,
                image.kernel.size,
                image.initramfs.size,
                &image.digest[..16]
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: brood image list --json")]
pub(super) struct List {
    /// Print JSON: one object with all images
    #[arg(long)]
    json: bool,
}

impl List {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let images = images(config)?;
        let mut found = Vec::new();
        for name in images.names()? {
            match images.open(&name) {
                Ok(image) => found.push((name, image)),
                // One damaged image hides no other.
                Err(e) => note(format_args!("warning: {name}: {e}")),
            }
        }
        if self.json {
            let described: Vec<_> = found
                .iter()
                .map(|(name, image)| json!({ "image": name, "kind": image.kind, "release": image.release, "digest": image.digest }))
                .collect();
            json(&json!({ "images": described }));
        } else if found.is_empty() {
            line("no images");
        } else {
            let rows = found.iter().map(|(name, image)| {
                let size: Bytes = [image.kernel.size, image.initramfs.size].into_iter().sum();
                let digest = image.digest[..16].to_owned();
                vec![
                    name.clone(),
                    image.kind.clone(),
                    image.release.clone(),
                    size.to_string(),
                    digest,
                ]
            });
            table(
                &["IMAGE", "KIND", "LINUX", "SIZE", "DIGEST"],
                &rows.collect::<Vec<_>>(),
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: brood image inspect tiny --json | jq .sources")]
pub(super) struct Inspect {
    /// Name of the image
    #[arg(add = complete::with(complete::images))]
    name: String,
    /// Print the description as JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let images = images(config)?;
        let image = images.open(&self.name)?;
        images.verify(&self.name, &image)?;
        if self.json {
            describe(&images, &self.name, &image)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut lines = vec![
            ("image", images.path(&self.name)?.display().to_string()),
            ("kind", image.kind.clone()),
            ("digest", image.digest.clone()),
            ("Linux", image.release.clone()),
            ("command line", image.command_line.clone()),
        ];
        for (what, file) in [("kernel", &image.kernel), ("initramfs", &image.initramfs)] {
            lines.push((what, format!("{}  sha256 {}", file.size, file.sha256)));
        }
        for source in &image.sources {
            let version = source.version.as_deref().unwrap_or("-");
            lines.push((
                "made of",
                format!("{} {version}  sha256 {}", source.name, source.sha256),
            ));
        }
        for (key, value) in lines {
            line(format_args!("{key:<12} {value}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: brood image remove tiny")]
pub(super) struct Remove {
    /// Name of the image
    #[arg(add = complete::with(complete::images))]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Remove {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        images(config)?.remove(&self.name)?;
        if self.json {
            json(&json!({ "image": self.name, "removed": true }));
        } else {
            line(format_args!("{}: removed", self.name));
        }
        Ok(ExitCode::SUCCESS)
    }
}
