//! `brood image`: builds, lists, inspects and removes images of guests.

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::{
    complete,
    output::{cancellation, json, line, note, table},
};
use crate::{
    config::Config,
    failure::Failure,
    image::{Debian, Image, Images, Ingredients, Layout, agent_beside_program},
};
use brood_core::{checkpoint::until, escaped, units::Bytes};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood image build --minimal tiny
  brood image build debian web --packages nginx,python3
  brood image list
  brood image remove tiny")]
pub(super) enum Command {
    /// Build an image from Debian's packages or from an OCI layout, without mounting anything
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

/// A system that images are built of.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Distribution {
    /// Debian's packages, installed by mmdebstrap
    Debian,
}

/// Builds an image: a kernel of Debian (linux-image-cloud-amd64), brood's agent, and a root file
/// system of Debian's packages or of an OCI layout, or with --minimal busybox alone. Needs apt-get and
/// dpkg-deb, for Debian also mmdebstrap. Nothing is mounted. The same packages or layers and the same
/// agent give the same digest
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("kind").required(true),
    allow_missing_positional = true,
    after_help = "\
Examples:
  brood image build --minimal tiny
  brood image build debian web --packages nginx,python3 --suite bookworm
  brood image build --oci-layout ./layout app
  brood image build --minimal tiny --deb linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb"
)]
pub(super) struct BuildImage {
    /// The system: its packages make the root file system
    #[arg(group = "kind")]
    distribution: Option<Distribution>,
    /// Name of the image
    name: String,
    /// Kernel, busybox and agent only
    #[arg(long, group = "kind")]
    minimal: bool,
    /// A local OCI layout, a folder with index.json and blobs: its image for linux/amd64
    #[arg(long, group = "kind", value_name = "DIR")]
    oci_layout: Option<PathBuf>,
    /// Packages beside those that every Debian has
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "PACKAGE,...",
        requires = "distribution"
    )]
    packages: Vec<String>,
    /// Debian's release [default: this host's]
    #[arg(long, value_name = "NAME", requires = "distribution")]
    suite: Option<String>,
    /// Most that a guest may write to its file system, which is in its memory [default: half its
    /// memory]
    #[arg(long, value_name = "SIZE", conflicts_with = "minimal")]
    size: Option<Bytes>,
    /// A package to use instead of fetching it: the kernel's or busybox-static's; repeat the option
    /// for both
    #[arg(long = "deb", value_name = "FILE")]
    debs: Vec<PathBuf>,
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
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => agent_beside_program()?,
        };
        let from = Ingredients {
            name: &self.name,
            agent: &agent,
            packages: &self.debs,
        };
        let told = |step: &str| {
            if !self.json {
                note(format_args!("{step} ..."));
            }
        };
        let image = if let Some(folder) = &self.oci_layout {
            let layout = Layout {
                folder,
                size: self.size,
            };
            images.build_oci(&from, &layout, &told)?
        } else if let Some(Distribution::Debian) = self.distribution {
            let debian = Debian {
                suite: self.suite.as_deref(),
                packages: &self.packages,
                size: self.size,
            };
            images.build_debian(&from, &debian, &told)?
        } else {
            images.build_minimal(&from, &told)?
        };
        if self.json {
            describe(&images, &self.name, &image)?;
        } else {
            let root = image.root.as_ref();
            let root = root.map(|root| format!(", root {}", root.size));
            line(format_args!(
                "{}: Linux {}, kernel {}, initramfs {}{} (digest {})",
                self.name,
                image.release,
                image.kernel.size,
                image.initramfs.size,
                root.unwrap_or_default(),
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
        images.sweep();
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
                .map(|(name, image)| {
                    json!({
                        "image": name, "kind": image.kind, "release": image.release,
                        "size": image.size(), "digest": image.digest,
                    })
                })
                .collect();
            json(&json!({ "images": described }));
        } else if found.is_empty() {
            line("no images");
        } else {
            let rows = found.iter().map(|(name, image)| {
                let digest = image.digest[..16].to_owned();
                vec![
                    name.clone(),
                    image.kind.clone(),
                    image.release.clone(),
                    image.size().to_string(),
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
        images.verify(&self.name, &image, &until(&cancellation()))?;
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
        if let Some(root) = &image.root {
            let (size, kind) = (root.size, &root.filesystem);
            lines.push(("root", format!("{size}  sha256 {}  {kind}", root.sha256)));
        }
        if let Some(process) = &image.process {
            lines.extend(process.env.iter().map(|word| ("env", word.clone())));
            lines.extend(process.cwd.iter().map(|word| ("cwd", word.clone())));
            lines.extend(process.user.iter().map(|word| ("user", word.clone())));
            let words = process.entrypoint.iter().chain(&process.command);
            let words: Vec<_> = words.map(String::as_str).collect();
            if !words.is_empty() {
                lines.push(("program", words.join(" ")));
            }
        }
        for source in &image.sources {
            let mut said = source.name.clone();
            if let Some(version) = &source.version {
                said = format!("{said} {version}");
            }
            if let Some(sha256) = &source.sha256 {
                said = format!("{said}  sha256 {sha256}");
            }
            lines.push(("made of", said));
        }
        for (key, value) in lines {
            // An image's author chose some of these words.
            line(format_args!("{key:<12} {}", escaped::line(&value)));
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
