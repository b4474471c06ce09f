//! Report of a density run: one HTML page that needs no other file, the figures as JSON, and the
//! density curve as an SVG.

mod breakdown_plot;
mod figures;
mod latency_plot;
mod memory_plot;
mod page;
mod palette;
mod reference;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use plotters::drawing::DrawingAreaErrorKind;
use serde::Serialize;

use super::step::Step;

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to report.
    #[error("cannot write a density report of no steps")]
    NoSteps,
    /// A file or its folder could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A plot could not be drawn.
    #[error("cannot draw the plot of {plot}: {source}")]
    Draw {
        /// What it would have shown.
        plot: &'static str,
        /// Why.
        source: DrawError,
    },
    /// The figures could not be written as JSON.
    #[error("cannot write the steps as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoSteps => "give at least one number of guests",
            Self::Write { .. } => "give a folder that this user may write and that has free space",
            Self::Draw { .. } | Self::Json(_) => {
                "the measurement itself is good: print it with --json, and please report this"
            }
        }
    }
}

/// An error of the drawing library.
pub type DrawError = DrawingAreaErrorKind<io::Error>;

/// A step with its raw latencies, as `density.json` keeps it.
#[derive(Serialize)]
struct FullStep<'a> {
    #[serde(flatten)]
    step: &'a Step,
    latencies_ms: &'a [f64],
}

/// Writes `index.html`, `density.json` and `density.svg` into `dir`, which is made if it is not
/// there, and returns the path of the page. Files of an earlier report are replaced.
///
/// # Errors
///
/// See [`Error`].
pub fn write_report(dir: &Path, steps: &[Step]) -> Result<PathBuf, Error> {
    if steps.is_empty() {
        return Err(Error::NoSteps);
    }
    let full: Vec<_> = steps
        .iter()
        .map(|step| FullStep {
            step,
            latencies_ms: &step.latencies_ms,
        })
        .collect();
    let draw = |plot, draw: fn(&[Step]) -> Result<String, DrawError>| {
        draw(steps).map_err(|source| Error::Draw { plot, source })
    };
    let memory = draw("host memory", memory_plot::draw)?;
    let plots = page::Plots {
        latency: draw("restore latency", latency_plot::draw)?,
        breakdown: draw("host memory per guest", breakdown_plot::draw)?,
        memory: &memory,
    };
    fs::create_dir_all(dir).map_err(|source| Error::Write {
        path: dir.to_owned(),
        source,
    })?;
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        match fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(source) => Err(Error::Write { path, source }),
        }
    };
    write(
        "density.json",
        &(serde_json::to_string_pretty(&full)? + "\n"),
    )?;
    write("density.svg", &palette::themed(&memory))?;
    write("index.html", &page::render(dir, steps, &plots)?)
}
