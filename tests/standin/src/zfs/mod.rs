//! zfs(8): the subcommands that a root disk for each VM takes (cmd/zfs/zfs_main.c and
//! lib/libzfs of OpenZFS, as in FreeBSD's sys/contrib/openzfs).

mod change;
mod datasets;
mod destroy;
mod hold;
mod list;

use std::{fs, io};

use crate::{
    exit::{EX_SOFTWARE, Exit},
    fault,
    world::World,
};

use change::Pool;
use datasets::{Datasets, Kind};

fn usage() -> Exit {
    Exit::saying(2, "usage: zfs command args ...; see zfs(8)\n")
}

fn failed(text: impl AsRef<str>) -> Exit {
    Exit::saying(1, format!("{}\n", text.as_ref()))
}

fn broken(error: &io::Error) -> Exit {
    Exit::broken("change the datasets", error)
}

/// An option's letter and its argument.
type Flag = (char, Option<String>);

/// Options, which may have arguments, and what follows them.
fn options(arguments: &[String], with: &str) -> Result<(Vec<Flag>, Vec<String>), Exit> {
    let (mut flags, mut rest) = (Vec::new(), Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            rest.push(word.clone());
            rest.extend(words.cloned());
            break;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            if !with.contains(letter) {
                flags.push((letter, None));
                continue;
            }
            let attached = letters.as_str().to_owned();
            let value = if attached.is_empty() {
                words.next().cloned()
            } else {
                Some(attached)
            };
            let missing = || failed(format!("missing argument for '{letter}' option"));
            flags.push((letter, Some(value.ok_or_else(missing)?)));
            break;
        }
    }
    Ok((flags, rest))
}

/// The options are only these letters.
fn only(flags: &[Flag], known: &str) -> Result<(), Exit> {
    match flags.iter().find(|(letter, _)| !known.contains(*letter)) {
        Some((letter, _)) => {
            let text = format!("invalid option '{letter}'\n");
            Err(Exit::saying(2, text + &usage().message))
        }
        None => Ok(()),
    }
}

fn has(flags: &[Flag], letter: char) -> bool {
    flags.iter().any(|(other, _)| *other == letter)
}

/// `-o property=value`, as often as given.
fn properties(flags: &[Flag]) -> Result<Vec<(String, String)>, Exit> {
    let pairs = flags.iter().filter(|(letter, _)| *letter == 'o');
    let pair = |(_, value): &Flag| {
        let pair = value.as_deref().and_then(|value| value.split_once('='));
        let pair = pair.map(|(name, value)| (name.to_owned(), value.to_owned()));
        pair.ok_or_else(|| failed("missing '=' for property=value argument"))
    };
    pairs.map(pair).collect()
}

fn missing(name: &str) -> Exit {
    failed(format!("cannot open '{name}': dataset does not exist"))
}

/// Runs the command.
pub(crate) fn main(world: &World, arguments: &[String]) -> Result<(), Exit> {
    let (command, rest) = arguments.split_first().ok_or_else(usage)?;
    match command.as_str() {
        "list" | "get" => {
            let datasets = Datasets::load(world).map_err(|e| broken(&e))?;
            if command == "list" {
                list::list(world, &datasets, rest)
            } else {
                list::get(world, &datasets, rest)
            }
        }
        "create" | "snapshot" | "snap" | "clone" | "destroy" | "rollback" | "set" | "inherit"
        | "hold" | "release" => {
            // Outside of the lock: a command that hangs keeps no other one from going on.
            let (before, after) = match command.as_str() {
                "snapshot" | "snap" => (Some(fault::ZFS_SNAPSHOT), Some(fault::ZFS_SNAPSHOTTED)),
                "clone" => (Some(fault::ZFS_CLONE), Some(fault::ZFS_CLONED)),
                "destroy" => (Some(fault::ZFS_DESTROY), Some(fault::ZFS_DESTROYED)),
                "hold" => (Some(fault::ZFS_HOLD), Some(fault::ZFS_HELD)),
                "release" => (Some(fault::ZFS_RELEASE), Some(fault::ZFS_RELEASED)),
                _ => (None, None),
            };
            before.map_or(Ok(()), |point| fault::pass(world, point))?;
            change(world, command, rest)?;
            after.map_or(Ok(()), |point| fault::pass(world, point))
        }
        // Datasets are mounted when they are made: see `list.rs`.
        "mount" => match rest {
            [name] => Err(failed(format!(
                "cannot mount '{name}': filesystem already mounted"
            ))),
            _ => Err(usage()),
        },
        "promote" | "rename" | "send" | "receive" | "recv" | "unmount" | "bookmark" | "holds"
        | "diff" => {
            let text = format!("standin: zfs {command} is not modelled\n");
            Err(Exit::saying(EX_SOFTWARE, text))
        }
        _ => {
            let text = format!("unrecognized command '{command}'\n");
            Err(Exit::saying(2, text + &usage().message))
        }
    }
}

/// Runs a subcommand that changes datasets, alone in the world.
fn change(world: &World, command: &str, arguments: &[String]) -> Result<(), Exit> {
    let _guard = world.lock().map_err(|e| broken(&e))?;
    let mut datasets = Datasets::load(world).map_err(|e| broken(&e))?;
    let pool = Pool {
        world,
        datasets: &mut datasets,
    };
    match command {
        "create" => pool.create(arguments),
        "snapshot" | "snap" => pool.snapshot(arguments),
        "clone" => pool.clone_snapshot(arguments),
        "destroy" => pool.destroy(arguments),
        "rollback" => pool.rollback(arguments),
        "set" => pool.set(arguments),
        "hold" => pool.hold(arguments),
        "release" => pool.release(arguments),
        _ => pool.inherit(arguments),
    }
}

/// Makes a pool: a file system of one name.
pub(crate) fn add_pool(world: &World, name: &str) -> io::Result<()> {
    let _guard = world.lock()?;
    let mut datasets = Datasets::load(world)?;
    datasets.add(name, Kind::Filesystem);
    fs::create_dir_all(datasets.contents(world, name))?;
    datasets.store(world)
}
