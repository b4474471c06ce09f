//! A guest's configuration as bhyve prints it, and as a manifest has it: a map, here as JSON.
#![no_main]

use brood_core::engine::bhyve::config::{BhyveConfig, Variables};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let read = match serde_json::from_str(text) {
        Ok(map) => BhyveConfig::try_from(Variables(map)),
        Err(_) => text.parse::<BhyveConfig>(),
    };
    let Ok(config) = read else {
        return;
    };
    let written = config.variables();
    assert_eq!(
        written.to_string().parse::<Variables>().as_ref(),
        Ok(&written)
    );
    assert_eq!(BhyveConfig::try_from(written).as_ref(), Ok(&config));
    assert_eq!(config.render().parse::<BhyveConfig>(), Ok(config));
});
