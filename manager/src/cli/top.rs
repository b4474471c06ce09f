//! `brood top`: the host, pools and guests as they are now, live in a terminal or once as text.
//!
//! [`source`] reads them, through the daemon or without it; [`view`] holds the choices of the
//! person at the terminal; [`draw`] draws; [`run`] handles the terminal.

pub(crate) mod claims;
pub(crate) mod draw;
mod fit;
mod format;
pub(crate) mod picture;
pub(crate) mod run;
pub(crate) mod source;
pub(crate) mod text;
pub(crate) mod view;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Args;

use self::{
    run::{TopEnd, run},
    source::Source,
    view::{Display, Sort},
};
use super::{
    failure::INTERRUPTED,
    output::{json, line},
    values::wait,
};
use crate::config::Config;
use crate::failure::Failure;

/// Shows the host, pools and guests, live: free memory and process ids, hot guests, claims and
/// suspended claims, the rate and latency of claims, running restores, and guests by their private
/// memory.
///
/// Claims and restores are those of the daemon (`brood serve`); without a daemon, all the rest is
/// shown. A guest's private memory is the guest memory that it has written, its process and its
/// page tables.
///
/// Keys: q quits, s sorts by the next column, r reverses the order, / shows only guests with a
/// text, p pauses the display, ? explains all keys.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood top
  brood top --sort name --filter web
  brood top --once
  brood top --json | jq .density.mib_per_guest")]
pub(super) struct Top {
    /// Time between two looks
    #[arg(long, short = 'i', value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// Column to sort guests by: private or shared (most first), name, state, or restored (newest
    /// first)
    #[arg(
        long,
        value_name = "COLUMN",
        default_value = "private",
        hide_possible_values = true
    )]
    sort: Sort,
    /// Show only guests with this text in their name, state or checkpoint
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Print the display once, as text
    #[arg(long)]
    once: bool,
    /// Print the display once, as a JSON object with all guests
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(3600));
    match wait(text)? {
        interval if (least..=most).contains(&interval) => Ok(interval),
        _ => Err("write 0.1 to 3600 seconds, as in 500ms or 2s".to_owned()),
    }
}

impl Top {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        if self.once || self.json {
            let picture = Source::new(config, None).look()?;
            if self.json {
                json(&picture);
            } else {
                line(text::render(&picture, self.sort, &self.filter).trim_end());
            }
            return Ok(ExitCode::SUCCESS);
        }
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            let hint = "brood top --once prints it once, brood top --json for programs";
            let message = "this is no terminal to show anything live in";
            return Err(Failure::new(&message, Some(hint.to_owned())));
        }
        let source = Source::new(config, Some(claims::listen(config)));
        let display = Display {
            sort: self.sort,
            filter: self.filter,
            ..Display::default()
        };
        let ended = run(source, display, self.interval)?;
        Ok(match ended {
            TopEnd::Quit => ExitCode::SUCCESS,
            TopEnd::Signal => ExitCode::from(INTERRUPTED),
        })
    }
}
