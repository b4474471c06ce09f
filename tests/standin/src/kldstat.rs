//! kldstat(8): which kernel modules are loaded.

use crate::{exit::Exit, world::World};

/// Runs the command: without a name a table, with `-n FILE` or `-m MODULE` one line of it, with
/// `-q` only the exit code (sbin/kldstat/kldstat.c, main()).
pub(crate) fn main(world: &World, arguments: &[String]) -> Result<(), Exit> {
    let (mut quiet, mut file, mut module) = (false, None, None);
    let mut rest = arguments.iter();
    let usage = || Exit::saying(1, "usage: kldstat [-q] [-n filename | -m modname]\n");
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-q" => quiet = true,
            "-v" | "-h" => {}
            "-n" | "-qn" => {
                quiet |= argument == "-qn";
                file = Some(rest.next().ok_or_else(usage)?);
            }
            "-m" | "-qm" => {
                quiet |= argument == "-qm";
                module = Some(rest.next().ok_or_else(usage)?);
            }
            _ => return Err(usage()),
        }
    }
    let loaded = world
        .loaded()
        .map_err(|e| Exit::broken("read the modules", &e))?;
    let place = |wanted: &str| {
        let bare = wanted.strip_suffix(".ko").unwrap_or(wanted);
        loaded.iter().position(|name| name == bare)
    };
    let missing = |kind: &str, name: &str| {
        if quiet {
            Exit::silent(1)
        } else {
            let text = format!("can't find {kind} {name}: No such file or directory");
            Exit::errx("kldstat", 1, &text)
        }
    };
    if let Some(name) = module {
        let n = loaded.iter().position(|other| other == name);
        let n = n.ok_or_else(|| missing("module", name))?;
        if !quiet {
            println!("Id  Refs Name\n{:>3}    1 {name}", n + 1);
        }
        return Ok(());
    }
    let rows: Vec<usize> = match file {
        Some(name) => vec![place(name).ok_or_else(|| missing("file", name))?],
        None => (0..loaded.len()).collect(),
    };
    if quiet {
        return Ok(());
    }
    println!("Id Refs Address                Size Name");
    for n in rows {
        let suffix = if loaded[n] == "kernel" { "" } else { ".ko" };
        let address = 0xffff_ffff_8020_0000_u64 + 0x10_0000 * n as u64;
        println!(
            "{:2}    1 {address:#018x} {:>8x} {}{suffix}",
            n + 1,
            0x10000,
            loaded[n]
        );
    }
    Ok(())
}
