//! ifconfig(8): makes interfaces, joins them to bridges and destroys them
//! (sbin/ifconfig/ifconfig.c, ifclone.c, ifbridge.c).

use crate::{
    errno::Errno,
    exit::Exit,
    fault,
    network::{self, Interface},
    world::World,
};

const PROGRAM: &str = "ifconfig";

fn errx(what: &str) -> Exit {
    Exit::errx(PROGRAM, 1, what)
}

fn err(what: &str, errno: Errno) -> Exit {
    Exit::err(PROGRAM, 1, what, errno)
}

fn usage() -> Exit {
    Exit::saying(
        1,
        "usage: ifconfig interface [parameters]; see ifconfig(8)\n",
    )
}

/// Runs the command.
pub(crate) fn main(world: &World, arguments: &[String]) -> Result<(), Exit> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let list = || network::names(world).map_err(|errno| err("getifaddrs", errno));
    match arguments.as_slice() {
        ["-l"] => {
            println!("{}", list()?.join(" "));
            Ok(())
        }
        ["-g", group] => {
            for name in list()? {
                if network::get(world, &name).is_some_and(|i| i.groups.iter().any(|g| g == group)) {
                    println!("{name}");
                }
            }
            Ok(())
        }
        [] | ["-a"] => {
            for name in list()? {
                if let Some(interface) = network::get(world, &name) {
                    show(world, &name, &interface);
                }
            }
            Ok(())
        }
        [name, ..] if name.starts_with('-') || name.is_empty() => Err(usage()),
        [name] => match network::get(world, name) {
            Some(interface) => {
                show(world, name, &interface);
                Ok(())
            }
            None => Err(missing(name)),
        },
        [name, parameters @ ..] => change(world, name, parameters),
    }
}

fn missing(name: &str) -> Exit {
    errx(&format!("interface {name} does not exist"))
}

/// Parameters one after another, until one is refused; those before it stay done.
fn change(world: &World, name: &str, parameters: &[&str]) -> Result<(), Exit> {
    let mut name = name.to_owned();
    let mut rest = parameters;
    let mut told = false;
    if let ["create" | "plumb", after @ ..] = rest {
        fault::pass(world, fault::IFCONFIG_CREATE)?;
        let created = network::create(world, &name);
        let new = created.map_err(|errno| err(&format!("SIOCIFCREATE2 ({name})"), errno))?;
        fault::pass(world, fault::IFCONFIG_CREATED)?;
        told = new != name;
        name = new;
        rest = after;
    } else if network::get(world, &name).is_none() {
        return Err(missing(&name));
    }
    while let Some((parameter, after)) = rest.split_first() {
        let mut values = after.iter();
        let mut value = || {
            let value = values.next().copied();
            value.ok_or_else(|| errx(&format!("'{parameter}' requires argument")))
        };
        match *parameter {
            "destroy" | "unplumb" => {
                fault::pass(world, fault::IFCONFIG_DESTROY)?;
                network::destroy(world, &name).map_err(|errno| err("SIOCIFDESTROY", errno))?;
            }
            "up" => edit(world, &name, |interface| interface.up = true)?,
            "down" => edit(world, &name, |interface| interface.up = false)?,
            "addm" => {
                let member = value()?;
                fault::pass(world, fault::IFCONFIG_ADDM)?;
                let added = network::add_member(world, &name, member);
                added.map_err(|errno| err(&format!("BRDGADD {member}"), errno))?;
            }
            "deletem" => {
                let member = value()?;
                let deleted = network::delete_member(world, &name, member);
                deleted.map_err(|errno| err(&format!("BRDGDEL {member}"), errno))?;
            }
            "name" => {
                let new = value()?;
                let renamed = network::rename(world, &name, new);
                renamed.map_err(|errno| err("ioctl (set name)", errno))?;
                new.clone_into(&mut name);
                told = true;
            }
            "description" | "descr" => {
                let text = value()?.to_owned();
                edit(world, &name, |interface| interface.description = Some(text))?;
            }
            "group" => {
                let group = value()?.to_owned();
                edit(world, &name, |interface| interface.groups.push(group))?;
            }
            "ether" | "link" | "lladdr" => {
                let ether = value()?.to_owned();
                edit(world, &name, |interface| interface.ether = Some(ether))?;
            }
            "mtu" => {
                let text = value()?;
                let mtu = text
                    .parse()
                    .map_err(|_| errx(&format!("{text}: bad value")))?;
                edit(world, &name, |interface| interface.mtu = mtu)?;
            }
            "inet" => {
                let address = value()?.to_owned();
                edit(world, &name, |interface| interface.addresses.push(address))?;
            }
            other => return Err(errx(&format!("{other}: bad value"))),
        }
        rest = values.as_slice();
    }
    if told {
        println!("{name}");
    }
    Ok(())
}

fn edit(world: &World, name: &str, change: impl FnOnce(&mut Interface)) -> Result<(), Exit> {
    let _guard = world.lock().map_err(|e| Exit::broken("lock", &e))?;
    let mut interface = network::get(world, name).ok_or_else(|| missing(name))?;
    change(&mut interface);
    network::put(world, name, &interface).map_err(|errno| err("ioctl (SIOCSIFFLAGS)", errno))
}

fn show(world: &World, name: &str, interface: &Interface) {
    let flags = if interface.up {
        "1008843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP>"
    } else {
        "1008802<BROADCAST,SIMPLEX,MULTICAST,LOWER_UP>"
    };
    println!("{name}: flags={flags} metric 0 mtu {}", interface.mtu);
    if let Some(text) = &interface.description {
        println!("\tdescription: {text}");
    }
    if let Some(ether) = &interface.ether {
        println!("\tether {ether}");
    }
    for address in &interface.addresses {
        println!("\tinet {address}");
    }
    for member in &interface.members {
        println!("\tmember: {member} flags=143<LEARNING,DISCOVER,AUTOEDGE,AUTOPTP>");
    }
    println!("\tgroups: {}", interface.groups.join(" "));
    if interface.device.is_some() {
        let open = network::is_open(world, interface);
        println!("\tstatus: {}", if open { "active" } else { "no carrier" });
    }
}
