//! Format of the configuration file: TOML, every key optional, unknown keys refused.

use std::{
    fs::{self, Metadata},
    io,
    net::SocketAddr,
    num::NonZeroU32,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Error,
    value::{
        AbsolutePath, AcceleratorChoice, EngineChoice, InFile, LogFormat, LogLevel, PoolName,
        SocketMode, UseDaemon,
    },
};
use brood_core::{
    checkpoint::{BundlePath, Network},
    engine::{ParkAfter, Publish, bhyve::Rctl},
    other_writer::OtherWriter,
    units::Bytes,
};

/// A value, and where in the file it stands.
pub(super) type FileValue<T> = Spanned<InFile<T>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Contents {
    /// Whether commands use the daemon.
    pub(super) daemon: Option<FileValue<UseDaemon>>,
    /// The only engine whose checkpoints are restored, or `"auto"`.
    pub(super) engine: Option<FileValue<EngineChoice>>,
    pub(super) state: State,
    pub(super) restore: Restore,
    pub(super) qemu: QemuSettings,
    pub(super) bhyve: BhyveSettings,
    pub(super) image: Image,
    pub(super) serve: Serve,
    /// `[[pool]]`
    pub(super) pool: Vec<Pool>,
}

/// `[state]`: what must survive a crash.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    /// The state folder.
    pub(super) dir: Option<FileValue<AbsolutePath>>,
}

/// `[restore]`: what `brood restore` does when its flags say nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Restore {
    /// How many restores at once.
    pub(super) concurrency: Option<FileValue<NonZeroU32>>,
    /// Private memory that each guest may come to hold, in bytes or as `"1M"`.
    pub(super) private_limit: Option<FileValue<Bytes>>,
    /// Whether the kernel ends a guest that comes to hold more.
    pub(super) enforce_private_limit: Option<FileValue<bool>>,
    /// The folder of keys of which one must have signed each checkpoint.
    pub(super) signers: Option<FileValue<AbsolutePath>>,
    /// After how many idle seconds a guest is parked, or `"never"`.
    pub(super) park_after: Option<FileValue<ParkAfter>>,
}

/// `[qemu]`: guests of the QEMU engine.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QemuSettings {
    /// What executes the instructions of new guests.
    pub(super) accel: Option<FileValue<AcceleratorChoice>>,
}

/// `[bhyve]`: guests of the bhyve engine.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BhyveSettings {
    /// Rules of rctl(8) for each guest.
    pub(super) rctl: Option<FileValue<Rctl>>,
}

/// `[image]`: images that checkpoints are booted from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Image {
    /// The folder of images.
    pub(super) dir: Option<FileValue<AbsolutePath>>,
}

/// `[serve]`: the daemon.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Serve {
    /// The socket that it listens on.
    pub(super) socket: Option<FileValue<AbsolutePath>>,
    /// Permissions of the socket.
    pub(super) socket_mode: Option<FileValue<SocketMode>>,
    /// A TCP address that it listens on too.
    pub(super) listen: Option<FileValue<SocketAddr>>,
    /// The file with the token that clients over TCP must show.
    pub(super) token_file: Option<FileValue<AbsolutePath>>,
    /// The folder of the checkpoints that requests name without one.
    pub(super) checkpoints: Option<FileValue<AbsolutePath>>,
    /// How it writes its log.
    pub(super) log_format: Option<FileValue<LogFormat>>,
    /// How much it writes to its log.
    pub(super) log_level: Option<FileValue<LogLevel>>,
}

/// One `[[pool]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    /// Its name, which is also the prefix of its guests' names.
    pub(super) name: FileValue<PoolName>,
    /// `DIR/NAME` of the checkpoint that its guests are restored from.
    pub(super) checkpoint: FileValue<BundlePath>,
    /// How many hot entries it should have.
    pub(super) hot: FileValue<u32>,
    /// It is filled again when fewer than these are hot.
    pub(super) hot_min: Option<FileValue<u32>>,
    /// Maximum number of entries of any kind.
    pub(super) max: Option<FileValue<u32>>,
    /// What its guests may come to hold together, in bytes or as `"8G"`.
    pub(super) max_memory: Option<FileValue<Bytes>>,
    /// How old a hot entry may become, in seconds.
    pub(super) max_age: Option<FileValue<NonZeroU32>>,
    /// Maximum number of guests that the daemon restores for the pool per second.
    pub(super) refill_rate: Option<FileValue<NonZeroU32>>,
    /// Lease of a claim, in seconds, until it is renewed.
    pub(super) lease: Option<FileValue<NonZeroU32>>,
    /// Private memory that each of its guests is allowed, in bytes or as `"1M"`.
    pub(super) private_limit: Option<FileValue<Bytes>>,
    /// Whether the kernel ends a guest that comes to hold more.
    pub(super) enforce_private_limit: Option<FileValue<bool>>,
    /// What its guests reach; by default as the checkpoint's.
    pub(super) network: Option<FileValue<Network>>,
    /// Ports of this host that lead to ports of its guests.
    #[serde(default)]
    pub(super) publish: Vec<FileValue<Publish>>,
    /// Have this host do what the checkpoint wants of it.
    #[serde(default)]
    pub(super) trust: bool,
}

/// A configuration file that was read.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    text: String,
}

impl ConfigFile {
    /// A file that has this text.
    #[cfg(fuzzing)]
    pub(super) fn of_text(text: &str) -> Self {
        Self {
            path: PathBuf::from("/fuzz.toml"),
            text: text.to_owned(),
        }
    }

    /// Reads a file; `None` when there is none of this name.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Error> {
        let exposed = |facts: Metadata| {
            facts.is_file() && OtherWriter::of(&facts) == Some(OtherWriter::Everybody)
        };
        if fs::metadata(path).is_ok_and(exposed) {
            return Err(Error::Exposed {
                path: path.to_owned(),
            });
        }
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(Self {
                path: path.to_owned(),
                text,
            })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// What is in it.
    pub(super) fn contents(&self) -> Result<Contents, Error> {
        toml::from_str(&self.text).map_err(|e| self.error(&e.span().unwrap_or(0..0), e.message()))
    }

    /// An error in this file.
    pub(super) fn error(&self, span: &Range<usize>, message: impl Into<String>) -> Error {
        let before = self.text.get(..span.start).unwrap_or_default();
        let column = before.rsplit('\n').next().unwrap_or_default();
        Error::File {
            path: self.path.clone(),
            line: self.line(span),
            column: column.chars().count() + 1,
            message: message.into(),
        }
    }

    /// The line that something stands on, from 1.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.get(..span.start).unwrap_or_default();
        before.matches('\n').count() + 1
    }
}
