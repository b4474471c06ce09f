//! What fuzz targets need of this module's own functions.

use super::{Config, SettingSearch, Sources, file::ConfigFile};

/// A configuration file: what is read, is shown.
pub fn configuration(text: &str) -> bool {
    let file = ConfigFile::of_text(text);
    let sources = Sources::default();
    let look = SettingSearch {
        file: Some(&file),
        sources: &sources,
    };
    match file
        .contents()
        .and_then(|contents| Config::of(contents, &look))
    {
        Ok(config) => {
            assert!(!config.shown().is_empty());
            true
        }
        Err(error) => {
            // A person reads it.
            assert!(!error.to_string().is_empty() && error.hint().is_some());
            false
        }
    }
}
