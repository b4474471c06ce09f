//! `tools/layers`: the arrows between the modules of the manager's two crates, and those that run
//! upwards.
//!
//! A module of a crate is a floor, and [`HOUSES`] has them from the ground up, for the large modules
//! inside the crates too. A module may import from the floors below it only: so there is no circle
//! of modules. Cargo itself ensures that the crate `brood-core` imports nothing from `brood`.

mod arrows;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;

use self::arrows::{Arrow, arrows};

/// Modules of a crate, or of a module of it, from the ground up.
struct House {
    /// Source of the crate.
    folder: &'static str,
    /// The module that they are below; none for those of the crate itself.
    above: &'static [&'static str],
    floors: &'static [&'static str],
}

/// The crates, and modules that are large enough to have floors of their own.
const HOUSES: [House; 4] = [
    House {
        folder: CORE,
        above: &[],
        floors: &[
            "units",
            "guest_id",
            "percentiles",
            "zfs_name",
            "escaped",
            "full_disk",
            "faults",
            "shared_blocks",
            "directory",
            "owner_only",
            "other_writer",
            "checkpoint",
            "host",
            "disk",
            "agent",
            "engine",
            "state",
            "guests",
            "restore",
            "pool",
            "rebuild",
            "fuzzing",
        ],
    },
    House {
        folder: CORE,
        above: &["engine", "kvm"],
        floors: &[
            "signals",
            "exit_reason",
            "exit_record",
            "usage",
            "memory_map",
            "verdict",
            "device",
            "limit_group",
            "jail",
            "vm",
            "wire",
            "fork_server",
            "strays",
            "remains",
            "guest",
            "linux",
            "demo",
            "fuzzing",
        ],
    },
    House {
        folder: CORE,
        above: &["restore"],
        floors: &[
            "spec",
            "report",
            "error",
            "cost",
            "verify",
            "disks",
            "session_cache",
            "reserve",
            "run",
            "flow",
        ],
    },
    House {
        folder: "manager/src",
        above: &[],
        floors: &[
            "brood_core",
            "config",
            "density",
            "image",
            "failure",
            "types",
            "ops",
            "api",
            "client",
            "cli",
            "fuzzing",
            "main",
        ],
    },
];

const CORE: &str = "manager/core/src";

/// Prints which module of the manager imports from which, with the number of imports, and those
/// that run upwards, with file and line.
#[derive(Debug, Parser)]
#[command(
    name = "tools/layers",
    after_help = "Exit codes: 0 all imports run downwards, 1 some do not, 2 bad command line."
)]
struct Options {
    /// Root of the repository to look at [default: the one that this was built from]
    repository: Option<PathBuf>,
}

fn main() -> ExitCode {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let repository = Options::parse().repository.unwrap_or_else(own);
    let mut sound = true;
    for house in HOUSES {
        match arrows(&repository, house.folder, house.above) {
            Ok(found) => sound &= print(&house, &found),
            Err(e) => {
                eprintln!("error: {e}");
                return ExitCode::from(1);
            }
        }
    }
    if sound {
        println!("all imports run downwards");
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Prints the arrows of a house from the top down; whether all run downwards.
fn print(house: &House, arrows: &[Arrow]) -> bool {
    let House {
        folder,
        above,
        floors,
    } = house;
    let name: Vec<_> = [*folder].iter().chain(*above).copied().collect();
    println!("{}", name.join("/"));
    let floor = |module: &str| floors.iter().position(|floor| *floor == module);
    let mut sound = true;
    for module in floors.iter().rev() {
        let mut counts = BTreeMap::<_, u32>::new();
        for arrow in arrows.iter().filter(|arrow| arrow.from == *module) {
            *counts.entry(floor(&arrow.to)).or_default() += 1;
        }
        let to = counts.iter().rev().filter_map(|(to, count)| {
            let to = floors[(*to)?];
            Some(format!("{to} {count}"))
        });
        let to: Vec<_> = to.collect();
        println!("  {module:<12} -> {}", to.join(", "));
    }
    for arrow in arrows {
        let what = match (floor(&arrow.from), floor(&arrow.to)) {
            (Some(from), Some(to)) if to < from => continue,
            (Some(_), Some(_)) => "runs upwards",
            _ => "has no floor; give it one in tests/src/bin/layers/main.rs",
        };
        sound = false;
        let Arrow {
            from,
            to,
            file,
            line,
        } = arrow;
        println!("error: {file}:{line}: {from} -> {to} {what}");
    }
    sound
}
