//! bhyvectl(8): actions on a VM from outside its process (usr.sbin/bhyvectl/bhyvectl.c).

use std::{fs::File, path::Path};

use crate::{
    errno::Errno,
    exit::{EX_SOFTWARE, Exit},
    fault,
    nvlist::{Nvlist, Value},
    socket,
    vm::{Suspend, Vm},
    world::World,
};

/// Long options without an argument.
const FLAGS: [&str; 7] = [
    "create",
    "destroy",
    "force-poweroff",
    "force-reset",
    "get-all",
    "get-cpu-topology",
    "get-stats",
];
/// Long options with one.
const VALUES: [&str; 4] = ["checkpoint", "cpu", "suspend", "vm"];

fn usage() -> Exit {
    Exit::saying(
        1,
        "Usage: bhyvectl --vm=<vmname> [options]; see bhyvectl(8)\n",
    )
}

#[derive(Default)]
struct Request {
    vm: Option<String>,
    flags: Vec<&'static str>,
    checkpoint: Option<(String, bool)>,
}

/// getopt_long(3): `--name=value`, `--name value`, and any beginning that only one name has.
fn parse(arguments: &[String]) -> Result<Request, Exit> {
    let mut request = Request::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(option) = argument.strip_prefix("--") else {
            // What follows the options is passed over.
            break;
        };
        let (given, attached) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (option, None),
        };
        let known = FLAGS.iter().chain(&VALUES);
        let mut like = known.clone().filter(|name| name.starts_with(given));
        let name = match known.clone().find(|name| **name == given) {
            Some(name) => *name,
            None => match (like.next(), like.next()) {
                (Some(name), None) => *name,
                _ if given.starts_with("get-") || given.starts_with("set-") => {
                    let text = format!("standin: bhyvectl --{given} is not modelled\n");
                    return Err(Exit::saying(EX_SOFTWARE, text));
                }
                _ => {
                    let text = format!("bhyvectl: unrecognized option `--{given}'\n");
                    return Err(Exit::saying(1, text + &usage().message));
                }
            },
        };
        if FLAGS.contains(&name) {
            request.flags.push(name);
            continue;
        }
        let Some(value) = attached.or_else(|| rest.next().cloned()) else {
            let text = format!("bhyvectl: option `--{name}' requires an argument\n");
            return Err(Exit::saying(1, text + &usage().message));
        };
        match name {
            "vm" => request.vm = Some(value),
            "checkpoint" | "suspend" if request.checkpoint.is_some() => return Err(usage()),
            "checkpoint" | "suspend" => request.checkpoint = Some((value, name == "suspend")),
            _ => {}
        }
    }
    Ok(request)
}

/// Reads the command line, and goes no further.
pub(crate) fn check(arguments: &[String]) -> Result<(), Exit> {
    parse(arguments)?.vm.ok_or_else(usage).map(drop)
}

/// Runs the command.
pub(crate) fn main(world: &World, arguments: &[String]) -> Result<(), Exit> {
    let request = parse(arguments)?;
    let name = request.vm.ok_or_else(usage)?;
    let asked = |flag: &str| request.flags.contains(&flag);
    let mut vm = Vm::open(world, &name);
    if vm.is_err() && asked("create") {
        vm = Vm::create(world, &name);
    }
    let vm = vm.map_err(|errno| {
        let text = format!("vm_open: {name} could not be opened: {}\n", errno.text);
        Exit::saying(1, text)
    })?;
    fault::pass(world, fault::CTL_OPENED)?;
    // error is -1 then, and so is what exit(3) is given.
    let failed = |errno: Errno| {
        println!("errno = {}", errno.number);
        Exit::silent(255)
    };
    if asked("get-stats") || asked("get-all") {
        let record = vm.record().map_err(failed)?;
        println!("vcpu0 stats:");
        for (what, value) in [("Resident memory", record.resident), ("Wired memory", 0)] {
            println!("{what:<40}\t{value}");
        }
    }
    if asked("get-cpu-topology") || asked("get-all") {
        let record = vm.record().map_err(failed)?;
        println!(
            "cpu_topology:\tsockets={}, cores=1, threads=1, maxcpus={}",
            record.ncpus, record.ncpus
        );
    }
    if asked("force-reset") {
        vm.suspend(Suspend::Reset).map_err(failed)?;
    }
    if asked("force-poweroff") {
        vm.suspend(Suspend::Poweroff).map_err(failed)?;
    }
    if asked("destroy") {
        // vm_destroy() has no result.
        let _ = vm.destroy();
        fault::pass(world, fault::CTL_DESTROYED)?;
    }
    match request.checkpoint {
        Some((file, suspend)) => snapshot(world, &name, &file, suspend),
        None => Ok(()),
    }
}

/// snapshot_request() and send_message(): sends the request and does not wait for an answer, as
/// there is none. The exit code is the error's number.
fn snapshot(world: &World, name: &str, file: &str, suspend: bool) -> Result<(), Exit> {
    let path = Path::new(file);
    let (Some(base), Some(folder)) = (path.file_name(), path.parent()) else {
        return Err(Exit::silent(
            Errno::from(&std::io::ErrorKind::NotFound.into()).number,
        ));
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let opened = File::open(folder).and_then(|folder| {
        let is = folder.metadata()?.is_dir();
        is.then_some(folder)
            .ok_or_else(|| nix::errno::Errno::ENOTDIR.into())
    });
    let folder = opened.map_err(|e| Exit::silent(Errno::from(&e).number))?;
    let mut list = Nvlist::default();
    list.add("cmd", Value::String("checkpoint".to_owned()));
    list.add(
        "filename",
        Value::String(base.to_string_lossy().into_owned()),
    );
    list.add("suspend", Value::Bool(suspend));
    list.add("fddir", Value::Descriptor(folder.into()));
    let failed = |what: &str, e: &std::io::Error| {
        let errno = Errno::from(e);
        Exit::saying(errno.number, format!("{what} failed: {}\n", errno.text))
    };
    fault::pass(world, fault::SUSPEND_CONNECT)?;
    let socket = socket::connect(world, name).map_err(|e| failed("connect()", &e))?;
    list.send(&socket)
        .map_err(|e| failed("nvlist_send()", &e))?;
    fault::pass(world, fault::SUSPEND_SENT)
}
