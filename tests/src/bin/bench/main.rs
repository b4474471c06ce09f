//! Benchmark of brood against the floor: the least that the same host can do, without a manager.
//!
//! One run measures both, in turns (A B, B A, A B), for several rounds. It compares the ratio
//! within a round, and shows it with its spread over the rounds: a busy host shows as a wide
//! spread, not as a better or worse brood. A missed goal is reported and never fails the command;
//! only a real error does.

mod api;
mod bhyve;
mod brood;
mod cgroup;
mod command;
mod connections;
mod contest;
mod crowd;
mod error;
mod floor;
mod goal;
mod kvm_linux;
mod linux;
mod measure;
mod pool;
mod spread;
mod steady_state;
mod table;
mod workplace;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};

use self::{command::Interrupt, error::Error, table::Table, workplace::Workplace};

/// Measures brood against the floor, the least that this host can do.
///
/// Prints a table: what was measured, its goal, and by how much that was missed. Exits with 0
/// whether goals were reached or not, with 1 if something broke, with 130 after Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "tools/bench", max_term_width = 100)]
struct Options {
    /// What to measure [default: latency wall density resume pool api connections delta]
    #[arg(value_name = "MEASUREMENT")]
    measurements: Vec<Measurement>,
    /// Rounds; each measures brood and the floor once (ten-thousand has one round)
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Guests in place of each measurement's own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    guests: Option<u32>,
    /// Restores at once, except for latency [default: one for each core]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=256))]
    concurrency: Option<u32>,
    /// Memory of one guest
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: String,
    /// Folder for the checkpoint, the floor's memory file and brood's state
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the table in Markdown
    #[arg(long)]
    markdown: bool,
    /// The brood binary
    #[arg(long, value_name = "FILE", overrides_with = "brood")]
    brood: PathBuf,
    /// The floor binary
    #[arg(long, value_name = "FILE", overrides_with = "floor")]
    floor: PathBuf,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// 200 guests restored one at a time: the median time to the guest's answer
    Latency,
    /// 1,000 guests: time until the last has answered
    Wall,
    /// 1,000 guests: host memory for each
    Density,
    /// Paused guests resumed, one at a time: from the signal to the guest's answer
    Resume,
    /// Claims from a pool, hot and cold, and rebuilds of pools
    Pool,
    /// 10,000 claims and releases, after which nothing may be left
    PoolCycles,
    /// Hot claims over the daemon's API, and what that adds to a call of the library
    Api,
    /// 1,000 idle connections: memory of the daemon, and time of a request of the socket's owner
    Connections,
    /// A guest with 1,000 pages of its own, far apart: what it takes as a delta, and to restore
    Delta,
    /// 1,000 stand-ins of bhyve: what the manager itself needs for each
    BhyveManager,
    /// Real Linux guests on QEMU: time, memory and steps, beside a bare QEMU script; 200 at once
    Linux,
    /// 200 real Linux guests on brood's own engine, in an emulated host: memory, and time beside the
    /// demo guest's
    KvmLinux,
    /// 10,000 guests at once: host memory, and whether the host can still fork
    TenThousand,
    /// 12,000 guests: what restore, claim and destroy cost beside them, and beside 1,000
    Crowd,
}

impl Measurement {
    const DEFAULT: [Self; 8] = [
        Self::Latency,
        Self::Wall,
        Self::Density,
        Self::Resume,
        Self::Pool,
        Self::Api,
        Self::Connections,
        Self::Delta,
    ];

    fn run(self, workplace: &Workplace) -> Result<Vec<goal::Row>, Error> {
        match self {
            Self::Latency => measure::latency(workplace),
            Self::Wall => measure::wall(workplace),
            Self::Density => measure::density(workplace),
            Self::Resume => measure::resume(workplace),
            Self::Pool => pool::pool(workplace),
            Self::PoolCycles => pool::cycles(workplace),
            Self::Api => api::api(workplace),
            Self::Connections => connections::connections(workplace),
            Self::Delta => measure::delta(workplace),
            Self::BhyveManager => bhyve::manager(workplace),
            Self::Linux => linux::linux(workplace),
            Self::KvmLinux => kvm_linux::kvm_linux(workplace),
            Self::TenThousand => measure::ten_thousand(workplace),
            Self::Crowd => crowd::crowd(workplace),
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(table) => {
            print(&options, &table);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(if matches!(error, Error::Interrupted) {
                130
            } else {
                1
            })
        }
    }
}

fn print(options: &Options, table: &Table) {
    if options.json {
        println!("{}", table.json());
    } else if options.markdown {
        print!("{}", table.markdown());
    } else {
        print!("{}", table.text());
    }
}

fn run(options: &Options) -> Result<Table, Error> {
    let interrupt = Interrupt::catch()?;
    let mut workplace = Workplace::prepare(options, interrupt)?;
    let measured = measure_all(options, &workplace);
    // Also after an error: no guest outlives this process.
    let cleaned = workplace.clean();
    let table = measured?;
    cleaned?;
    Ok(table)
}

fn measure_all(options: &Options, workplace: &Workplace) -> Result<Table, Error> {
    let mut table = Table::new(workplace.machine()?, workplace.rounds);
    let asked = &options.measurements;
    let measurements = if asked.is_empty() {
        &Measurement::DEFAULT[..]
    } else {
        asked
    };
    for measurement in measurements {
        table.rows.extend(measurement.run(workplace)?);
    }
    Ok(table)
}
