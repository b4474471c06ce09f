//! View of the configuration: each setting with the place that it comes from, as text and as JSON.

use std::{fmt::Display, path::PathBuf};

use serde::Serialize;

use super::{Config, Setting, Source};

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its key, such as `restore.private_limit`.
    pub key: &'static str,
    /// The value in use; `None` when it is not set and has no default.
    pub value: Option<String>,
    /// Where that comes from.
    pub source: Source,
}

impl Shown {
    fn of<T: Display>(key: &'static str, setting: &Setting<T>) -> Self {
        Self {
            key,
            value: Some(setting.value.to_string()),
            source: setting.source.clone(),
        }
    }

    fn or<T: Display>(
        key: &'static str,
        setting: Option<&Setting<T>>,
        default: Option<String>,
    ) -> Self {
        match setting {
            Some(setting) => Self::of(key, setting),
            None => Self {
                key,
                value: default,
                source: Source::Default,
            },
        }
    }
}

impl Config {
    /// All settings but pools, in the order of the example.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let Self {
            restore,
            bhyve,
            serve,
            ..
        } = self;
        let path = |path: PathBuf| path.display().to_string();
        let (socket, checkpoints) = (self.socket().ok(), self.checkpoints().ok());
        let cores = Some("one for each core".to_owned());
        vec![
            Shown::of("daemon", &self.daemon),
            Shown::or("state.dir", self.state_dir.as_ref(), None),
            Shown::or("restore.concurrency", restore.concurrency.as_ref(), cores),
            Shown::of("restore.private_limit", &restore.private_limit),
            Shown::of("restore.park_after", &restore.park_after),
            Shown::of("bhyve.rctl", &bhyve.rctl),
            Shown::or("serve.socket", serve.socket.as_ref(), socket.map(path)),
            Shown::of("serve.socket_mode", &serve.socket_mode),
            Shown::or("serve.listen", serve.listen.as_ref(), None),
            Shown::or("serve.token_file", serve.token_file.as_ref(), None),
            Shown::or(
                "serve.checkpoints",
                serve.checkpoints.as_ref(),
                checkpoints.map(path),
            ),
            Shown::of("serve.log_format", &serve.log_format),
            Shown::of("serve.log_level", &serve.log_level),
        ]
    }
}
