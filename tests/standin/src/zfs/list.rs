//! `zfs list` and `zfs get`: the columns and properties of datasets.

use super::{Datasets, Kind, failed, has, missing, only, options, usage};
use crate::{exit::Exit, world::World};

/// Space that a pool has left, in bytes.
const AVAILABLE: u64 = 100 << 30;

/// Properties that are computed and cannot be set.
const COMPUTED: [&str; 11] = [
    "name",
    "type",
    "used",
    "available",
    "referenced",
    "mounted",
    "origin",
    "creation",
    "guid",
    "clones",
    "userrefs",
];

/// Properties with the value that they have unless another one was set.
const DEFAULTS: [(&str, &str); 11] = [
    ("atime", "on"),
    ("canmount", "on"),
    ("checksum", "on"),
    ("compression", "on"),
    ("primarycache", "all"),
    ("quota", "none"),
    ("readonly", "off"),
    ("recordsize", "128K"),
    ("refreservation", "none"),
    ("sync", "standard"),
    ("volmode", "default"),
];

/// A size such as `10G`, in bytes.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let upper = upper.strip_suffix('B').unwrap_or(&upper);
    let digits = upper.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &upper[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

/// A size for people: three digits and a unit, as zfs_nicenum() has it.
fn nice(bytes: u64) -> String {
    let (mut unit, mut whole) = (0, bytes);
    while whole >= 1024 && unit < 4 {
        whole /= 1024;
        unit += 1;
    }
    let letter = ["B", "K", "M", "G", "T"][unit];
    let scale = 1_u64 << (10 * unit);
    if bytes.is_multiple_of(scale) || whole >= 100 {
        return format!("{whole}{letter}");
    }
    let digits = if whole >= 10 { 1 } else { 2 };
    let power = 10_u64.pow(digits);
    let hundredths = u128::from(bytes % scale) * u128::from(power) / u128::from(scale);
    format!(
        "{whole}.{hundredths:0width$}{letter}",
        width = digits as usize
    )
}

/// A property that there is and that is not computed.
///
/// # Errors
/// Ends zfs with 1, as `zfs set` does.
pub(crate) fn check_settable(name: &str, property: &str) -> Result<(), Exit> {
    let refused = |why: &str| failed(format!("cannot set property for '{name}': {why}"));
    if COMPUTED.contains(&property) {
        return Err(refused(&format!("'{property}' is readonly")));
    }
    if known(property) {
        Ok(())
    } else {
        Err(refused(&format!("invalid property '{property}'")))
    }
}

/// Properties that a new dataset can have (libzfs_dataset.c, zfs_valid_proplist()).
///
/// # Errors
/// Ends zfs with 1.
pub(crate) fn check_new(name: &str, properties: &[(String, String)]) -> Result<(), Exit> {
    let refused = |why: String| failed(format!("cannot create '{name}': {why}"));
    for (property, _) in properties {
        if COMPUTED.contains(&property.as_str()) {
            return Err(refused(format!("'{property}' is readonly")));
        }
        if !known(property) {
            return Err(refused(format!("invalid property '{property}'")));
        }
    }
    Ok(())
}

fn known(property: &str) -> bool {
    // One with a colon is the user's own.
    COMPUTED.contains(&property)
        || matches!(property, "mountpoint" | "volsize")
        || DEFAULTS.iter().any(|(name, _)| *name == property)
        || property.contains(':')
}

/// A value and where it comes from. `exact` is `-p`.
fn value(
    world: &World,
    all: &Datasets,
    name: &str,
    property: &str,
    exact: bool,
) -> (String, String) {
    let none = || ("-".to_owned(), "-".to_owned());
    let Some(dataset) = all.get(name) else {
        return none();
    };
    let size = |bytes: u64| {
        if exact {
            bytes.to_string()
        } else {
            nice(bytes)
        }
    };
    let computed = match property {
        "name" => Some(name.to_owned()),
        "type" => Some(dataset.kind.word().to_owned()),
        "used" if dataset.kind == Kind::Snapshot => Some(size(0)),
        "used" => {
            let below = all.below(name);
            let own = [name.to_owned()];
            let parts = own.iter().chain(&below).filter(|part| !part.contains('@'));
            Some(size(parts.map(|part| all.referenced(world, part)).sum()))
        }
        "available" if dataset.kind == Kind::Snapshot => Some("-".to_owned()),
        "available" => Some(size(AVAILABLE)),
        "referenced" => Some(size(all.referenced(world, name))),
        "mounted" if dataset.kind == Kind::Filesystem => {
            let mounted = all.mountpoint(world, name).is_some();
            Some(if mounted { "yes" } else { "no" }.to_owned())
        }
        "origin" => Some(dataset.origin.clone().unwrap_or_else(|| "-".to_owned())),
        "userrefs" if dataset.kind == Kind::Snapshot => Some(dataset.holds.len().to_string()),
        "clones" if dataset.kind == Kind::Snapshot => Some(all.clones(name).join(",")),
        // A second for each transaction, from some day on.
        "creation" => Some((1_700_000_000 + dataset.txg).to_string()),
        "guid" => Some((0x5eed_0000_0000_0000 + dataset.txg).to_string()),
        "volsize" => Some(dataset.volsize.map_or_else(|| "-".to_owned(), size)),
        _ => None,
    };
    if let Some(value) = computed {
        return (value, "-".to_owned());
    }
    if property == "mountpoint" {
        let set = all.inherited(name, property);
        return match (all.mountpoint(world, name), set) {
            (Some(path), None) => (path.display().to_string(), "default".to_owned()),
            (Some(path), Some((_, at))) => (path.display().to_string(), source(name, &at)),
            (None, Some((value, at))) if dataset.kind == Kind::Filesystem => {
                (value, source(name, &at))
            }
            _ => none(),
        };
    }
    if let Some((value, at)) = all.inherited(name, property) {
        return (value, source(name, &at));
    }
    let default = DEFAULTS.iter().find(|(other, _)| *other == property);
    default.map_or_else(none, |(_, value)| {
        ((*value).to_owned(), "default".to_owned())
    })
}

fn source(name: &str, at: &str) -> String {
    if name == at {
        "local".to_owned()
    } else {
        format!("inherited from {at}")
    }
}

/// The datasets that are meant, in order: names with `-r` or `-d N` and of the kinds of `-t`.
fn chosen(
    all: &Datasets,
    names: &[String],
    flags: &[(char, Option<String>)],
) -> Result<Vec<String>, Exit> {
    let given = |letter: char| flags.iter().find(|(other, _)| *other == letter);
    let kinds = given('t').and_then(|(_, kinds)| kinds.clone());
    let deep = given('d').and_then(|(_, depth)| depth.as_deref()?.parse::<usize>().ok());
    let recursive = has(flags, 'r') || deep.is_some() || names.is_empty();
    let of_kind = |name: &String, asked: bool| {
        let Some(dataset) = all.get(name) else {
            return false;
        };
        let word = dataset.kind.word();
        match &kinds {
            Some(kinds) => kinds.split(',').any(|kind| {
                kind == "all"
                    || kind == word
                    || (kind == "snap" && word == "snapshot")
                    || (kind == "fs" && word == "filesystem")
                    || (kind == "vol" && word == "volume")
            }),
            // Snapshots are shown when they are asked for by name.
            None => dataset.kind != Kind::Snapshot || asked,
        }
    };
    if names.is_empty() {
        return Ok(all
            .all
            .keys()
            .filter(|name| of_kind(name, false))
            .cloned()
            .collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        if all.get(name).is_none() {
            return Err(missing(name));
        }
        if of_kind(name, true) {
            chosen.push(name.clone());
        }
        // Without -r, -t snapshot lists the snapshots of a dataset.
        let depth = if recursive {
            deep.unwrap_or(usize::MAX)
        } else {
            usize::from(kinds.is_some())
        };
        for below in all.below(name) {
            let level = below[name.len()..].matches(['/', '@']).count();
            let shown = recursive || below[name.len()..].starts_with('@');
            if shown && level <= depth && of_kind(&below, false) {
                chosen.push(below);
            }
        }
    }
    Ok(chosen)
}

fn print(rows: &[Vec<String>], headers: Option<Vec<String>>) {
    let Some(headers) = headers else {
        for row in rows {
            println!("{}", row.join("\t"));
        }
        return;
    };
    let table: Vec<_> = [headers].iter().chain(rows).cloned().collect();
    let width = |column: usize| {
        table
            .iter()
            .map(|row| row[column].len())
            .max()
            .unwrap_or_default()
    };
    for row in &table {
        let cells = row
            .iter()
            .enumerate()
            .map(|(n, cell)| format!("{cell:<width$}", width = width(n)));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// zfs_do_list().
pub(crate) fn list(world: &World, all: &Datasets, arguments: &[String]) -> Result<(), Exit> {
    let (flags, names) = options(arguments, "otdsS")?;
    only(&flags, "Hprotds")?;
    let columns = flags
        .iter()
        .find(|(letter, _)| *letter == 'o')
        .and_then(|(_, list)| list.clone());
    let columns = columns.unwrap_or_else(|| "name,used,available,referenced,mountpoint".to_owned());
    let columns = names_of(&columns)?;
    let chosen = chosen(all, &names, &flags)?;
    if chosen.is_empty() && names.is_empty() {
        eprintln!("no datasets available");
        return Ok(());
    }
    let exact = has(&flags, 'p');
    let row = |name: &String| {
        columns
            .iter()
            .map(|c| value(world, all, name, c, exact).0)
            .collect()
    };
    let rows: Vec<Vec<String>> = chosen.iter().map(row).collect();
    let header = |column: &String| match column.as_str() {
        "available" => "AVAIL".to_owned(),
        "referenced" => "REFER".to_owned(),
        other => other.to_ascii_uppercase(),
    };
    let headers = (!has(&flags, 'H')).then(|| columns.iter().map(header).collect());
    print(&rows, headers);
    Ok(())
}

/// Names of properties, in full.
fn names_of(list: &str) -> Result<Vec<String>, Exit> {
    let full = |name: &str| {
        let name = match name {
            "avail" => "available",
            "refer" => "referenced",
            other => other,
        };
        if known(name) {
            return Ok(name.to_owned());
        }
        let text = format!("bad property list: invalid property '{name}'\n");
        Err(Exit::saying(2, text + &usage().message))
    };
    list.split(',').map(full).collect()
}

/// zfs_do_get().
pub(crate) fn get(world: &World, all: &Datasets, arguments: &[String]) -> Result<(), Exit> {
    let (flags, rest) = options(arguments, "otds")?;
    only(&flags, "Hprotds")?;
    let (wanted, names) = rest.split_first().ok_or_else(usage)?;
    let wanted = if wanted == "all" {
        let defaults = DEFAULTS.iter().map(|(name, _)| *name);
        let rest = COMPUTED
            .into_iter()
            .chain(["mountpoint", "volsize"])
            .chain(defaults);
        rest.filter(|name| *name != "name")
            .map(str::to_owned)
            .collect()
    } else {
        names_of(wanted)?
    };
    let columns = flags
        .iter()
        .find(|(letter, _)| *letter == 'o')
        .and_then(|(_, list)| list.clone());
    let columns = columns.unwrap_or_else(|| "name,property,value,source".to_owned());
    let columns: Vec<&str> = columns.split(',').collect();
    if let Some(column) = columns
        .iter()
        .find(|c| !["name", "property", "value", "source"].contains(c))
    {
        let text = format!("invalid column name '{column}'\n");
        return Err(Exit::saying(2, text + &usage().message));
    }
    let mut rows = Vec::new();
    for name in chosen(all, names, &flags)? {
        for property in &wanted {
            let (value, source) = value(world, all, &name, property, has(&flags, 'p'));
            let cell = |column: &&str| match *column {
                "name" => name.clone(),
                "property" => property.clone(),
                "value" => value.clone(),
                _ => source.clone(),
            };
            rows.push(columns.iter().map(cell).collect());
        }
    }
    let headers = columns
        .iter()
        .map(|column| column.to_ascii_uppercase())
        .collect();
    print(&rows, (!has(&flags, 'H')).then_some(headers));
    Ok(())
}
