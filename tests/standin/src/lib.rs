//! Stand-ins of FreeBSD's commands, for tests on any machine of brood's work with processes: its
//! order of steps, its crashes, its leftovers, many at once.
//!
//! One binary acts as `bhyve`, `bhyvectl`, `zfs`, `ifconfig`, `sysctl`, `kldstat` or `rctl`, by the
//! name that it is called by; all that they change is in one folder, a [`World`]. They refuse what
//! the real commands refuse, with the same words and exit codes; README.md lists the rules and
//! their sources. No stand-in runs a virtual machine, and nothing that passes here has run on
//! FreeBSD.

mod accepts;
mod bhyve;
mod bhyvectl;
mod errno;
mod exit;
mod fault;
mod ifconfig;
mod kldstat;
mod network;
mod nvlist;
mod rctl;
mod socket;
mod sysctl;
mod vm;
mod world;
mod zfs;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

pub use accepts::accepts;
pub use world::{COMMANDS, IASL, ROOT, Release, STOCK, World};

use exit::{EX_SOFTWARE, EX_USAGE, Exit};

/// Acts as the command that the first argument names.
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    let name = name.unwrap_or_default().to_string_lossy();
    let rest = arguments.get(1..).unwrap_or_default();
    let result = if COMMANDS.contains(&&*name) {
        World::of_environment().and_then(|world| {
            world.note(&[&[name.clone().into_owned()], rest].concat());
            match &*name {
                "bhyve" => bhyve::main(&world, rest),
                "bhyvectl" => bhyvectl::main(&world, rest),
                "ifconfig" => ifconfig::main(&world, rest),
                "zfs" => zfs::main(&world, rest),
                "sysctl" => sysctl::main(&world, rest),
                "rctl" => rctl::main(&world, rest),
                _ => kldstat::main(&world, rest),
            }
        })
    } else if name == "iasl" {
        World::of_environment().and_then(|world| {
            world.note(&[&[name.into_owned()], rest].concat());
            bhyve::iasl(rest)
        })
    } else {
        own(rest)
    };
    let exit = result.err().unwrap_or_else(|| Exit::silent(0));
    let _ = io::stderr().write_all(exit.message.as_bytes());
    let _ = io::stdout().flush();
    bhyve::flush();
    ExitCode::from(u8::try_from(exit.code).unwrap_or(u8::MAX))
}

/// What the binary does under its own name.
fn own(arguments: &[String]) -> Result<(), Exit> {
    match arguments {
        [word] if word == "points" => {
            for point in fault::ALL {
                println!("{:<22} {}", point.name, point.place);
            }
            Ok(())
        }
        [word, root] if word == "init" => {
            let made =
                std::env::current_exe().and_then(|binary| World::create(root.as_ref(), &binary));
            let world = made.map_err(|e| {
                let text = format!("standin: cannot make a world in {root}: {e}\n");
                Exit::saying(EX_SOFTWARE, text)
            })?;
            println!("export {ROOT}={}", world.root().display());
            println!("PATH={}:$PATH", world.bin().display());
            Ok(())
        }
        _ => Err(Exit::saying(
            EX_USAGE,
            "usage: standin init DIR | standin points\n",
        )),
    }
}
