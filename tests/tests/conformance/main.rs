//! Conformance: what every engine must do, checked on each engine that this machine can run.
//!
//! Nothing here knows which engine it is: only `&dyn Engine`. `bench.rs` has the engines.

mod bench;
mod ends;
mod suspends;

use std::time::Duration;

use brood_core::{
    checkpoint::manifest::EngineKind,
    engine::{GuestRef, Limit, ProcessState},
};
use brood_tests::until;
use nix::sys::signal::Signal;

use bench::{Alive, on_every_engine};

#[test]
fn guests_are_restored_and_answer() {
    on_every_engine(|bench| {
        let guests = bench.restore(&bench.path, &["a", "b", "c"]);
        for ((id, restored), name) in guests.iter().zip(["a", "b", "c"]) {
            assert_eq!(restored.nonce, guests[0].1.nonce);
            assert_eq!(bench.ask(id, "identity").unwrap()["name"], name);
            let ping = bench.ask(id, "ping x").unwrap();
            // The agent of a Linux counts no other requests.
            let asked = if bench.runs_linux { 1 } else { 2 };
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
        let most = if bench.runs_linux { 1200 } else { 204 };
        assert!((196..=most).contains(&grown), "{grown}");
        bench.end(&id, process);
        assert!(matches!(usage(), Err(brood_core::engine::Error::Gone)));
    });
}
