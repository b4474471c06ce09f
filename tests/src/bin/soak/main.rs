//! Soak test: clients claim, renew, suspend, resume and release guests of several pools for a given
//! time, while guests, nurseries and the daemon itself are killed at random. Every few seconds, and
//! at the end, an audit checks the system: nothing handed out twice, nothing lost that was
//! acknowledged, nothing left behind.
//!
//! The seed is printed; the same seed makes the same choices, though not the same moments.

mod audit;
mod chaos;
mod claimer;
mod guard;
mod mark;
mod scene;
mod talk;

use std::{
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use brood_tests::{EngineKind, Random};
use clap::Parser;

use self::scene::Scene;

/// How long clients and killers are at it between two looks at everything.
const BETWEEN_AUDITS: Duration = Duration::from_secs(8);

/// Uses a daemon and its pools while everything is killed at random, and makes sure that nothing is
/// handed out twice, lost or left.
///
/// Exits with 0 when all was as it should be; otherwise it says what was not, and kills whatever it
/// has started. It does so when it is ended by a signal, too.
#[derive(Debug, Parser)]
#[command(name = "tools/soak", max_term_width = 100)]
struct Options {
    /// How long, in seconds
    #[arg(long, value_name = "N", default_value_t = 300)]
    seconds: u64,
    /// Clients at once [default: 6; 2 of qemu]
    #[arg(long, value_name = "N")]
    clients: Option<u64>,
    /// Engine of the guests: `kvm` of this machine, `bhyve` of a fake one, or `qemu`
    #[arg(long, value_name = "ENGINE", default_value = "kvm", value_parser = engine)]
    engine: EngineKind,
    /// Seed of all choices [default: a new one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

fn engine(name: &str) -> Result<EngineKind, String> {
    [EngineKind::Kvm, EngineKind::Bhyve, EngineKind::Qemu]
        .into_iter()
        .find(|engine| engine.name() == name)
        .ok_or_else(|| "kvm, bhyve or qemu".to_owned())
}

fn main() -> ExitCode {
    let options = Options::parse();
    guard::note_signals();
    let mut random = options.seed.map_or_else(Random::seeded, Random::new);
    let Some(scene) = Scene::new(options.engine, &mut random) else {
        return ExitCode::SUCCESS;
    };
    let scene = Arc::new(scene);
    guard::watch(Arc::downgrade(&scene), options.seconds);
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let clients = options.clients.unwrap_or(match options.engine {
        EngineKind::Kvm | EngineKind::Bhyve => 6,
        EngineKind::Qemu => 2,
    });
    let seeds: Vec<u64> = (0..=clients).map(|_| random.below(u64::MAX)).collect();
    let ran = thread::scope(|scope| {
        let mut threads = Vec::new();
        for seed in &seeds[1..] {
            let scene = &*scene;
            threads.push(scope.spawn(move || claimer::run(scene, Random::new(*seed))));
        }
        let chaos = scope.spawn(|| chaos::run(&scene, Random::new(seeds[0])));
        while Instant::now() < end && !threads.iter().any(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(BETWEEN_AUDITS.min(end.saturating_duration_since(Instant::now())));
            let still = scene.hold_still();
            audit::whole(&scene);
            drop(still);
        }
        scene.done.store(true, Ordering::Relaxed);
        // After a panic, which says what was wrong, `guard` ends all of it.
        threads.into_iter().all(|thread| thread.join().is_ok()) & chaos.join().is_ok()
    });
    assert!(ran, "a thread has panicked");
    audit::end(Arc::into_inner(scene).expect("all threads have ended"));
    ExitCode::SUCCESS
}
