//! State machine of a pool's entries, checked against a model over random histories: of two
//! processes that want the same entry one gets it, a claim belongs to the holder of its token, and
//! no step leads where it must not.

use std::{collections::BTreeMap, time::Duration};

use brood_core::{
    checkpoint::manifest::EngineKind,
    engine::{GuestNetwork, GuestOrder, Identity, Process},
    guest_id::GuestId,
    state::{
        EntryState, Error, Lease, Membership, NewGuest, Policy, PoolRow, QueuePlace, State,
        TokenDigest,
    },
    units::Bytes,
};
use proptest::prelude::*;

const POOL: &str = "p";
const MOST: u64 = 6;
const AGES: Duration = Duration::from_secs(3600);

/// An action of a client. Numbers choose among the guests or tokens that ever existed.
#[derive(Clone, Debug)]
enum Step {
    Fill,
    ClaimCold {
        over: bool,
    },
    Heat(usize),
    /// By a claimer with one of the places that ever existed, or with none.
    ClaimHot {
        over: bool,
        place: Option<usize>,
    },
    Renew {
        token: usize,
        over: bool,
    },
    Release(usize),
    Expire,
    GiveUp(usize, EntryState),
    Evict,
    Destroy(usize),
    RemovePool,
    Wait,
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    use EntryState::{Claimed, Filling, Hot, Releasing};
    let any_state = prop::sample::select(vec![Filling, Hot, Claimed, Releasing]);
    prop_oneof![
        4 => Just(Step::Fill),
        1 => any::<bool>().prop_map(|over| Step::ClaimCold { over }),
        4 => (0_usize..64).prop_map(Step::Heat),
        4 => (any::<bool>(), prop::option::of(0_usize..8))
            .prop_map(|(over, place)| Step::ClaimHot { over, place }),
        1 => Just(Step::Wait),
        2 => (0_usize..8).prop_map(Step::Leave),
        2 => (0_usize..64, any::<bool>()).prop_map(|(token, over)| Step::Renew { token, over }),
        2 => (0_usize..64).prop_map(Step::Release),
        1 => Just(Step::Expire),
        2 => (0_usize..64, any_state).prop_map(|(guest, state)| Step::GiveUp(guest, state)),
        1 => Just(Step::Evict),
        3 => (0_usize..64).prop_map(Step::Destroy),
        1 => Just(Step::RemovePool),
    ]
}

/// What an entry should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    state: EntryState,
    token: Option<TokenDigest>,
    over: bool,
}

struct Scene {
    state: State,
    /// By age: entries are handed out and evicted in the order in which they came.
    model: BTreeMap<usize, Entry>,
    guests: Vec<GuestId>,
    tokens: Vec<TokenDigest>,
    /// Places in the line, and whether they are still held.
    line: Vec<(QueuePlace, bool)>,
}

impl Scene {
    fn lease(&mut self, over: bool) -> Lease {
        let token = TokenDigest::of(&format!("token {}", self.tokens.len()));
        self.tokens.push(token.clone());
        Lease {
            token,
            lasts: if over { Duration::ZERO } else { AGES },
        }
    }

    /// Orders a guest for the pool, as a restore does.
    fn order(&mut self, claim: Option<Lease>) -> Result<GuestId, Error> {
        let name = format!("p-{}", self.guests.len());
        let order = GuestOrder {
            network: GuestNetwork::default(),
            disk: None,
            memory_limit: None,
            id: GuestId::random().unwrap(),
            identity: Identity::fresh(&name).unwrap(),
        };
        let membership = Membership {
            pool: POOL.to_owned(),
            claim,
            room: None,
            network_version: 0,
        };
        self.state.reserve(|reservation| {
            reservation.check_room(&membership, 1)?;
            reservation.add(&NewGuest {
                order: &order,
                checkpoint: "/ckp/demo",
                sha256: "0",
                memory: Bytes(1 << 20),
                private_limit: Bytes(1 << 20),
                session: "none",
                created_at: "now",
                membership: Some(&membership),
                disk: None,
                engine: EngineKind::Kvm,
                accelerator: None,
            })?;
            Ok(order.id)
        })
    }

    fn oldest(&self, state: EntryState, over: Option<bool>) -> Vec<usize> {
        let fits = |e: &Entry| e.state == state && over.is_none_or(|over| e.over == over);
        let entries = self.model.iter().filter(|(_, e)| fits(e));
        entries.map(|(n, _)| *n).collect()
    }

    fn place(&self, guest: Option<GuestId>) -> Option<usize> {
        guest.map(|id| self.guests.iter().position(|g| *g == id).unwrap())
    }

    fn holder(&self, token: &TokenDigest) -> Option<usize> {
        let mut entries = self.model.iter();
        entries
            .find(|(_, e)| e.token.as_ref() == Some(token))
            .map(|(n, _)| *n)
    }

    fn take(&mut self, step: &Step) {
        use EntryState::{Claimed, Filling, Hot, Releasing};
        match step {
            Step::Fill | Step::ClaimCold { .. } => {
                let over = matches!(step, Step::ClaimCold { over: true });
                let claim = matches!(step, Step::ClaimCold { .. }).then(|| self.lease(over));
                let there = self.model.len() as u64;
                match self.order(claim.clone()) {
                    Ok(id) => {
                        assert!(there < MOST, "more entries than there may be");
                        self.model.insert(
                            self.guests.len(),
                            Entry {
                                state: if claim.is_some() { Claimed } else { Filling },
                                token: claim.map(|lease| lease.token),
                                over,
                            },
                        );
                        self.guests.push(id);
                    }
                    Err(Error::PoolFull(pool)) => assert!(there == MOST && pool == POOL),
                    Err(e) => panic!("{e}"),
                }
            }
            Step::Heat(n) if !self.guests.is_empty() => {
                let n = n % self.guests.len();
                self.state.mark_hot(&[self.guests[n]]).unwrap();
                if let Some(entry) = self.model.get_mut(&n).filter(|e| e.state == Filling) {
                    entry.state = Hot;
                }
            }
            Step::ClaimHot { over, place } => {
                let lease = self.lease(*over);
                let mine = place.filter(|n| self.line.get(*n).is_some_and(|(_, held)| *held));
                let place = mine.map(|n| self.line[n].0);
                let better = &self.line[..mine.unwrap_or(self.line.len())];
                let waiters = better.iter().filter(|(_, held)| *held).count();
                assert_eq!(
                    self.state.waiters_before(POOL, place).unwrap(),
                    waiters as u64
                );
                let got = self.state.claim_hot(POOL, &lease, place).unwrap();
                let expected = self.oldest(Hot, None).first().copied();
                let expected = expected.filter(|_| waiters == 0);
                assert_eq!(self.place(got), expected);
                if let Some(n) = expected {
                    let token = Some(lease.token);
                    let over = *over;
                    self.model.insert(
                        n,
                        Entry {
                            state: Claimed,
                            token,
                            over,
                        },
                    );
                }
            }
            Step::Renew { token, over } if !self.tokens.is_empty() => {
                let token = self.tokens[token % self.tokens.len()].clone();
                let holder = self.holder(&token);
                let lasts = if *over { Duration::ZERO } else { AGES };
                let renewed = self.state.renew_claim(&Lease { token, lasts }).unwrap();
                let entry = holder.and_then(|n| self.model.get_mut(&n));
                let entry = entry.filter(|e| e.state == Claimed && !e.over);
                assert_eq!(renewed, entry.is_some());
                if let Some(entry) = entry {
                    entry.over = *over;
                }
            }
            Step::Release(token) if !self.tokens.is_empty() => {
                let token = self.tokens[token % self.tokens.len()].clone();
                let released = self.state.release_claim(&token).unwrap();
                // The same question gets the same answer.
                let expected = self
                    .holder(&token)
                    .filter(|n| matches!(self.model[n].state, Claimed | Releasing));
                assert_eq!(self.place(released), expected);
                if let Some(entry) = expected.and_then(|n| self.model.get_mut(&n)) {
                    entry.state = Releasing;
                }
            }
            Step::Expire => {
                let expired = self.state.expire_claim(POOL).unwrap();
                let over = self.oldest(Claimed, Some(true));
                match self.place(expired) {
                    Some(n) => {
                        assert!(over.contains(&n), "a lease that is not over");
                        self.model.get_mut(&n).unwrap().state = Releasing;
                    }
                    None => assert!(over.is_empty(), "{over:?} are over"),
                }
            }
            Step::GiveUp(n, state) if !self.guests.is_empty() => {
                let n = n % self.guests.len();
                let given_up = self.state.give_up(&self.guests[n], *state).unwrap();
                let entry = self.model.get_mut(&n).filter(|e| e.state == *state);
                assert_eq!(given_up, entry.is_some());
                if let Some(entry) = entry {
                    entry.state = Releasing;
                }
            }
            Step::Evict => {
                let evicted = self.state.evict_hot(POOL).unwrap();
                let expected = self.oldest(Hot, None).first().copied();
                assert_eq!(self.place(evicted), expected);
                if let Some(n) = expected {
                    self.model.get_mut(&n).unwrap().state = Releasing;
                }
            }
            Step::Destroy(n) if !self.guests.is_empty() => {
                let n = n % self.guests.len();
                self.state.remove_guests(&[self.guests[n]]).unwrap();
                self.model.remove(&n);
            }
            Step::RemovePool => {
                let removed = self.state.remove_pool(POOL).unwrap();
                assert_eq!(removed, self.model.is_empty(), "only an empty pool goes");
                if removed {
                    assert!(self.state.add_pool(&row()).unwrap());
                }
            }
            Step::Wait => {
                let this = Process::with_pid(std::process::id().cast_signed())
                    .unwrap()
                    .unwrap();
                let place = self.state.wait_in_line(POOL, this, 3_600_000).unwrap();
                self.line.push((place, true));
            }
            Step::Leave(n) if *n < self.line.len() => {
                self.state.leave_line(self.line[*n].0).unwrap();
                self.line[*n].1 = false;
            }
            // There was no guest or claim yet to do it with.
            _ => {}
        }
    }

    fn check(&self) {
        let entries = self.state.entries(POOL).unwrap();
        let there: Vec<(usize, EntryState)> = entries
            .iter()
            .map(|e| (self.place(Some(e.guest)).unwrap(), e.state))
            .collect();
        let expected: Vec<(usize, EntryState)> =
            self.model.iter().map(|(n, e)| (*n, e.state)).collect();
        assert_eq!(there, expected);
        for entry in &entries {
            let modelled = &self.model[&self.place(Some(entry.guest)).unwrap()];
            assert_eq!(entry.lease.is_some(), modelled.token.is_some());
            if let Some(left) = entry.lease {
                assert_eq!(left.is_zero(), modelled.over);
            }
        }
    }
}

fn row() -> PoolRow {
    PoolRow {
        name: POOL.to_owned(),
        checkpoint: "/ckp/demo".to_owned(),
        sha256: "0".to_owned(),
        policy: Policy {
            most: Some(MOST),
            ..Policy::hot(3, 60)
        },
        private_limit: Bytes(1 << 20),
        enforce_private_limit: false,
        network: None,
        publish: Vec::new(),
        network_version: 0,
        created_at: "now".to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn entries_go_the_way_of_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        let mut scene = Scene {
            state: State::open(dir.path()).unwrap(),
            model: BTreeMap::new(),
            guests: Vec::new(),
            tokens: Vec::new(),
            line: Vec::new(),
        };
        assert!(scene.state.add_pool(&row()).unwrap());
        assert!(!scene.state.add_pool(&row()).unwrap(), "a name is taken once");
        for step in &steps {
            scene.take(step);
            scene.check();
        }
    }
}
