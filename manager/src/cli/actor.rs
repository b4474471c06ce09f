//! Acting on guests that are named, one after the other: by the daemon, or here.

use std::{process::ExitCode, sync::atomic::Ordering};

use clap::Args;
use serde_json::{Value, json};

use super::{
    bar::Bar,
    daemon::{daemon, done},
    failure::{INTERRUPTED, SOME},
    filter::Filter,
    output::{cancellation, count, engine, json, line, state_to_look},
};
use crate::failure::Failure;
use crate::{
    api::{guests::DestroyAnswer, types},
    client::{self, Client, DestroyTargets, NAMES},
    config::Config,
};
use brood_core::{
    engine::{Engine, NEVER},
    guests::{self, Guest, GuestState, Guests},
    state::{EntryState, State},
};

/// Guests named on the command line, all, or those that a filter lets through.
#[derive(Debug, Args)]
pub(super) struct GuestArgs {
    /// Names or ids of guests
    #[arg(
        value_name = "GUEST",
        required_unless_present_any = ["all", "prefix", "state", "pool"],
        conflicts_with_all = ["all", "prefix", "state", "pool"],
        add = super::complete::with(super::complete::guests),
    )]
    pub(super) guests: Vec<String>,
    /// All guests
    #[arg(long, conflicts_with_all = ["prefix", "state", "pool"])]
    pub(super) all: bool,
    #[command(flatten)]
    filter: Filter,
}

impl GuestArgs {
    /// Whether guests are meant without being named.
    pub(super) fn is_sweeping(&self) -> bool {
        self.guests.is_empty()
    }

    fn find(&self, guests: &mut Guests<'_>, ignore_missing: bool) -> Result<Vec<Guest>, Failure> {
        if self.is_sweeping() {
            let mut all = guests.list()?;
            all.retain(|guest| self.filter.takes_guest(guest));
            return Ok(all);
        }
        let mut found: Vec<Guest> = Vec::new();
        for name in &self.guests {
            if let Some(guest) = look(guests, name, ignore_missing)?
                && !found.iter().any(|g| g.row.id == guest.row.id)
            {
                found.push(guest);
            }
        }
        Ok(found)
    }
}

/// The guest of this name or id; none is an error, unless it is to be passed over.
fn look(
    guests: &mut Guests<'_>,
    name: &str,
    ignore_missing: bool,
) -> Result<Option<Guest>, Failure> {
    match guests.find(name) {
        Ok(guest) => Ok(Some(guest)),
        Err(guests::Error::NoSuchGuest(_)) if ignore_missing => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What a command did to each of many guests.
pub(super) struct Done {
    results: Vec<(String, Result<Value, Failure>)>,
    interrupted: bool,
}

/// One of the guests that a command is to act on.
struct FoundGuest {
    id: String,
    name: String,
    state: GuestState,
    /// Somebody has it, from a pool.
    claimed: bool,
    /// The guest itself, when it was looked for here.
    guest: Option<Guest>,
}

impl From<Guest> for FoundGuest {
    fn from(guest: Guest) -> Self {
        Self {
            id: guest.row.id.to_string(),
            name: guest.row.name.clone(),
            state: guest.state,
            claimed: guest.is_claimed(),
            guest: Some(guest),
        }
    }
}

impl From<types::Guest> for FoundGuest {
    fn from(view: types::Guest) -> Self {
        Self {
            id: view.id,
            name: view.name,
            state: view.state,
            claimed: view.entry == Some(EntryState::Claimed),
            guest: None,
        }
    }
}

/// Who acts on guests: the daemon, or from the moment on that it begins nothing, this process.
pub(super) struct Actor<'a> {
    config: &'a Config,
    daemon: Option<Client>,
    here: Option<(State, Box<dyn Engine>)>,
}

impl<'a> Actor<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self {
            config,
            daemon: daemon(config),
            here: None,
        }
    }

    /// Has the daemon do something, if there is one.
    pub(super) fn ask<T>(
        &mut self,
        ask: impl FnOnce(&Client) -> Result<T, client::Error>,
    ) -> Result<Option<T>, Failure> {
        let Some(client) = &self.daemon else {
            return Ok(None);
        };
        let done = done(ask(client))?;
        if done.is_none() {
            self.daemon = None;
        }
        Ok(done)
    }

    /// What there is here to act with.
    pub(super) fn here<T>(
        &mut self,
        act: impl FnOnce(&mut Guests<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.here.is_none() {
            self.here = Some((state_to_look(self.config)?, engine(self.config)?));
        }
        let (state, engine) = self.here.as_mut().expect("it was just made");
        act(&mut Guests {
            state,
            engine: &**engine,
            cancelled: &NEVER,
        })
    }

    /// Ends the guests that are meant; those that somebody has claimed and that are not named only
    /// when `force` is set.
    pub(super) fn destroy(
        &mut self,
        which: &GuestArgs,
        force: bool,
        ignore_missing: bool,
    ) -> Result<DestroyAnswer, Failure> {
        if which.all
            && let Some(done) = self.ask(|daemon| daemon.destroy(DestroyTargets::All { force }))?
        {
            return Ok(done);
        }
        let mut doomed = self.find(which, ignore_missing)?;
        let mut spared = Vec::new();
        if which.is_sweeping() && !force {
            let claimed: Vec<FoundGuest>;
            (claimed, doomed) = doomed.into_iter().partition(|guest| guest.claimed);
            spared = claimed.into_iter().map(|guest| guest.name).collect();
        }
        // One that a filter found may be gone by now.
        let ignore_missing = ignore_missing || which.is_sweeping();
        let mut done = DestroyAnswer {
            spared,
            ..DestroyAnswer::default()
        };
        let mut rest = &doomed[..];
        while let (chunk, after) = rest.split_at(rest.len().min(NAMES))
            && !chunk.is_empty()
        {
            let guests: Vec<_> = chunk.iter().map(|guest| guest.id.clone()).collect();
            let which = DestroyTargets::Named {
                guests: &guests,
                ignore_missing,
            };
            let Some(more) = self.ask(|daemon| daemon.destroy(which))? else {
                break;
            };
            done.add(more);
            rest = after;
        }
        if !rest.is_empty() {
            done.add(self.here(|guests| {
                let mut found = Vec::with_capacity(rest.len());
                for guest in rest {
                    match &guest.guest {
                        Some(guest) => found.push(guest.clone()),
                        None => found.extend(look(guests, &guest.id, ignore_missing)?),
                    }
                }
                Ok(guests.destroy(&found)?.try_into()?)
            })?);
        }
        Ok(done)
    }

    /// The guests that are meant. One that does not exist is an error, before anything is done,
    /// unless it is to be passed over.
    fn find(
        &mut self,
        which: &GuestArgs,
        ignore_missing: bool,
    ) -> Result<Vec<FoundGuest>, Failure> {
        let Some(mut all) = self.ask(|daemon| daemon.guests(false))? else {
            let found = self.here(|guests| which.find(guests, ignore_missing))?;
            return Ok(found.into_iter().map(Into::into).collect());
        };
        if which.is_sweeping() {
            all.retain(|view| which.filter.takes(view));
            return Ok(all.into_iter().map(Into::into).collect());
        }
        let mut found: Vec<FoundGuest> = Vec::new();
        for name in &which.guests {
            if found.iter().any(|f| f.name == *name || f.id == *name) {
                continue;
            }
            let at = all.iter().position(|v| v.name == *name || v.id == *name);
            match at {
                Some(at) => found.push(all.swap_remove(at).into()),
                None if ignore_missing => {}
                None => return Err(guests::Error::NoSuchGuest(name.clone()).into()),
            }
        }
        Ok(found)
    }

    /// Acts on a guest: by the daemon, or here.
    fn act(
        &mut self,
        found: &FoundGuest,
        ask: impl FnOnce(&Client, &str) -> Result<Value, client::Error>,
        here: impl FnOnce(&mut Guests<'_>, &Guest) -> Result<Value, guests::Error>,
    ) -> Result<Value, Failure> {
        if let Some(done) = self.ask(|daemon| ask(daemon, &found.id))? {
            return Ok(done);
        }
        self.here(|guests| {
            let guest = match &found.guest {
                Some(guest) => guest.clone(),
                None => guests.find(&found.id)?,
            };
            Ok(here(guests, &guest)?)
        })
    }
}

impl Done {
    /// Acts on every guest; one that fails does not hold up the others.
    pub(super) fn on(
        config: &Config,
        which: &GuestArgs,
        quiet: bool,
        verb: &'static str,
        ask: impl Fn(&Client, &str) -> Result<Value, client::Error>,
        here: impl Fn(&mut Guests<'_>, &Guest) -> Result<Value, guests::Error>,
    ) -> Result<Self, Failure> {
        let cancelled = cancellation();
        let mut actor = Actor::new(config);
        let found = actor.find(which, false)?;
        let bar = Bar::guests(verb, found.len() as u64, quiet || found.len() < 50);
        let mut results = Vec::with_capacity(found.len());
        for guest in &found {
            if cancelled.load(Ordering::Relaxed) {
                break;
            }
            // A dead guest can be neither paused nor resumed: named, that is an error; meant by
            // `--all` or a filter, it is not.
            if which.is_sweeping() && guest.state == GuestState::Dead {
                continue;
            }
            results.push((guest.name.clone(), actor.act(guest, &ask, &here)));
            bar.inc();
        }
        bar.clear();
        let interrupted = cancelled.load(Ordering::Relaxed);
        Ok(Self {
            results,
            interrupted,
        })
    }

    /// Prints what came of it.
    pub(super) fn finish(self, as_json: bool, past: &str) -> ExitCode {
        let total = self.results.len();
        let done = self.results.iter().filter(|(_, r)| r.is_ok()).count();
        if as_json {
            let (mut guests, mut errors) = (Vec::new(), Vec::new());
            for (name, result) in &self.results {
                match result {
                    Ok(extra) => {
                        let mut value = extra.clone();
                        value["name"] = name.as_str().into();
                        guests.push(value);
                    }
                    Err(e) => errors.push(json!({ "name": name, "error": e.to_string() })),
                }
            }
            json(&json!({ past: done, "guests": guests, "errors": errors }));
        } else {
            line(format_args!("{} {past}", count(done, "guest")));
        }
        for (_, result) in &self.results {
            if let Err(failure) = result {
                super::output::failure(failure);
            }
        }
        if self.interrupted {
            ExitCode::from(INTERRUPTED)
        } else if done == total {
            ExitCode::SUCCESS
        } else if done == 0 {
            ExitCode::FAILURE
        } else {
            ExitCode::from(SOME)
        }
    }
}
