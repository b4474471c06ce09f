//! A Linux guest in the minimal machine (`brood-machine`): boots one, writes a checkpoint of it, and
//! runs clones, a process each. Prints what it saw as JSON, one object a line.
//!
//! usage: linux_machine boot KERNEL INITRD MEMORY_MIB VCPUS FOLDER
//!        linux_machine clone FOLDER
//!
//! A clone prints its line and goes on until its standard input ends.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guest;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["boot", kernel, initrd, mib, vcpus, folder] => guest::boot(
            &guest::Image { kernel, initrd },
            mib.parse::<u64>()? << 20,
            vcpus.parse()?,
            folder.as_ref(),
        ),
        ["clone", folder] => guest::clone(folder.as_ref()),
        _ => Err("usage: linux_machine boot|clone ...: see its source".into()),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {}
