//! Layers of the manager: no import runs upwards, and `tools/layers` reports one that does.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output},
};

fn layers(repository: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layers"));
    command.arg(repository).output().expect("it was built")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn no_import_runs_upwards() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let ran = layers(&repository);
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}");

    // Each way to write an import is seen when it runs upwards.
    for (file, line, error) in [
        (
            "units.rs",
            "use crate::pool::Pools;",
            "units -> pool runs upwards",
        ),
        (
            "units.rs",
            "use super::{pool::{self}, zfs_name};",
            "units -> pool runs upwards",
        ),
        (
            "units.rs",
            "fn up(_: crate::pool::Pools) {}",
            "units -> pool runs upwards",
        ),
        (
            "units.rs",
            "mod inner { use super::super::pool; }",
            "units -> pool runs upwards",
        ),
        (
            "units.rs",
            "fn up() { let _ = vec![crate::pool::Pools]; }",
            "units -> pool runs upwards",
        ),
        // Floors inside a module.
        (
            "restore/spec.rs",
            "use super::run::Run;",
            "spec -> run runs upwards",
        ),
        (
            "engine/kvm/vm/ram.rs",
            "use super::super::demo::layout;",
            "vm -> demo runs upwards",
        ),
        (
            "engine/kvm/guest/port.rs",
            "use crate::engine::kvm::demo;",
            "guest -> demo runs upwards",
        ),
        (
            "engine/kvm/demo/boot.rs",
            "use crate::engine::kvm::Kvm;",
            "demo -> Kvm has no floor",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy(
            &repository.join("manager/src"),
            &folder.path().join("manager/src"),
        );
        let core = folder.path().join("manager/core/src");
        copy(&repository.join("manager/core/src"), &core);
        let mut source = fs::File::options();
        let mut source = source.append(true).open(core.join(file)).unwrap();
        writeln!(source, "{line}").unwrap();
        let ran = layers(folder.path());
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains(error), "{line}: {said}");
    }
}
