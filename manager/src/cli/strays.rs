//! Strays on the command line: guests' processes without a record.

use std::process::ExitCode;

use serde_json::json;

use super::output::{json, line, local, table};
use crate::{config::Config, failure::Failure};
use brood_core::engine::Stray;

/// Prints them.
pub(super) fn list(config: &Config, as_json: bool) -> Result<ExitCode, Failure> {
    let strays = local(config).strays()?;
    if as_json {
        json(&Vec::from_iter(strays.iter().map(view)));
    } else if strays.is_empty() {
        line("no strays");
    } else {
        let rows: Vec<_> = strays.into_iter().map(row).collect();
        table(&["NAME", "PID", "CHECKPOINT"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}

fn view(stray: &Stray) -> serde_json::Value {
    json!({
        "name": stray.name,
        "pid": stray.process.map(|process| process.pid),
        "checkpoint": stray.checkpoint,
    })
}

fn row(stray: Stray) -> Vec<String> {
    let checkpoint = stray.checkpoint.unwrap_or_default();
    let process = match stray.process {
        Some(process) => process.pid.to_string(),
        None => "ended".to_owned(),
    };
    vec![stray.name, process, checkpoint]
}
