//! Bench of a conformance check: one engine at work on a checkpoint of its own.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use brood_core::{
    checkpoint::{
        BundlePath, Checkpoint,
        manifest::{EngineKind, Manifest},
    },
    engine::{
        Engine, GuestNetwork, GuestOrder, GuestRef, Identity, Limit, Process, ProcessState,
        RestoredProcess, SessionTerms, Several,
        kvm::{Kvm, KvmLinux},
        make_demo_checkpoint,
        qemu::Qemu,
    },
    guest_id::GuestId,
    units::Bytes,
};
use brood_tests::{Home, Machine, until};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);
/// Names a checkpoint of a Linux of the KVM engine, which only hardware virtualisation runs.
const KVM_LINUX: &str = "BROOD_KVM_LINUX";

/// One engine at work on a checkpoint of its own. The home looks after what is left.
pub(crate) struct Bench<'a> {
    pub(crate) engine: &'a dyn Engine,
    /// What runs the guests: the engine, or the one of several.
    pub(crate) kind: EngineKind,
    pub(crate) home: &'a Home,
    pub(crate) path: BundlePath,
    pub(crate) lock: File,
    /// Whether its guests are an ordinary Linux, which is asked to run programs.
    pub(crate) runs_linux: bool,
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
        let runs_linux = {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let manifest = checkpoint.manifest();
            manifest.qemu.is_some() || manifest.linux.is_some()
        };
        Self {
            engine,
            kind,
            home,
            path,
            lock,
            runs_linux,
        }
    }

    pub(crate) fn restore(&self, from: &BundlePath, names: &[&str]) -> Vec<(GuestId, Alive)> {
        self.restore_with(from, names, &|_| None)
    }

    /// The same, with what `disk` has for each guest.
    pub(crate) fn restore_with(
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
                    ..
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

    pub(crate) fn ask(
        &self,
        id: &GuestId,
        words: &str,
    ) -> Result<serde_json::Value, brood_core::engine::Error> {
        self.ask_words(id, &[words])
    }

    pub(crate) fn ask_words(
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

    /// Has a guest keep a word in its memory.
    pub(crate) fn keep(&self, id: &GuestId, word: u64) {
        if self.runs_linux {
            let command = format!("echo {word} >/run/word");
            self.ask_words(id, &["exec", "sh", "-c", &command]).unwrap();
        } else {
            self.ask(id, &format!("poke 0x200000 {word}")).unwrap();
        }
    }

    /// The word that a guest keeps.
    pub(crate) fn kept(&self, id: &GuestId) -> u64 {
        if self.runs_linux {
            let answer = self.ask_words(id, &["exec", "cat", "/run/word"]).unwrap();
            return answer["output"].as_str().unwrap().trim().parse().unwrap();
        }
        let answer = self.ask(id, "peek 0x200000").unwrap();
        answer["value"].as_u64().unwrap()
    }

    /// Has a guest crash.
    pub(crate) fn crash(
        &self,
        id: &GuestId,
    ) -> Result<serde_json::Value, brood_core::engine::Error> {
        if self.runs_linux {
            return self.ask_words(id, &["exec", "sh", "-c", "echo c >/proc/sysrq-trigger"]);
        }
        self.ask(id, "crash")
    }

    pub(crate) fn end(&self, id: &GuestId, process: Process) {
        assert!(process.signal(Signal::SIGKILL).unwrap());
        gone(process);
        self.engine
            .forget(GuestRef::new(&self.home.run_dir(), id))
            .unwrap();
    }
}

pub(crate) fn gone(process: Process) {
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
pub(crate) struct Alive {
    pub(crate) process: Process,
    pub(crate) nonce: u64,
    pub(crate) counter: u64,
}

/// Carries a check out on every engine.
///
/// With `BROOD_KVM_LINUX=DIR/NAME`, a checkpoint of a Linux of the KVM engine, also on that.
///
/// KVM's and QEMU's guests are real. bhyve's are not: the engine is at work on a fake machine, and what is
/// checked is what it does with processes, files and terminals.
pub(crate) fn on_every_engine(check: impl Fn(&Bench<'_>)) {
    on_each(&|_, machine| machine.config(), check);
}

/// The same with an image, which bhyve's guests write to.
pub(crate) fn on_every_engine_with_disks(check: impl Fn(&Bench<'_>, &Path)) {
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
    if let Some(path) = env::var_os(KVM_LINUX) {
        let path: BundlePath = path.to_str().expect("plain letters").parse().unwrap();
        let linux = KvmLinux::new(&brood_tests::brood());
        let home = Home::with_kvm().expect("a KVM for a Linux");
        eprintln!("on a Linux of the KVM engine");
        check(&Bench::at(&linux, EngineKind::Kvm, &home, path));
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
