//! Checkpoints that cannot be restored, and those that bhyve reads because it cannot share them.

use std::fs;

use serde_json::{Value, json};

use crate::lab::{Lab, field};

fn edit(path: &str, change: impl FnOnce(&mut Value)) {
    let text = fs::read(path).expect("a description");
    let mut value = serde_json::from_slice(&text).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("a description");
}

fn remove(object: &mut Value, key: &str) {
    let removed = object.as_object_mut().and_then(|object| object.remove(key));
    assert!(removed.is_some(), "no {key} to remove");
}

#[test]
fn files_that_are_missing_or_empty() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let last = format!("Failed to read checkpoint info from file: '{file}'.\n");
    let cases = [
        (
            "",
            "Failed to open restore file",
            "Restore file is empty.",
            "Failed to load guest RAM file.",
        ),
        (
            ".kern",
            "Failed to open kernel data file",
            "Kernel data file is empty.",
            "Failed to load guest kernel data file.",
        ),
    ];
    for (extension, missing, empty, then) in cases {
        let path = format!("{file}{extension}");
        let contents = fs::read(&path).expect("a file");
        fs::remove_file(&path).expect("a file");
        lab.restore_refused("vm", &file, &[]).refused(
            1,
            &format!("{missing}: No such file or directory\n{then}\n{last}"),
        );
        fs::write(&path, "").expect("a file");
        lab.restore_refused("vm", &file, &[])
            .refused(1, &format!("{empty}\n{then}\n{last}"));
        fs::write(&path, contents).expect("a file");
    }
    let meta = format!("{file}.meta");
    let unparsed = format!(
        "Failed to parse metadata file: '{meta}'\nFailed to load guest metadata file.\n{last}"
    );
    fs::write(&meta, "{ \"basic").expect("a file");
    lab.restore_refused("vm", &file, &[]).refused(1, &unparsed);
    fs::remove_file(&meta).expect("a file");
    lab.restore_refused("vm", &file, &[]).refused(1, &unparsed);
    assert!(
        !lab.vm_exists("vm"),
        "all this is found before there is a VM"
    );
}

#[test]
fn paths_that_are_too_long() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let folder = lab.path(&"d".repeat(200));
    fs::create_dir(&folder).expect("a folder");
    let length = folder.as_os_str().len() + 1;
    let name = folder.join("c".repeat(255 - ".kern".len() + 1 - length));
    fs::copy(&file, &name).expect("a copy");
    let path = name.to_str().expect("UTF-8");
    lab.restore_refused("vm", path, &[]).refused(
        1,
        &format!(
            "Filename exceeds maximum length.\nFailed to construct kernel data filename.\n\
             Failed to read checkpoint info from file: '{path}'.\n"
        ),
    );
}

#[test]
fn descriptions_without_what_is_needed() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let meta = format!("{file}.meta");
    let whole = fs::read(&meta).expect("a description");
    let broken = |change: &dyn Fn(&mut Value)| {
        fs::write(&meta, &whole).expect("a description");
        edit(&meta, |value| change(value));
        let ran = lab.restore_refused("vm", &file, &[]);
        if lab.vm_exists("vm") {
            lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
        }
        ran
    };
    broken(&|v| remove(&mut v["basic metadata"], "ncpus"))
        .refused(1, "Missing key: 'ncpus'Invalid guest vCPUs (0)\n");
    broken(&|v| v["basic metadata"]["ncpus"] = json!(64))
        .refused(4, "64 vCPUs requested but only 2 available\n");
    broken(&|v| remove(&mut v["basic metadata"], "memsize"))
        .refused(4, "Missing key: 'memsize'Unable to setup memory (22)\n");
    broken(&|v| v["basic metadata"]["memsize"] = json!(2 * 1024 * 1024)).refused(
        1,
        "vm_snapshot_mem: mem size mismatch: 2097152 vs 1048576\nFailed to restore VM memory.\n",
    );
    broken(&|v| remove(v, "kern_structs")).refused(
        65,
        "Failed to find 'devices' object.\nbhyve: Cannot find kern struct vhpet\n",
    );
    broken(&|v| v["kern_structs"][8]["device"] = json!("other"))
        .refused(65, "bhyve: Cannot find kern struct vrtc\n");
    broken(&|v| v["kern_structs"][2]["size"] = json!(0))
        .refused(65, "bhyve: data with zero size for vioapic\n");
    broken(&|v| drop(v["devices"].as_array_mut().map(Vec::pop))).refused(
        1,
        "Failed to lookup dev: atkbdc\nFailed to restore PCI device state.\n",
    );
    broken(&|v| v["devices"][1]["size"] = json!(10)).refused(
        1,
        "vm_snapshot_buf: buffer too small\nFailed to restore dev: lpc@pci.0.31.0 7\n\
         Failed to restore PCI device state.\n",
    );
    let aborted = broken(&|v| v["devices"][1]["file_offset"] = json!(1_000_000));
    aborted.refused_with(-6, "Assertion failed: ");
}

#[test]
fn devices_that_the_checkpoint_has_not() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    lab.restore_refused("vm", &file, &["pci.0.5.0.device=virtio-rnd"])
        .refused(
            1,
            "Failed to lookup dev: virtio-rnd@pci.0.5.0\nFailed to restore PCI device state.\n",
        );
    assert!(lab.vm_exists("vm"), "the VM is left behind");
    lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
    lab.restore_refused("vm", &file, &["pci.0.0.0.device=amd_hostbridge"])
        .refused_with(1, "Failed to lookup dev: amd_hostbridge@pci.0.0.0\n");
}

#[test]
fn devices_that_cannot_be_restored() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let meta = format!("{file}.meta");
    edit(&meta, |v| {
        let entry = json!({ "device": "virtio-console@pci.0.6.0", "size": 8, "file_offset": 0 });
        v["devices"].as_array_mut().expect("a list").push(entry);
        v["devices"][0]["size"] = json!(0);
    });
    lab.restore_refused("vm", &file, &[]).refused(
        1,
        "Restore device size is 0: hostbridge@pci.0.0.0\nFailed to restore PCI device state.\n",
    );
    edit(&meta, |v| v["devices"][0]["size"] = json!(452));
    lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
    lab.restore_refused("vm", &file, &["pci.0.6.0.device=virtio-console"]).refused(
        1,
        "Failed to restore dev: virtio-console@pci.0.6.0 45\nFailed to restore PCI device state.\n",
    );
}

#[test]
fn devices_that_only_the_checkpoint_has_are_passed_over() {
    let lab = Lab::new();
    let config = lab.config("base", &["pci.0.5.0.device=virtio-rnd"]);
    let mut base = lab.start("base", &["-k", &config]);
    base.ready();
    let file = lab.text("base.ckp");
    lab.run("bhyvectl", &["--vm=base", "--suspend", &file])
        .good();
    assert_eq!(base.end().code, 0);
    let mut clone = lab.restore("clone", &file, &[]);
    clone.ready();
}

#[test]
fn a_restore_from_a_shared_checkpoint_copies_nothing() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let mut clone = lab.restore("clone", &file, &["snapshot.vnode_restore=true"]);
    clone.ready();
    assert_eq!(clone.ask("private"), "private 0");
    assert_eq!(field(&clone.ask("ping"), "counter"), "2");
    assert_eq!(clone.ask("private"), "private 1");
    let modules = lab.run("kldstat", &["-q", "-m", "vmm_vnode"]);
    assert_eq!(modules.code, 0, "bhyve loads the module if it can");
    // Another guest sees nothing of it.
    let mut other = lab.restore("other", &file, &["snapshot.vnode_restore=true"]);
    assert_eq!(field(&other.ready(), "counter"), "1");
}

#[test]
fn without_the_module_the_checkpoint_is_read() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    lab.world.set_loadable(&[]).expect("modules");
    let reads = |name: &str, lines: &[&str], why: &str| {
        let mut lines = lines.to_vec();
        lines.push("snapshot.vnode_restore=true");
        let mut guest = lab.restore(name, &file, &lines);
        guest.ready();
        assert_eq!(guest.ask("private"), "private 256");
        guest.tell("poweroff");
        let ended = guest.end();
        let words = format!("vnode restore: {why}; reading the checkpoint instead\n");
        assert_eq!((ended.code, ended.err), (1, words));
    };
    reads("a", &[], "vmm_vnode is not loaded");
    reads(
        "b",
        &["memory.wired=true"],
        "guest memory is wired (-S, memory.wired)",
    );
    lab.world
        .set_loaded(&["kernel", "vmm", "nmdm", "vmm_vnode"])
        .expect("modules");
    // The VM that is left from before has its memory already.
    reads(
        "a",
        &[],
        "the checkpoint cannot back guest memory: File exists",
    );
}

#[test]
fn a_shared_checkpoint_cannot_be_written() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let before = fs::read(&file).expect("memory");
    let mut clone = lab.restore("clone", &file, &["snapshot.vnode_restore=true"]);
    clone.ready();
    // The .kern file is emptied before bhyve comes to the memory file.
    lab.run("bhyvectl", &["--vm=clone", "--suspend", &file])
        .good();
    crate::lab::until("the .kern file to be emptied", || {
        let kern = fs::metadata(format!("{file}.kern")).ok()?;
        (kern.len() == 0).then_some(())
    });
    clone.ask("ping");
    assert_eq!(fs::read(&file).expect("memory"), before);
    clone.tell("poweroff");
    let ended = clone.end();
    assert_eq!(ended.code, 1, "the guest had gone on");
    assert!(
        ended
            .err
            .contains("Failed to create checkpoint file: Text file busy\n"),
        "{ended:?}"
    );
}
