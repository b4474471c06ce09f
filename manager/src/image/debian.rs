//! Root file systems of Debian's packages, which mmdebstrap installs as the host's apt has them.

use std::{
    env, fs,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    Error, Images,
    base::Ingredients,
    description::{Image, Part},
    layer::{Store, apply},
    root::Contents,
    scratch::Scratch,
    tree::{Content, Tree},
};
use brood_core::units::Bytes;

/// The date of files that have none of their own, unless the environment says otherwise: the first
/// of 2020. Any does; the first day of all is what a password has that must be changed.
const DATE: &str = "1577836800";
const DATE_VARIABLE: &str = "SOURCE_DATE_EPOCH";
/// Where the host's apt says where packages come from.
const SOURCES: &str = "/etc/apt/sources.list";
const SOURCES_FOLDER: &str = "/etc/apt/sources.list.d";
/// What no guest reads.
const LEFT_OUT: [&str; 6] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];
/// What was for the build, or is a secret of one machine.
const REMOVED: [&str; 3] = [
    "etc/apt/apt.conf.d/99mmdebstrap",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
];
/// Longest list of installed packages that is read.
const STATUS_MAX: u64 = 64 << 20;

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Debian<'a> {
    /// The release, such as `bookworm`; the host's, when none is named.
    pub(crate) suite: Option<&'a str>,
    /// Packages beside those that every Debian has.
    pub(crate) packages: &'a [String],
    /// Most that a guest may write to its file system.
    pub(crate) size: Option<Bytes>,
}

impl Images {
    /// Builds an image of Debian. `told` learns what is being done.
    pub(crate) fn build_debian(
        &self,
        from: &Ingredients<'_>,
        debian: &Debian<'_>,
        told: &dyn Fn(&str),
    ) -> Result<Image, Error> {
        self.build_root(from, told, |scratch| {
            told("installing packages");
            let archive = debian.install(scratch)?;
            told("reading what was installed");
            let (path, contents) = scratch.file("contents")?;
            let mut tree = Tree::default();
            let mut store = Store::new(contents);
            let open = File::open(&archive).map_err(Error::io("open", &archive))?;
            apply(&mut tree, &mut store, open).map_err(|e| Error::Archive {
                archive: archive.display().to_string(),
                reason: e.to_string(),
            })?;
            let _ = fs::remove_file(&archive);
            for path in REMOVED {
                tree.remove(path);
            }
            remove_host_keys(&mut tree);
            let sources = installed(&tree).map_err(Error::io("read", &path))?;
            Ok(Contents {
                kind: "debian",
                tree,
                sources,
                process: None,
                size: debian.size,
            })
        })
    }
}

impl Debian<'_> {
    /// Has mmdebstrap install the packages; the archive of all files.
    fn install(&self, scratch: &Scratch) -> Result<PathBuf, Error> {
        let failed = |said: String| Error::Command {
            action: "install the packages of the root file system".to_owned(),
            said,
        };
        let host = codename().unwrap_or_default();
        let suite = self.suite.unwrap_or(&host);
        if suite.is_empty() {
            return Err(failed(
                "this host does not say which release it is: name one with --suite".to_owned(),
            ));
        }
        let folder = scratch.subfolder("sources")?;
        let sources = sources(&folder, &host, suite)?;
        if sources.is_empty() {
            return Err(failed(format!(
                "apt has no sources here: neither {SOURCES} nor {SOURCES_FOLDER}"
            )));
        }
        let archive = scratch.subfolder("root")?.join("root.tar");
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--variant=minbase", "--format=tar", "--quiet"])
            // The guest's kernel makes its own.
            .args(["--skip=output/dev", "--skip=output/mknod"])
            .args(LEFT_OUT.map(|option| format!("--dpkgopt={option}")));
        for option in proxies() {
            command.arg(format!("--aptopt={option}"));
        }
        if !self.packages.is_empty() {
            command.arg(format!("--include={}", self.packages.join(",")));
        }
        command.arg("--").arg(suite).arg(&archive).args(&sources);
        let date = env::var(DATE_VARIABLE).unwrap_or_else(|_| DATE.to_owned());
        command
            .env(DATE_VARIABLE, date)
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        let output = command.output();
        let output = output.map_err(|e| {
            failed(format!(
                "cannot run mmdebstrap: {e}; apt-get install mmdebstrap"
            ))
        })?;
        if output.status.success() {
            return Ok(archive);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with("E: "))
            .collect();
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        Err(failed(match &errors[..] {
            [] => format!("mmdebstrap: {}", last.unwrap_or("it said nothing")),
            errors => format!("mmdebstrap: {}", errors.join("; ")),
        }))
    }
}

/// The code name of the host's release.
fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned())
}

/// The host's sources, for another release where that is asked for.
fn sources(folder: &Path, host: &str, suite: &str) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    if Path::new(SOURCES).is_file() {
        files.push(PathBuf::from(SOURCES));
    }
    if let Ok(entries) = fs::read_dir(SOURCES_FOLDER) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "list" || extension == "sources")
    });
    files.sort();
    let mut copies = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        if !names_suite(&text, host) {
            // A source of something else than Debian: its packages are not for the guest.
            continue;
        }
        let copy = folder.join(file.file_name().unwrap_or_default());
        let text = of_suite(&text, host, suite);
        fs::write(&copy, text).map_err(Error::io("write", &copy))?;
        copies.push(copy);
    }
    Ok(copies)
}

/// Whether a list of sources has some of this release.
fn names_suite(text: &str, suite: &str) -> bool {
    words(text).any(|word| is_of(word, suite))
}

/// The same sources, of another release.
fn of_suite(text: &str, from: &str, to: &str) -> String {
    let mut changed = String::new();
    for line in text.lines() {
        let comment = line.trim_start().starts_with('#');
        let words = line.split(' ').map(|word| match word.strip_prefix(from) {
            Some(rest) if !comment && is_of(word, from) => format!("{to}{rest}"),
            _ => word.to_owned(),
        });
        changed.push_str(&words.collect::<Vec<_>>().join(" "));
        changed.push('\n');
    }
    changed
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(str::split_whitespace)
}

/// Whether a word is a suite of this release: `bookworm`, `bookworm-updates`, `bookworm/updates`.
fn is_of(word: &str, suite: &str) -> bool {
    !suite.is_empty()
        && word
            .strip_prefix(suite)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '/']))
}

/// The proxies that the host's apt goes through.
fn proxies() -> Vec<String> {
    let dump = Command::new("apt-config")
        .args(["dump", "Acquire"])
        .output();
    let dump = dump.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let dump = dump.unwrap_or_default();
    let lines = dump.lines().filter(|line| {
        let name = line.split(' ').next().unwrap_or_default();
        name.contains("::Proxy") && !line.ends_with("\"\";")
    });
    lines
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

/// Keys of an ssh server that its package made when it was installed: a hook makes each clone's own.
fn remove_host_keys(tree: &mut Tree) {
    let Some(node) = tree.get("etc/ssh") else {
        return;
    };
    let Content::Folder(names) = &node.content else {
        return;
    };
    let keys: Vec<_> = names
        .keys()
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| name.starts_with("ssh_host_"))
        .map(|name| format!("etc/ssh/{name}"))
        .collect();
    for key in keys {
        tree.remove(&key);
    }
}

/// The packages that are installed in a tree.
fn installed(tree: &Tree) -> std::io::Result<Vec<Part>> {
    let Some(Content::Stored(stored)) = tree.get("var/lib/dpkg/status").map(|node| &node.content)
    else {
        return Ok(Vec::new());
    };
    let mut text = String::new();
    stored.clone().take(STATUS_MAX).read_to_string(&mut text)?;
    let mut parts: Vec<_> = text
        .split("\n\n")
        .filter_map(|package| {
            let field = |name: &str| package.lines().find_map(|line| line.strip_prefix(name));
            Some(Part {
                name: field("Package: ")?.to_owned(),
                version: Some(field("Version: ")?.to_owned()),
                sha256: None,
            })
        })
        .collect();
    parts.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_become_those_of_another_release() {
        let text = "# bookworm here\n\
            Types: deb\n\
            URIs: http://mirror.example/bookwormish\n\
            Suites: bookworm bookworm-updates bookworm/updates\n\
            deb http://mirror.example/debian bookworm main # bookworm\n";
        assert!(names_suite(text, "bookworm"));
        assert!(!names_suite("# bookworm\nSuites: nodistro\n", "bookworm"));
        assert!(!names_suite("Suites: x\n", ""));
        let other = of_suite(text, "bookworm", "trixie");
        assert!(
            other.contains("Suites: trixie trixie-updates trixie/updates\n"),
            "{other}"
        );
        assert!(other.contains("# bookworm here\n"), "{other}");
        assert!(other.contains("mirror.example/bookwormish\n"), "{other}");
        assert!(other.contains("debian trixie main"), "{other}");
        assert_eq!(of_suite(text, "bookworm", "bookworm"), text);
    }
}
