//! Session cache of a long-lived manager: it keeps a pool's nursery warm, and does without when the
//! nursery is killed.

use std::{path::Path, time::Duration};

use brood_core::{
    engine::kvm::Kvm,
    host::HostSource,
    pool::{ClaimGrant, ClaimSpec, NewPool, Pools, Tier},
    restore::SessionCache,
    state::{Policy, State},
    units::Bytes,
};
use brood_tests::{Home, brood, signal, until};
use nix::sys::signal::Signal;

struct Manager {
    state: State,
    engine: Kvm,
    sessions: SessionCache,
}

impl Manager {
    fn of(home: &Home) -> Self {
        Self {
            state: State::open(&home.state()).unwrap(),
            engine: Kvm::with_binary(brood()),
            sessions: SessionCache::default(),
        }
    }

    fn pools<T>(&mut self, work: impl FnOnce(&mut Pools<'_>) -> T) -> T {
        let state = self.state.dir().to_owned();
        let facts =
            |folder: &Path| HostSource::default().facts(state.clone(), Some(folder.to_owned()));
        work(&mut Pools {
            state: &mut self.state,
            engine: &self.engine,
            facts: &facts,
            sessions: &self.sessions,
            cancelled: &brood_core::pool::NEVER,
            lock_limit: brood_core::pool::LOCK_LIMIT,
        })
    }

    fn claim(&mut self) -> ClaimGrant {
        let wanted = ClaimSpec {
            lease: None,
            timeout: Some(Duration::from_secs(30)),
            wait: Duration::ZERO,
            place: None,
        };
        let claimed = self.pools(|pools| pools.claim("p", &wanted)).unwrap();
        assert_eq!(claimed.tier, Tier::Cold, "the pool has no hot entries");
        claimed
    }
}

#[test]
fn cold_claims_share_a_nursery_and_get_a_new_one_when_it_is_killed() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let mut manager = Manager::of(&home);
    let new = NewPool {
        name: "p".to_owned(),
        checkpoint: demo.path.parse().unwrap(),
        private_limit: Bytes(1 << 20),
        enforce_private_limit: false,
        network: None,
        publish: Vec::new(),
        policy: Policy::hot(0, 600),
        trust: false,
    };
    manager
        .pools(|pools| pools.create(&new, &brood_core::checkpoint::unwatched))
        .unwrap();
    let nursery = |home: &Home| {
        let nurseries = home.nurseries();
        assert_eq!(nurseries.len(), 1, "{nurseries:?}");
        nurseries[0].pid
    };

    let first = manager.claim();
    let warm = nursery(&home);
    let second = manager.claim();
    assert_eq!(nursery(&home), warm, "the second claim began another one");
    // The nursery reports its end, and the next claim must not take the report for its own.
    signal(first.pid, Signal::SIGKILL);
    until("the guest to be dead", || {
        home.names("dead").contains(&first.guest).then_some(())
    });
    let third = manager.claim();
    assert_ne!(third.id, second.id);

    signal(warm, Signal::SIGKILL);
    until("the nursery to be gone", || {
        home.nurseries().is_empty().then_some(())
    });
    let fourth = manager.claim();
    assert_ne!(nursery(&home), warm);
    for claimed in [&second, &third, &fourth] {
        let _ = home.ask(&claimed.guest, "ping");
    }

    // A restore of the present content needs a new session.
    let other = home.demo("other", "8M");
    for part in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
        std::fs::rename(other.file(part), demo.file(part)).unwrap();
    }
    let wanted = ClaimSpec {
        lease: None,
        timeout: Some(Duration::from_secs(30)),
        wait: Duration::ZERO,
        place: None,
    };
    let refused = manager
        .pools(|pools| pools.claim("p", &wanted))
        .unwrap_err();
    assert!(
        refused.to_string().contains("is not the checkpoint"),
        "{refused}"
    );

    for claimed in [second, third, fourth] {
        manager
            .pools(|pools| pools.release(&claimed.token))
            .unwrap();
    }
    manager.pools(|pools| pools.remove("p", true)).unwrap();
}
