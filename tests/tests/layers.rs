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
    for line in [
        "use crate::pool::Pools;",
        "use super::{pool::{self}, zfs_name};",
        "fn up(_: crate::pool::Pools) {}",
        "mod inner { use super::super::pool; }",
        "fn up() { let _ = vec![crate::pool::Pools]; }",
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy(
            &repository.join("manager/src"),
            &folder.path().join("manager/src"),
        );
        let core = folder.path().join("manager/core/src");
        copy(&repository.join("manager/core/src"), &core);
        let mut units = fs::File::options();
        let mut units = units.append(true).open(core.join("units.rs")).unwrap();
        writeln!(units, "{line}").unwrap();
        let ran = layers(folder.path());
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.code(), Some(1), "{line}: {said}");
        assert!(
            said.contains("units -> pool runs upwards"),
            "{line}: {said}"
        );
    }
}
