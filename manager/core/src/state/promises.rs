//! Promises: the private memory that recorded guests were promised. The database keeps a sum for
//! each kind of guest, so that admission does not read a row for each guest that there is.

use rusqlite::Row;

use super::{Error, Reservation, State, guest_row::row_state};
use crate::{state::RowState, units::Bytes};

/// Guests that were promised the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// How far they have come.
    pub state: RowState,
    /// Private memory that each was promised.
    pub private_limit: Bytes,
    /// Memory of each.
    pub memory: Bytes,
    /// How many they are.
    pub guests: u64,
}

impl Reservation<'_> {
    /// What all recorded guests were promised.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn promises(&self) -> Result<Vec<Promise>, Error> {
        let state = self.0;
        let read = || {
            let mut statement = state.database.prepare_cached(
                "SELECT state, private_limit, memory, guests FROM promise WHERE guests > 0",
            )?;
            let promises = statement.query_map([], promise)?;
            promises.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|e| state.database_error(e))
    }
}

impl State {
    /// Whether any guest is recorded as ordered and not seen to answer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn has_restoring(&self) -> Result<bool, Error> {
        self.database
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM promise WHERE state = 'restoring' AND guests > 0)",
            )
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|e| self.database_error(e))
    }
}

fn promise(row: &Row<'_>) -> rusqlite::Result<Promise> {
    let natural = |i| {
        row.get::<_, i64>(i)
            .map(|n| u64::try_from(n).unwrap_or_default())
    };
    Ok(Promise {
        state: row_state(row, 0)?,
        private_limit: Bytes(natural(1)?),
        memory: Bytes(natural(2)?),
        guests: natural(3)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        checkpoint::manifest::EngineKind,
        engine::{GuestNetwork, GuestOrder, Identity, Process},
        guest_id::GuestId,
        state::NewGuest,
    };

    #[derive(Clone, Debug)]
    enum Action {
        Order { limit: u64 },
        Run(prop::sample::Index),
        End(prop::sample::Index),
        Recall(prop::sample::Index),
        Remove(prop::sample::Index),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            3 => (0..3_u64).prop_map(|limit| Action::Order { limit }),
            2 => any::<prop::sample::Index>().prop_map(Action::Run),
            1 => any::<prop::sample::Index>().prop_map(Action::End),
            1 => any::<prop::sample::Index>().prop_map(Action::Recall),
            1 => any::<prop::sample::Index>().prop_map(Action::Remove),
        ]
    }

    fn order(state: &mut State, name: &str, limit: u64) -> GuestId {
        let order = GuestOrder {
            network: GuestNetwork::default(),
            disk: None,
            memory_limit: None,
            id: GuestId::random().unwrap(),
            identity: Identity::fresh(name).unwrap(),
        };
        let new = NewGuest {
            order: &order,
            checkpoint: "/ckp/demo",
            sha256: "0",
            memory: Bytes(1 << 20),
            private_limit: Bytes(limit),
            session: "none",
            created_at: "now",
            membership: None,
            disk: None,
            engine: EngineKind::Kvm,
            accelerator: None,
        };
        let added: Result<(), Error> = state.reserve(|reservation| reservation.add(&new));
        added.unwrap();
        order.id
    }

    /// The sums, and the same counted row by row.
    fn both(state: &mut State) -> [Vec<(&'static str, u64, u64)>; 2] {
        let sums: Result<_, Error> = state.reserve(|reservation| {
            let sums = reservation.promises()?;
            Ok((sums, reservation.rows()?))
        });
        let (sums, rows) = sums.unwrap();
        let mut counted: Vec<(&str, u64, u64)> = Vec::new();
        for row in rows {
            let key = (row.state.name(), row.private_limit.0);
            match counted.iter_mut().find(|one| (one.0, one.1) == key) {
                Some(one) => one.2 += 1,
                None => counted.push((key.0, key.1, 1)),
            }
        }
        let sums = sums.iter().map(|p| {
            assert_eq!(p.memory, Bytes(1 << 20));
            (p.state.name(), p.private_limit.0, p.guests)
        });
        let mut sums: Vec<_> = sums.collect();
        sums.sort_unstable();
        counted.sort_unstable();
        [sums, counted]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn sums_are_those_of_all_rows(actions in prop::collection::vec(action(), 1..40)) {
            let dir = tempfile::tempdir().unwrap();
            let mut state = State::open(dir.path()).unwrap();
            let mut ids = Vec::new();
            for (n, action) in actions.into_iter().enumerate() {
                match action {
                    Action::Order { limit } => ids.push(order(&mut state, &format!("g-{n}"), limit)),
                    _ if ids.is_empty() => {}
                    Action::Run(at) => {
                        let process = Process { pid: 1, start_time: 1 };
                        state.record_running(&[(*at.get(&ids), process, None)]).unwrap();
                    }
                    Action::End(at) => {
                        state.record_dead(&[(*at.get(&ids), "it ended".to_owned())]).unwrap();
                    }
                    Action::Recall(at) => {
                        // One that is recorded already changes nothing.
                        let row = state.guest(&at.get(&ids).to_string()).unwrap();
                        if let Some(row) = row {
                            state.recall_guest(&row).unwrap();
                        }
                    }
                    Action::Remove(at) => state.remove_guests(&[*at.get(&ids)]).unwrap(),
                }
                let [sums, counted] = both(&mut state);
                prop_assert_eq!(&sums, &counted);
                let restoring = counted.iter().any(|(state, ..)| *state == "restoring");
                prop_assert_eq!(state.has_restoring().unwrap(), restoring);
            }
        }
    }

    #[test]
    fn names_are_found_by_their_beginning_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        for name in ["web-2", "web-10", "web", "we", "web.1", "webz", "wfb-1"] {
            order(&mut state, name, 0);
        }
        let names = |prefix: &str| -> Vec<String> {
            let rows = state.guests_with_prefix(prefix).unwrap();
            rows.into_iter().map(|row| row.name).collect()
        };
        assert_eq!(names("web-"), ["web-2", "web-10"]);
        assert_eq!(names("web"), ["web", "web-2", "web-10", "web.1", "webz"]);
        assert_eq!(names(""), state_names(&state));
        assert!(names("x").is_empty());
    }

    fn state_names(state: &State) -> Vec<String> {
        let rows = state.guests().unwrap();
        rows.into_iter().map(|row| row.name).collect()
    }
}
