//! ACPI tables. With `-A` bhyve has iasl(8) compile them at each start: by a shell, from one file
//! in `/tmp` into another, and it aborts when that fails (acpi.c, acpi_build(); seen with bhyve
//! 14.2). A bhyve with the patches does not do so in a restore: the tables lie in the memory that
//! it restores (kernel-patches/15.0/bhyve-tables.patch).

use std::{
    fs, io,
    process::{self, Command, Stdio},
};

use nix::sys::signal::{Signal, raise};

use super::config::Config;
use crate::{
    exit::Exit,
    world::{IASL, STOCK, World},
};

/// acpi_build(), called by bhyve_init_platform_late() when a restore is done but for the vCPUs.
///
/// # Errors
/// When `acpi_tables` is no bool.
pub(crate) fn build(world: &World, config: &Config, restored: bool) -> Result<(), Exit> {
    let patched = std::env::var_os(STOCK).is_none();
    if !config.bool_or("acpi_tables", false)? || (restored && patched) {
        return Ok(());
    }
    if !compile(world).unwrap_or(false) {
        eprintln!(
            "Assertion failed: (error == 0), function bhyve_init_platform_late, file \
             bhyverun_machdep.c."
        );
        // abort(3) of FreeBSD writes out what was printed: progress comes after the reason.
        super::flush();
        let _ = raise(Signal::SIGABRT);
    }
    Ok(())
}

/// basl_compile(): whether the compiler has made its file. Both files are gone afterwards.
fn compile(world: &World) -> io::Result<bool> {
    let name = format!("bhyve.{}", process::id());
    let table = world.path("tmp").join(format!("{name}.aml"));
    let source = world.path("tmp").join(name);
    fs::write(
        &source,
        "DefinitionBlock (\"\", \"DSDT\", 2, \"BHYVE\", \"BVDSDT\", 1) {}\n",
    )?;
    let command = format!(
        "'{}' -p '{}' '{}'",
        world.path(IASL).display(),
        table.display(),
        source.display()
    );
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &command]).stdin(Stdio::null());
    let compiled = shell.stdout(Stdio::null()).status();
    let made = fs::remove_file(table).is_ok();
    fs::remove_file(source)?;
    Ok(compiled?.success() && made)
}

/// iasl(8), as far as bhyve needs it: `-p TABLE SOURCE`.
///
/// # Errors
/// When it is called in another way, or a file cannot be read or written.
pub(crate) fn iasl(arguments: &[String]) -> Result<(), Exit> {
    let [flag, table, source] = arguments else {
        return Err(Exit::saying(1, "usage: iasl -p TABLE SOURCE\n"));
    };
    let compiled = fs::copy(source, table).map_err(|e| e.to_string());
    match compiled {
        Ok(_) if flag == "-p" => Ok(()),
        Ok(_) => Err(Exit::saying(1, "usage: iasl -p TABLE SOURCE\n")),
        Err(e) => Err(Exit::saying(
            1,
            format!("Could not open output file: {e}\n"),
        )),
    }
}
