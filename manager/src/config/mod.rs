//! Configuration: settings that operators make once, for the state folder, restores, the daemon and
//! pools.
//!
//! A setting has a key, such as `restore.private_limit`. brood looks for it in this order:
//!
//! 1. a flag of the command line,
//! 2. the environment: `BROOD_RESTORE_PRIVATE_LIMIT`,
//! 3. the configuration file, in TOML: `private_limit` under `[restore]`,
//! 4. its default.
//!
//! The file is the one that `--config` names, else `BROOD_CONFIG`, else [`SYSTEM_FILE`] if it
//! exists. The whole configuration is a value: [`Config::load`] can be called again at any time,
//! and returns the settings to use from then on, or an error.

mod error;
mod file;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod shown;
#[cfg(test)]
mod tests;
mod value;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub(crate) use error::Error;
pub(crate) use value::{
    AbsolutePath, AcceleratorChoice, EngineChoice, LogFormat, LogLevel, SocketMode, UseDaemon,
    listen_address,
};

use brood_core::{
    engine::{EngineConfig, ParkAfter, bhyve::Rctl},
    pool::{self, NewPool},
    state::{self, Policy, State},
    units::Bytes,
};
use file::{ConfigFile, FileValue};
use value::Value;

/// The file that is used when none is named and this one is there.
pub(crate) const SYSTEM_FILE: &str = if cfg!(target_os = "freebsd") {
    "/usr/local/etc/brood.toml"
} else {
    "/etc/brood/brood.toml"
};

/// Environment variable that names the configuration file.
pub(crate) const CONFIG_VARIABLE: &str = "BROOD_CONFIG";

/// A configuration file that says all there is to say, and changes nothing.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// Default private limit of each guest.
pub(crate) const PRIVATE_LIMIT: Bytes = brood_core::restore::PRIVATE_LIMIT;

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub(crate) enum SettingSource {
    /// The built-in default.
    Default,
    /// The configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The environment.
    Environment {
        /// The variable.
        variable: String,
    },
    /// The command line.
    Flag,
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "{variable} in the environment"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// A value, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    /// What is used.
    pub value: T,
    /// Who said so.
    pub source: SettingSource,
}

/// Sources of a configuration, besides defaults and the system's file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// The file that the command line names.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// What flags set, by the key of the setting.
    pub flags: BTreeMap<&'static str, OsString>,
}

impl Sources {
    /// The environment of this process, and no flags.
    #[must_use]
    pub(crate) fn of_process() -> Self {
        Self {
            environment: env::vars_os().collect(),
            ..Self::default()
        }
    }

    /// A variable of the environment. An empty one counts as not set.
    fn variable(&self, name: &str) -> Option<&OsString> {
        let value = self.environment.get(std::ffi::OsStr::new(name));
        value.filter(|value| !value.is_empty())
    }
}

/// What is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// `daemon`: whether commands use the daemon.
    pub daemon: Setting<UseDaemon>,
    /// `engine`: the only engine whose checkpoints are restored.
    pub engine: Setting<EngineChoice>,
    /// `state.dir`: the state folder, if there is one to be had.
    state_dir: Option<Setting<AbsolutePath>>,
    /// `[restore]`.
    pub restore: Restore,
    /// `[qemu]`.
    pub qemu: QemuSettings,
    /// `[bhyve]`.
    pub bhyve: BhyveSettings,
    /// `image.dir`: the folder of images; see [`Config::images`].
    pub image_dir: Option<Setting<AbsolutePath>>,
    /// `[serve]`.
    pub serve: Serve,
    /// `[[pool]]`: the pools that there should be.
    pub pools: Vec<NewPool>,
}

/// Defaults of the options of `brood restore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restore {
    /// How many restores run at once; one for each core by default.
    pub concurrency: Option<Setting<NonZeroU32>>,
    /// Private memory that each guest may come to hold, in the worst case that is allowed for.
    pub private_limit: Setting<Bytes>,
    /// Whether the kernel ends a guest that comes to hold more.
    pub enforce_private_limit: Setting<bool>,
    /// The folder of keys of which one must have signed each checkpoint.
    pub signers: Option<Setting<AbsolutePath>>,
    /// When idle guests are parked.
    pub park_after: Setting<ParkAfter>,
}

/// What guests of the QEMU engine have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QemuSettings {
    /// What executes the instructions of new guests.
    pub accel: Setting<AcceleratorChoice>,
}

/// What guests of the bhyve engine have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BhyveSettings {
    /// Limits of each guest that is restored.
    pub rctl: Setting<Rctl>,
}

/// Defaults of the daemon's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Serve {
    /// The unix socket that it listens on; see [`Config::socket`].
    pub socket: Option<Setting<AbsolutePath>>,
    /// Permissions of that socket.
    pub socket_mode: Setting<SocketMode>,
    /// A TCP address that it listens on too. There is a token file when there is one.
    pub listen: Option<Setting<SocketAddr>>,
    /// The file with the token that clients over TCP must show.
    pub token_file: Option<Setting<AbsolutePath>>,
    /// The folder of the checkpoints that requests name without one; see [`Config::checkpoints`].
    pub checkpoints: Option<Setting<AbsolutePath>>,
    /// How it writes its log.
    pub log_format: Setting<LogFormat>,
    /// How much it writes to its log.
    pub log_level: Setting<LogLevel>,
}

impl Config {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When the file cannot be read, or when it, the environment or a flag make no sense.
    pub(crate) fn load(sources: &Sources) -> Result<Self, Error> {
        let file = find_file(sources)?;
        let contents = match &file {
            Some(file) => file.contents()?,
            None => file::Contents::default(),
        };
        let look = SettingSearch {
            file: file.as_ref(),
            sources,
        };
        Self::of(contents, &look)
    }

    /// What a file's contents, the environment and flags make together.
    fn of(contents: file::Contents, look: &SettingSearch<'_>) -> Result<Self, Error> {
        let state_dir = look.find("state.dir", contents.state.dir)?.or_else(|| {
            let value = AbsolutePath::new(&State::usual_dir().ok()?).ok()?;
            let source = SettingSource::Default;
            Some(Setting { value, source })
        });
        let daemon = look.find_or("daemon", contents.daemon, UseDaemon::Auto)?;
        let restore = Restore {
            concurrency: look.find("restore.concurrency", contents.restore.concurrency)?,
            private_limit: look.find_or(
                "restore.private_limit",
                contents.restore.private_limit,
                PRIVATE_LIMIT,
            )?,
            enforce_private_limit: look.find_or(
                "restore.enforce_private_limit",
                contents.restore.enforce_private_limit,
                false,
            )?,
            signers: look.find("restore.signers", contents.restore.signers)?,
            park_after: look.find_or(
                "restore.park_after",
                contents.restore.park_after,
                ParkAfter(None),
            )?,
        };
        let engine = look.find_or("engine", contents.engine, EngineChoice(None))?;
        let accel = look.find_or("qemu.accel", contents.qemu.accel, AcceleratorChoice(None))?;
        let rctl = look.find_or("bhyve.rctl", contents.bhyve.rctl, Rctl::default())?;
        let image_dir = look.find("image.dir", contents.image.dir)?;
        let serve = look.serve(contents.serve)?;
        let pools = look.pools(contents.pool, &restore)?;
        Ok(Self {
            file: look.file.map(|file| file.path.clone()),
            daemon,
            engine,
            state_dir,
            restore,
            qemu: QemuSettings { accel },
            bhyve: BhyveSettings { rctl },
            image_dir,
            serve,
            pools,
        })
    }

    /// The state folder.
    ///
    /// # Errors
    /// [`state::Error::Nowhere`].
    pub(crate) fn state_dir(&self) -> Result<&Path, state::Error> {
        let dir = self.state_dir.as_ref().ok_or(state::Error::Nowhere)?;
        Ok(&dir.value)
    }

    /// How the engines are configured.
    #[must_use]
    pub(crate) fn engines(&self) -> EngineConfig {
        EngineConfig {
            only: self.engine.value.0,
            accelerator: self.qemu.accel.value.0,
            rctl: self.bhyve.rctl.value.clone(),
        }
    }

    /// The unix socket of the daemon; by default in the state folder.
    ///
    /// # Errors
    /// [`state::Error::Nowhere`].
    pub(crate) fn socket(&self) -> Result<PathBuf, state::Error> {
        match &self.serve.socket {
            Some(socket) => Ok(socket.value.to_path_buf()),
            None => Ok(self.state_dir()?.join("api.sock")),
        }
    }

    /// The folder of images; by default in the state folder.
    ///
    /// # Errors
    /// [`state::Error::Nowhere`].
    pub(crate) fn images(&self) -> Result<PathBuf, state::Error> {
        match &self.image_dir {
            Some(dir) => Ok(dir.value.to_path_buf()),
            None => Ok(self.state_dir()?.join("images")),
        }
    }

    /// The folder of keys of which one must have signed each checkpoint.
    #[must_use]
    pub(crate) fn signers(&self) -> Option<PathBuf> {
        let signers = self.restore.signers.as_ref()?;
        Some(signers.value.to_path_buf())
    }

    /// The daemon's folder of checkpoints; by default in the state folder.
    ///
    /// # Errors
    /// [`state::Error::Nowhere`].
    pub(crate) fn checkpoints(&self) -> Result<PathBuf, state::Error> {
        match &self.serve.checkpoints {
            Some(dir) => Ok(dir.value.to_path_buf()),
            None => Ok(self.state_dir()?.join("checkpoints")),
        }
    }
}

fn find_file(sources: &Sources) -> Result<Option<ConfigFile>, Error> {
    let named = sources.file.as_deref();
    let named = named.or_else(|| sources.variable(CONFIG_VARIABLE).map(Path::new));
    let Some(path) = named else {
        return ConfigFile::read(Path::new(SYSTEM_FILE));
    };
    let found = ConfigFile::read(path)?;
    found.map(Some).ok_or_else(|| Error::Read {
        path: path.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Looks for settings where they may be.
struct SettingSearch<'a> {
    file: Option<&'a ConfigFile>,
    sources: &'a Sources,
}

impl SettingSearch<'_> {
    /// The value of a setting, if anybody set it.
    fn find<T: Value>(
        &self,
        key: &'static str,
        in_file: Option<FileValue<T>>,
    ) -> Result<Option<Setting<T>>, Error> {
        if let Some(text) = self.sources.flags.get(key) {
            let value = T::typed(text).map_err(|message| Error::Flag {
                setting: key,
                message,
            })?;
            let source = SettingSource::Flag;
            return Ok(Some(Setting { value, source }));
        }
        let variable = variable(key);
        if let Some(text) = self.sources.variable(&variable) {
            return match T::typed(text) {
                Ok(value) => {
                    let source = SettingSource::Environment { variable };
                    Ok(Some(Setting { value, source }))
                }
                Err(message) => Err(Error::Environment { variable, message }),
            };
        }
        Ok(self.file.zip(in_file).map(|(file, value)| Setting {
            source: SettingSource::File {
                path: file.path.clone(),
                line: file.line(&value.span()),
            },
            value: value.into_inner().0,
        }))
    }

    /// The value of a setting, or its default.
    fn find_or<T: Value>(
        &self,
        key: &'static str,
        in_file: Option<FileValue<T>>,
        default: T,
    ) -> Result<Setting<T>, Error> {
        Ok(self.find(key, in_file)?.unwrap_or(Setting {
            value: default,
            source: SettingSource::Default,
        }))
    }

    fn serve(&self, file: file::Serve) -> Result<Serve, Error> {
        let serve = Serve {
            socket: self.find("serve.socket", file.socket)?,
            socket_mode: self.find_or("serve.socket_mode", file.socket_mode, SocketMode(0o600))?,
            listen: self.find("serve.listen", file.listen)?,
            token_file: self.find("serve.token_file", file.token_file)?,
            checkpoints: self.find("serve.checkpoints", file.checkpoints)?,
            log_format: self.find_or("serve.log_format", file.log_format, LogFormat::Text)?,
            log_level: self.find_or("serve.log_level", file.log_level, LogLevel::Info)?,
        };
        match &serve.listen {
            Some(listen) if serve.token_file.is_none() => Err(Error::NoToken {
                listen: listen.value,
            }),
            _ => Ok(serve),
        }
    }

    fn pools(&self, rows: Vec<file::Pool>, defaults: &Restore) -> Result<Vec<NewPool>, Error> {
        let Some(file) = self.file else {
            return Ok(Vec::new());
        };
        let mut pools: Vec<NewPool> = Vec::with_capacity(rows.len());
        for row in rows {
            let name = &row.name.get_ref().0.0;
            if pools.iter().any(|pool| pool.name == *name) {
                let message = format!("there is another pool {name:?} above");
                return Err(file.error(&row.name.span(), message));
            }
            let hot = row.hot.get_ref().0;
            if let Some(max) = row.max.as_ref().filter(|max| max.get_ref().0 < hot) {
                let message = format!("pool {name:?} may not have its {hot} hot entries");
                return Err(file.error(&max.span(), message));
            }
            if let Some(low) = row.hot_min.as_ref().filter(|low| low.get_ref().0 > hot) {
                let message = format!("pool {name:?} never has more than its {hot} hot entries");
                return Err(file.error(&low.span(), message));
            }
            let number = |n: Option<file::FileValue<u32>>| n.map(|n| n.into_inner().0.into());
            let positive =
                |n: Option<file::FileValue<NonZeroU32>>| n.map(|n| n.into_inner().0.get().into());
            pools.push(NewPool {
                name: row.name.into_inner().0.0,
                checkpoint: row.checkpoint.into_inner().0,
                policy: Policy {
                    hot: hot.into(),
                    hot_min: number(row.hot_min),
                    most: number(row.max),
                    max_memory: row.max_memory.map(|size| size.into_inner().0),
                    max_age_s: positive(row.max_age),
                    refill_per_s: positive(row.refill_rate),
                    lease_s: positive(row.lease).unwrap_or(pool::LEASE.as_secs()),
                },
                private_limit: row
                    .private_limit
                    .map_or(defaults.private_limit.value, |size| size.into_inner().0),
                enforce_private_limit: row
                    .enforce_private_limit
                    .map_or(defaults.enforce_private_limit.value, |on| on.into_inner().0),
                network: row.network.map(|network| network.into_inner().0),
                publish: row
                    .publish
                    .into_iter()
                    .map(|publish| publish.into_inner().0)
                    .collect(),
                trust: row.trust,
            });
        }
        Ok(pools)
    }
}

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("BROOD_{}", key.replace('.', "_").to_uppercase())
}
