//! Conformance: what every engine must do, checked on each engine that this machine can run.
//!
//! Nothing here knows which engine it is: only `&dyn Engine`.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use brood_core::{
    checkpoint::{
        BundlePath, Checkpoint,
        manifest::{EngineKind, Manifest},
        unnoted,
    },
    disk::{self, Choice, Owner, Provider, Reflink, Source, Token},
    engine::{
        After, Engine, GuestNetwork, GuestOrder, GuestRef, Identity, Limit, Process, ProcessState,
        RestoredProcess, SessionTerms, Several, Suspend, kvm::Kvm, make_demo_checkpoint,
        qemu::Qemu,
    },
    guest_id::GuestId,
    units::Bytes,
};
use brood_tests::{Home, Machine, until};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// One engine at work on a checkpoint of its own. The home looks after what is left.
struct Bench<'a> {
    engine: &'a dyn Engine,
    /// What runs the guests: the engine, or the one of several.
    kind: EngineKind,
    home: &'a Home,
    path: BundlePath,
    lock: File,
}

impl<'a> Bench<'a> {
    fn new(
        engine: &'a dyn Engine,
        kind: EngineKind,
        home: &'a Home,
        make_checkpoint: impl FnOnce(&BundlePath) -> Manifest,
    ) -> Self {
        fs::create_dir_all(home.run_dir()).unwrap();
        let path: BundlePath = home.named(kind.name()).path.parse().unwrap();
        let manifest = make_checkpoint(&path);
        assert_eq!(manifest.memory.size, Bytes::mib(4));
        assert_eq!(manifest.engine, kind);
        Self::at(engine, kind, home, path)
    }

    /// The same with a checkpoint that is there.
    fn at(engine: &'a dyn Engine, kind: EngineKind, home: &'a Home, path: BundlePath) -> Self {
        fs::create_dir_all(home.run_dir()).unwrap();
        let lock = File::create(home.path().join("lock")).unwrap();
        Self {
            engine,
            kind,
            home,
            path,
            lock,
        }
    }

    fn restore(&self, from: &BundlePath, names: &[&str]) -> Vec<(GuestId, Alive)> {
        self.restore_with(from, names, &|_| None)
    }

    /// The same, with what `disk` has for each guest.
    fn restore_with(
        &self,
        from: &BundlePath,
        names: &[&str],
        disk: &dyn Fn(&GuestId) -> Option<PathBuf>,
    ) -> Vec<(GuestId, Alive)> {
        let checkpoint = Checkpoint::open(from).unwrap();
        let mut session = self
            .engine
            .session(
                &checkpoint,
                &self.home.run_dir(),
                &self.lock,
                &SessionTerms::default(),
            )
            .unwrap();
        let mut ids = Vec::new();
        for name in names {
            let (id, identity) = (GuestId::random().unwrap(), Identity::fresh(name).unwrap());
            ids.push(id);
            session
                .start(&GuestOrder {
                    id,
                    identity,
                    disk: disk(&id),
                    memory_limit: None,
                    network: GuestNetwork::default(),
                })
                .unwrap();
        }
        let mut restored: Vec<Option<Alive>> = vec![None; names.len()];
        let begin = Instant::now();
        while restored.iter().any(Option::is_none) {
            assert!(begin.elapsed() < PATIENCE, "{restored:?}");
            if let Some(outcome) = session.wait(Duration::from_millis(100)).unwrap() {
                let place = usize::try_from(outcome.order).unwrap();
                let RestoredProcess {
                    pid,
                    nonce,
                    counter,
                } = outcome.result.unwrap();
                let process = Process::with_pid(pid).unwrap().unwrap();
                let guest = Alive {
                    process,
                    nonce,
                    counter,
                };
                assert!(restored[place].replace(guest).is_none(), "told twice");
            }
        }
        ids.into_iter()
            .zip(restored.into_iter().flatten())
            .collect()
    }

    fn ask(
        &self,
        id: &GuestId,
        words: &str,
    ) -> Result<serde_json::Value, brood_core::engine::Error> {
        self.ask_words(id, &[words])
    }

    fn ask_words(
        &self,
        id: &GuestId,
        words: &[&str],
    ) -> Result<serde_json::Value, brood_core::engine::Error> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let answer = self.engine.ask(
            GuestRef::new(&self.home.run_dir(), id),
            &words,
            Limit::of(PATIENCE),
        )?;
        assert!(!answer.to_string().is_empty());
        Ok(answer.to_json())
    }

    /// Whether its guests are an ordinary Linux, which is asked to run programs.
    fn runs_linux(&self) -> bool {
        self.kind == EngineKind::Qemu
    }

    /// Has a guest keep a word in its memory.
    fn keep(&self, id: &GuestId, word: u64) {
        if self.runs_linux() {
            let command = format!("echo {word} >/run/word");
            self.ask_words(id, &["exec", "sh", "-c", &command]).unwrap();
        } else {
            self.ask(id, &format!("poke 0x200000 {word}")).unwrap();
        }
    }

    /// The word that a guest keeps.
    fn kept(&self, id: &GuestId) -> u64 {
        if self.runs_linux() {
            let answer = self.ask_words(id, &["exec", "cat", "/run/word"]).unwrap();
            return answer["output"].as_str().unwrap().trim().parse().unwrap();
        }
        let answer = self.ask(id, "peek 0x200000").unwrap();
        answer["value"].as_u64().unwrap()
    }

    /// Has a guest crash.
    fn crash(&self, id: &GuestId) -> Result<serde_json::Value, brood_core::engine::Error> {
        if self.runs_linux() {
            return self.ask_words(id, &["exec", "sh", "-c", "echo c >/proc/sysrq-trigger"]);
        }
        self.ask(id, "crash")
    }

    fn end(&self, id: &GuestId, process: Process) {
        assert!(process.signal(Signal::SIGKILL).unwrap());
        gone(process);
        self.engine
            .forget(GuestRef::new(&self.home.run_dir(), id))
            .unwrap();
    }
}

fn gone(process: Process) {
    until("the process to be gone", || {
        (process.state().unwrap() == ProcessState::Gone).then_some(())
    });
    assert!(
        !process.signal(Signal::SIGTERM).unwrap(),
        "a process that is gone was signalled"
    );
}

/// A guest that was restored.
#[derive(Clone, Copy, Debug)]
struct Alive {
    process: Process,
    nonce: u64,
    counter: u64,
}

/// Carries a check out on every engine.
///
/// KVM's and QEMU's guests are real. bhyve's are not: the engine is at work on a fake machine, and what is
/// checked is what it does with processes, files and terminals.
fn on_every_engine(check: impl Fn(&Bench<'_>)) {
    on_each(&|_, machine| machine.config(), check);
}

/// The same with an image, which bhyve's guests write to.
fn on_every_engine_with_disks(check: impl Fn(&Bench<'_>, &Path)) {
    let image = |home: &Home| {
        let image = home.path().join("image");
        fs::write(&image, [0; 1 << 16]).unwrap();
        image
    };
    on_each(
        &|home, machine| machine.config_with_disk(image(home).to_str().unwrap()),
        |bench| check(bench, &image(bench.home)),
    );
}

fn on_each(config: &dyn Fn(&Home, &Machine) -> String, check: impl Fn(&Bench<'_>)) {
    let kvm = || Kvm::with_binary(brood_tests::brood());
    let qemu = || Qemu::new(brood_tests::brood(), None);
    let several = Several::new(Box::new(kvm()), vec![Box::new(qemu())], None);
    let make = |path: &BundlePath| {
        let unwatched = &brood_core::checkpoint::unwatched;
        make_demo_checkpoint(&kvm(), path, Bytes::mib(4), unwatched).unwrap()
    };
    for engine in [&kvm() as &dyn Engine, &several] {
        if let Some(home) = Home::with_kvm() {
            check(&Bench::new(engine, EngineKind::Kvm, &home, make));
        }
    }
    for engine in [&qemu() as &dyn Engine, &several] {
        if let Some((home, linux)) = Home::with_qemu() {
            let path = linux.path.parse().unwrap();
            check(&Bench::at(engine, EngineKind::Qemu, &home, path));
        }
    }
    let home = Home::bare();
    let machine = Machine::new(home.path());
    let bhyve = machine.engine(&[]);
    let config = config(&home, &machine);
    check(&Bench::new(&bhyve, EngineKind::Bhyve, &home, |path| {
        machine.checkpoint_of(&config, path)
    }));
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn guests_are_restored_and_answer() {
    on_every_engine(|bench| {
        let guests = bench.restore(&bench.path, &["a", "b", "c"]);
        for ((id, restored), name) in guests.iter().zip(["a", "b", "c"]) {
            assert_eq!(restored.nonce, guests[0].1.nonce);
            assert_eq!(bench.ask(id, "identity").unwrap()["name"], name);
            let ping = bench.ask(id, "ping x").unwrap();
            // The agent of a Linux counts no other requests.
            let asked = if bench.runs_linux() { 1 } else { 2 };
            assert_eq!(ping["counter"], restored.counter + asked);
            assert_eq!(
                bench
                    .engine
                    .find(GuestRef::new(&bench.home.run_dir(), id))
                    .unwrap(),
                Some(restored.process)
            );
            assert_eq!(
                bench
                    .engine
                    .ended(GuestRef::new(&bench.home.run_dir(), id))
                    .unwrap(),
                None
            );
        }
        assert!(bench.ask(&guests[0].0, "nonsense").is_err());
        for (id, restored) in guests {
            bench.end(&id, restored.process);
            assert!(bench.ask(&id, "ping").is_err());
            assert_eq!(
                bench
                    .engine
                    .find(GuestRef::new(&bench.home.run_dir(), &id))
                    .unwrap(),
                None
            );
        }
    });
}

#[test]
fn a_guest_is_stopped_and_continued_by_signals() {
    on_every_engine(|bench| {
        let (id, Alive { process, .. }) = bench.restore(&bench.path, &["a"])[0];
        assert_eq!(process.state().unwrap(), ProcessState::Running);
        assert!(process.signal(Signal::SIGSTOP).unwrap());
        until("it to stop", || {
            (process.state().unwrap() == ProcessState::Stopped).then_some(())
        });
        let words = ["ping".to_owned()];
        let short = Limit::of(Duration::from_millis(100));
        let asked = bench
            .engine
            .ask(GuestRef::new(&bench.home.run_dir(), &id), &words, short);
        assert!(
            matches!(asked, Err(brood_core::engine::Error::Timeout(_))),
            "{asked:?}"
        );
        assert!(process.signal(Signal::SIGCONT).unwrap());
        bench.ask(&id, "ping").unwrap();
        bench.end(&id, process);
    });
}

#[test]
fn memory_is_counted() {
    on_every_engine(|bench| {
        let (id, Alive { process, .. }) = bench.restore(&bench.path, &["a"])[0];
        let usage = || {
            bench
                .engine
                .usage(GuestRef::new(&bench.home.run_dir(), &id), process)
        };
        let before = usage().unwrap();
        assert!(
            before.process.0 > 0 && before.page_tables.0 > 0,
            "{before:?}"
        );
        // The fake machine does not count pages that were only read.
        assert!(before.shared.0 > 0 || bench.kind == EngineKind::Bhyve);
        bench.ask(&id, "dirty 200").unwrap();
        let after = usage().unwrap();
        let grown = (after.private.0 - before.private.0) / 4096;
        // A Linux runs a program for that, which has pages of its own.
        let most = if bench.runs_linux() { 1200 } else { 204 };
        assert!((196..=most).contains(&grown), "{grown}");
        bench.end(&id, process);
        assert!(matches!(usage(), Err(brood_core::engine::Error::Gone)));
    });
}

#[test]
fn a_guest_is_suspended_and_restored_again() {
    on_every_engine(|bench| {
        let (id, Alive { process, nonce, .. }) = bench.restore(&bench.path, &["a"])[0];
        bench.keep(&id, 99);
        let from = Checkpoint::open(&bench.path).unwrap();
        let run_dir = bench.home.run_dir();
        // Onto itself it cannot be suspended, and goes on.
        let mut taken = 0;
        let onto_itself = bench.engine.suspend(
            GuestRef::new(&run_dir, &id),
            Suspend {
                name: "a",
                from: &from,
                to: &bench.path,
                delta: false,
                after: After::End,
                disks: &mut || {
                    taken += 1;
                    Ok(Vec::new())
                },
                note: &mut unnoted,
                progress: &brood_core::checkpoint::unwatched,
            },
        );
        assert!(onto_itself.is_err());
        assert_eq!(
            taken, 0,
            "no snapshot is taken for a bundle that cannot be written"
        );
        bench.ask(&id, "ping").unwrap();
        let to: BundlePath = bench.home.named("to").path.parse().unwrap();
        let manifest = bench
            .engine
            .suspend(
                GuestRef::new(&run_dir, &id),
                Suspend {
                    name: "a",
                    from: &from,
                    to: &to,
                    delta: false,
                    after: After::End,
                    disks: &mut || {
                        taken += 1;
                        Ok(Vec::new())
                    },
                    note: &mut unnoted,
                    progress: &brood_core::checkpoint::unwatched,
                },
            )
            .unwrap();
        assert_eq!(taken, 1);
        assert_eq!(manifest.guest, "a");
        gone(process);
        bench.engine.forget(GuestRef::new(&run_dir, &id)).unwrap();
        let (id, again) = bench.restore(&to, &["b"])[0];
        assert_eq!(again.nonce, nonce);
        assert_eq!(bench.kept(&id), 99);
        bench.end(&id, again.process);
    });
}

#[test]
fn a_disk_is_the_guests_own_and_is_sealed_with_its_memory() {
    on_every_engine_with_disks(|bench, image| {
        let run_dir = bench.home.run_dir();
        let owner = Owner::of(&run_dir);
        let from = Checkpoint::open(&bench.path).unwrap();
        // KVM's demo guest and the minimal Linux have no block device: their disk is a companion that
        // they do not read.
        let reads = bench.engine.reads_disk(&from).unwrap();
        assert_eq!(reads, bench.kind == EngineKind::Bhyve);
        let make = |disks: &dyn Provider, id: &GuestId| {
            disks.clone_for(id).unwrap();
            disks.location(id).unwrap()
        };
        let ninth = |disks: &dyn Provider, id: &GuestId| {
            let disk = File::open(disks.location(id).unwrap().unwrap()).unwrap();
            let mut word = [0; 8];
            disk.read_exact_at(&mut word, 9 * 512).unwrap();
            u64::from_le_bytes(word)
        };
        let write = |disks: &dyn Provider, id: &GuestId, word: u64| {
            if reads {
                bench.ask(id, &format!("write 9 {word}")).unwrap();
                assert_eq!(bench.ask(id, "read 9").unwrap()["value"], word);
            } else {
                let disk = disks.location(id).unwrap().unwrap();
                let disk = File::options().write(true).open(disk).unwrap();
                disk.write_all_at(&word.to_le_bytes(), 9 * 512).unwrap();
            }
        };
        let disks = Reflink::new(owner, image.to_owned(), true);
        let location = |id: &GuestId| make(&disks, id).filter(|_| reads);
        let guests = bench.restore_with(&bench.path, &["a", "b"], &location);
        let ((a, alive), (b, other)) = (guests[0], guests[1]);
        write(&disks, &a, 77);
        write(&disks, &b, 78);
        assert_eq!((ninth(&disks, &a), ninth(&disks, &b)), (77, 78));
        assert_eq!(fs::read(image).unwrap(), [0; 1 << 16]);
        bench.keep(&a, 99);

        let to: BundlePath = bench.home.named("to").path.parse().unwrap();
        let token = Token::random().unwrap();
        let manifest = bench
            .engine
            .suspend(
                GuestRef::new(&run_dir, &a),
                Suspend {
                    name: "a",
                    from: &from,
                    to: &to,
                    delta: false,
                    after: After::End,
                    disks: &mut || Ok(vec![disks.snapshot(&a, &to, &token)?]),
                    note: &mut unnoted,
                    progress: &brood_core::checkpoint::unwatched,
                },
            )
            .unwrap();
        gone(alive.process);
        let device = manifest.disks[0].device.as_deref();
        assert_eq!(device, reads.then_some("virtio-blk@pci.0.2.0"));
        disk::verify(&to, &manifest.disks).unwrap();
        for (id, alive) in [(a, None), (b, Some(other))] {
            match alive {
                Some(alive) => bench.end(&id, alive.process),
                None => bench.engine.forget(GuestRef::new(&run_dir, &id)).unwrap(),
            }
            disks.release(&id).unwrap();
        }

        let sealed = Checkpoint::open(&to).unwrap();
        assert_eq!(bench.engine.reads_disk(&sealed).unwrap(), reads);
        let chosen = disk::choose(&to, &manifest.disks, &Choice::Sealed).unwrap();
        let Some((Source::Reflink { file, .. }, Some(_))) = chosen else {
            panic!("{chosen:?}");
        };
        let disks = Reflink::new(owner, file, true);
        let location = |id: &GuestId| make(&disks, id).filter(|_| reads);
        let (id, again) = bench.restore_with(&to, &["c"], &location)[0];
        assert_eq!(bench.kept(&id), 99);
        assert_eq!(ninth(&disks, &id), 77);
        if reads {
            assert_eq!(bench.ask(&id, "read 9").unwrap()["value"], 77);
        }
        bench.end(&id, again.process);
        disks.release(&id).unwrap();
    });
}

#[test]
fn the_end_of_a_guest_is_recorded_until_it_is_forgotten() {
    on_every_engine(|bench| {
        let run_dir = bench.home.run_dir();
        let guests = bench.restore(&bench.path, &["crashes", "killed", "destroyed"]);
        let (crashes, killed, destroyed) = (guests[0], guests[1], guests[2]);
        let died = bench.crash(&crashes.0);
        assert!(
            matches!(died, Err(brood_core::engine::Error::Died(_))),
            "{died:?}"
        );
        killed.1.process.signal(Signal::SIGKILL).unwrap();
        for (id, restored) in [crashes, killed] {
            gone(restored.process);
            let reason = until("the reason", || {
                bench.engine.ended(GuestRef::new(&run_dir, &id)).unwrap()
            });
            assert!(!reason.is_empty());
            bench.engine.forget(GuestRef::new(&run_dir, &id)).unwrap();
            assert_eq!(
                bench.engine.ended(GuestRef::new(&run_dir, &id)).unwrap(),
                None
            );
        }
        bench.end(&destroyed.0, destroyed.1.process);
        assert_eq!(
            bench
                .engine
                .ended(GuestRef::new(&run_dir, &destroyed.0))
                .unwrap(),
            None
        );
        until("the nursery to end", || {
            bench.home.nurseries().is_empty().then_some(())
        });
        assert_eq!(run_dir.read_dir().unwrap().count(), 0);
    });
}

#[test]
fn an_aborted_session_leaves_only_guests_that_have_answered() {
    on_every_engine(|bench| {
        let checkpoint = Checkpoint::open(&bench.path).unwrap();
        let run_dir = bench.home.run_dir();
        let mut session = bench
            .engine
            .session(&checkpoint, &run_dir, &bench.lock, &SessionTerms::default())
            .unwrap();
        let mut ids = Vec::new();
        // A Linux takes a while to be restored, where it is translated.
        for n in 0..if bench.runs_linux() { 3 } else { 10 } {
            let identity = Identity::fresh(&format!("a-{n}")).unwrap();
            let id = GuestId::random().unwrap();
            session
                .start(&GuestOrder {
                    id,
                    identity,
                    disk: None,
                    memory_limit: None,
                    network: GuestNetwork::default(),
                })
                .unwrap();
            ids.push(id);
        }
        let first = until("the first answer", || {
            session.wait(Duration::from_millis(100)).unwrap()
        });
        assert!(first.result.is_ok(), "{first:?}");
        session.abort();
        drop(session);
        until("what was under way to end", || {
            let found = ids.iter().filter(|id| {
                bench
                    .engine
                    .find(GuestRef::new(&run_dir, id))
                    .unwrap()
                    .is_some()
            });
            (found.count() == bench.home.guests().len()).then_some(())
        });
        for id in ids {
            if let Some(process) = bench.engine.find(GuestRef::new(&run_dir, &id)).unwrap() {
                match bench.ask(&id, "ping") {
                    Ok(_) => bench.end(&id, process),
                    // It had not answered yet, and was just about to end.
                    Err(_) => until("its end", || {
                        bench
                            .engine
                            .find(GuestRef::new(&run_dir, &id))
                            .unwrap()
                            .is_none()
                            .then_some(())
                    }),
                }
            }
            bench.engine.forget(GuestRef::new(&run_dir, &id)).unwrap();
        }
        bench.home.nobody_is_left();
    });
}
