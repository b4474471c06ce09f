//! Ends: of guests, and of sessions before their guests have answered.

use std::time::Duration;

use brood_core::{
    checkpoint::Checkpoint,
    engine::{GuestNetwork, GuestOrder, GuestRef, Identity, SessionTerms},
    guest_id::GuestId,
};
use brood_tests::until;
use nix::sys::signal::Signal;

use crate::bench::{gone, on_every_engine};

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
        for n in 0..if bench.runs_linux { 3 } else { 10 } {
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
