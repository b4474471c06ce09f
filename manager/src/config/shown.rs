//! View of the configuration: each setting with the place that it comes from, as text and as JSON.

use std::{fmt::Display, path::PathBuf};

use serde::Serialize;

use super::{Config, Setting, SettingSource};

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SettingView {
    /// Its key, such as `restore.private_limit`.
    pub key: &'static str,
    /// The value in use; `None` when it is not set and has no default.
    pub value: Option<String>,
    /// Where that comes from.
    pub source: SettingSource,
}

impl SettingView {
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
                source: SettingSource::Default,
            },
        }
    }
}

impl Config {
    /// All settings but pools, in the order of the example.
    #[must_use]
    pub(crate) fn shown(&self) -> Vec<SettingView> {
        let Self {
            restore,
            bhyve,
            serve,
            ..
        } = self;
        let path = |path: PathBuf| path.display().to_string();
        let (socket, checkpoints) = (self.socket().ok(), self.checkpoints().ok());
        let images = self.images().ok().map(path);
        let cores = Some("one for each core".to_owned());
        vec![
            SettingView::of("daemon", &self.daemon),
            SettingView::of("engine", &self.engine),
            SettingView::or("state.dir", self.state_dir.as_ref(), None),
            SettingView::or("restore.concurrency", restore.concurrency.as_ref(), cores),
            SettingView::of("restore.private_limit", &restore.private_limit),
            SettingView::of(
                "restore.enforce_private_limit",
                &restore.enforce_private_limit,
            ),
            SettingView::or("restore.signers", restore.signers.as_ref(), None),
            SettingView::of("restore.park_after", &restore.park_after),
            SettingView::of("qemu.accel", &self.qemu.accel),
            SettingView::of("bhyve.rctl", &bhyve.rctl),
            SettingView::or("image.dir", self.image_dir.as_ref(), images),
            SettingView::or("serve.socket", serve.socket.as_ref(), socket.map(path)),
            SettingView::of("serve.socket_mode", &serve.socket_mode),
            SettingView::or("serve.listen", serve.listen.as_ref(), None),
            SettingView::or("serve.token_file", serve.token_file.as_ref(), None),
            SettingView::or(
                "serve.checkpoints",
                serve.checkpoints.as_ref(),
                checkpoints.map(path),
            ),
            SettingView::of("serve.log_format", &serve.log_format),
            SettingView::of("serve.log_level", &serve.log_level),
        ]
    }
}
