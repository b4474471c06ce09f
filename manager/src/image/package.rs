//! Debian packages: fetched by apt as the host has it set up, and unpacked by dpkg-deb.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Error, description::Part, measure};

/// A package's file.
#[derive(Clone, Debug)]
pub(super) struct Package {
    pub(super) file: PathBuf,
    pub(super) part: Part,
}

impl Package {
    /// Looks at a package's file.
    pub(super) fn of_file(file: &Path) -> Result<Self, Error> {
        let field = |name: &str| -> Result<String, Error> {
            let action = format!("read {}", file.display());
            let text = run(
                &action,
                "dpkg-deb",
                &["--field".as_ref(), file.as_ref(), name.as_ref()],
            )?;
            Ok(text.trim().to_owned())
        };
        let (_, sha256) = measure(file)?;
        Ok(Self {
            file: file.to_owned(),
            part: Part {
                name: field("Package")?,
                version: Some(field("Version")?),
                sha256: Some(sha256),
            },
        })
    }

    /// Downloads the newest package of this name into a folder, with the host's apt, which checks
    /// its signature.
    pub(super) fn fetch(name: &str, folder: &Path) -> Result<Self, Error> {
        let before = packages_in(folder)?;
        let action = format!("download package {name}");
        let mut command = Command::new("apt-get");
        // As root apt downloads as a user of its own, who may not enter this folder.
        command.args(["-q", "-o", "APT::Sandbox::User=root", "download", name]);
        finish(&action, "apt-get", command.current_dir(folder))?;
        let new = packages_in(folder)?
            .into_iter()
            .find(|file| !before.contains(file));
        let file = new.ok_or_else(|| Error::Command {
            action,
            said: "apt-get ended well and left no package".to_owned(),
        })?;
        Self::of_file(&file)
    }

    /// Unpacks it into a folder.
    pub(super) fn unpack(&self, folder: &Path) -> Result<(), Error> {
        let action = format!("unpack {}", self.file.display());
        let words = ["--extract".as_ref(), self.file.as_ref(), folder.as_ref()];
        run(&action, "dpkg-deb", &words).map(drop)
    }
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The package with the kernel itself that `meta`, the package for all kernels of a flavour, needs.
pub(super) fn kernel_of(meta: &str) -> Result<String, Error> {
    let action = format!("look for the kernel of {meta}");
    let told = run(&action, "apt-cache", &["depends".as_ref(), meta.as_ref()])?;
    let mut needs = told
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = needs.find(|name| name.starts_with("linux-image-"));
    kernel.map(str::to_owned).ok_or_else(|| Error::Command {
        action,
        said: "apt knows no such package".to_owned(),
    })
}

fn run(action: &str, program: &str, words: &[&OsStr]) -> Result<String, Error> {
    finish(action, program, Command::new(program).args(words))
}

fn finish(action: &str, program: &str, command: &mut Command) -> Result<String, Error> {
    let failed = |said: String| Error::Command {
        action: action.to_owned(),
        said,
    };
    // Messages are parsed, and told to whoever reads English.
    let output = command.env("LC_ALL", "C").output();
    let output = output.map_err(|e| failed(format!("cannot run {program}: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    Err(failed(format!(
        "{program}: {}",
        last.unwrap_or("it failed and said nothing")
    )))
}
