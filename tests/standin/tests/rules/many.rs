//! Fifty VMs at once.

use std::{collections::BTreeSet, thread};

use brood_standin::Release;

use crate::lab::{Lab, field};

const GUESTS: usize = 50;

#[test]
fn fifty_restores_at_once_are_fifty_guests() {
    let lab = Lab::new();
    lab.world.set_release(Release::FifteenOne).expect("a world");
    lab.run("sysctl", &["hw.vmm.maxvmms=50"]).good();
    let file = lab.checkpoint();
    let mut guests: Vec<_> = (0..GUESTS)
        .map(|n| lab.restore(&format!("vm{n}"), &file, &["snapshot.vnode_restore=true"]))
        .collect();
    let mut generations = BTreeSet::new();
    for guest in &mut guests {
        let line = guest.ready();
        assert_eq!(field(&line, "counter"), "1");
        generations.insert(field(&line, "generation").to_owned());
    }
    assert_eq!(generations.len(), GUESTS);
    for guest in &mut guests {
        assert_eq!(field(&guest.ask("ping"), "counter"), "2");
    }
    assert_eq!(
        lab.run("sysctl", &["-n", "hw.vmm.vnode.private_resident"])
            .good(),
        "50\n"
    );
    lab.restore_refused("extra", &file, &[])
        .refused(4, "bhyve: vm_openf: Cannot allocate memory\n");

    thread::scope(|scope| {
        for n in 0..GUESTS {
            let lab = &lab;
            scope.spawn(move || {
                lab.run("bhyvectl", &[&format!("--vm=vm{n}"), "--destroy"])
                    .good()
            });
        }
    });
    for guest in guests {
        guest.end().refused(4, "vm_run error -1, errno 6\n");
    }
    assert_eq!(
        lab.run("sysctl", &["-n", "hw.vmm.vnode.segments"]).good(),
        "0\n"
    );
}

#[test]
fn of_fifty_that_want_one_name_one_gets_it() {
    let lab = Lab::new();
    let created: usize = thread::scope(|scope| {
        let runs: Vec<_> = (0..GUESTS)
            .map(|_| scope.spawn(|| lab.run("sysctl", &["hw.vmm.create=vm"]).code))
            .collect();
        runs.into_iter()
            .filter_map(|run| run.join().ok())
            .filter(|code| *code == 0)
            .count()
    });
    assert_eq!(created, 1);
}

#[test]
fn fifty_taps_made_at_once_have_names_of_their_own() {
    let lab = Lab::new();
    lab.run("ifconfig", &["bridge0", "create"]).good();
    let names: BTreeSet<String> = thread::scope(|scope| {
        let runs: Vec<_> = (0..GUESTS)
            .map(|_| {
                scope.spawn(|| {
                    let name = lab
                        .run("ifconfig", &["tap", "create"])
                        .good()
                        .trim()
                        .to_owned();
                    lab.run("ifconfig", &["bridge0", "addm", &name, "up"])
                        .good();
                    name
                })
            })
            .collect();
        runs.into_iter().filter_map(|run| run.join().ok()).collect()
    });
    assert_eq!(names.len(), GUESTS);
    let bridge = lab.run("ifconfig", &["bridge0"]).good();
    assert_eq!(bridge.matches("member: tap").count(), GUESTS);
}

#[test]
fn the_nth_of_many_fails() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let guests: Vec<_> = (0..10)
        .map(|n| {
            let name = format!("vm{n}");
            let config = lab.config(&name, &["destroy_on_poweroff=true"]);
            lab.start_failing(
                Some("restore.contents:4:kill"),
                &name,
                &["-k", &config, "-r", &file],
            )
        })
        .collect();
    let mut killed = 0;
    for (n, mut guest) in guests.into_iter().enumerate() {
        let gone = crate::lab::until("its fate", || {
            let name = format!("vm{n}");
            let runs = lab.world.path("var/run/bhyve").join(&name).exists();
            if runs {
                Some(false)
            } else {
                guest.is_gone().then_some(true)
            }
        });
        if gone {
            killed += 1;
            assert_eq!(guest.end().code, -9);
        } else {
            guest.ready();
            guest.tell("poweroff");
            assert_eq!(guest.end().code, 1);
        }
    }
    assert_eq!(killed, 1);
}
