//! Acting on guests that are named, one after the other: by the daemon, or here.

use std::{process::ExitCode, sync::atomic::Ordering};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Failure,
    bar::Bar,
    daemon::{daemon, done},
    failure::{INTERRUPTED, SOME},
    output::{cancellation, engine, json, line, state},
};
use crate::{
    client::{self, Client},
    config::Config,
    engine::Engine,
    guests::{self, Guest, GuestState, Guests, View},
    state::State,
};

/// Guests named on the command line, or all.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// Names or ids of guests
    #[arg(value_name = "GUEST")]
    pub(super) guests: Vec<String>,
    /// All guests
    #[arg(long)]
    pub(super) all: bool,
}

impl Which {
    pub(super) fn find(&self, guests: &mut Guests<'_>) -> Result<Vec<Guest>, Failure> {
        if self.all {
            return Ok(guests.list()?);
        }
        let mut found: Vec<Guest> = Vec::new();
        for name in &self.guests {
            let guest = guests.find(name)?;
            if !found.iter().any(|g| g.row.id == guest.row.id) {
                found.push(guest);
            }
        }
        Ok(found)
    }
}

/// What a command did to each of many guests.
pub(super) struct Done {
    results: Vec<(String, Result<Value, Failure>)>,
    interrupted: bool,
}

/// One of the guests that a command is to act on.
struct Found {
    id: String,
    name: String,
    state: GuestState,
    /// The guest itself, when it was looked for here.
    guest: Option<Guest>,
}

impl From<Guest> for Found {
    fn from(guest: Guest) -> Self {
        Self {
            id: guest.row.id.to_string(),
            name: guest.row.name.clone(),
            state: guest.state,
            guest: Some(guest),
        }
    }
}

impl From<View> for Found {
    fn from(view: View) -> Self {
        Self {
            id: view.id,
            name: view.name,
            state: view.state,
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
            self.here = Some((state(self.config)?, engine(self.config)?));
        }
        let (state, engine) = self.here.as_mut().expect("it was just made");
        act(&mut Guests {
            state,
            engine: &**engine,
        })
    }

    /// The guests that are meant. One that does not exist is an error, before anything is done.
    fn find(&mut self, which: &Which) -> Result<Vec<Found>, Failure> {
        let Some(mut all) = self.ask(|daemon| daemon.guests(false))? else {
            let found = self.here(|guests| which.find(guests))?;
            return Ok(found.into_iter().map(Into::into).collect());
        };
        if which.all {
            return Ok(all.into_iter().map(Into::into).collect());
        }
        let mut found: Vec<Found> = Vec::new();
        for name in &which.guests {
            if found.iter().any(|f| f.name == *name || f.id == *name) {
                continue;
            }
            let at = all.iter().position(|v| v.name == *name || v.id == *name);
            let at = at.ok_or_else(|| guests::Error::NoSuchGuest(name.clone()))?;
            found.push(all.swap_remove(at).into());
        }
        Ok(found)
    }

    /// Acts on a guest: by the daemon, or here.
    fn act(
        &mut self,
        found: &Found,
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
        which: &Which,
        quiet: bool,
        verb: &'static str,
        ask: impl Fn(&Client, &str) -> Result<Value, client::Error>,
        here: impl Fn(&mut Guests<'_>, &Guest) -> Result<Value, guests::Error>,
    ) -> Result<Self, Failure> {
        let cancelled = cancellation();
        let mut actor = Actor::new(config);
        let found = actor.find(which)?;
        let bar = Bar::guests(verb, found.len() as u64, quiet || found.len() < 50);
        let mut results = Vec::with_capacity(found.len());
        for guest in &found {
            if cancelled.load(Ordering::Relaxed) {
                break;
            }
            // A dead guest can be neither paused nor resumed: named, that is an error; meant by
            // `--all`, it is not.
            if which.all && guest.state == GuestState::Dead {
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
            line(format_args!(
                "{done} {} {past}",
                if done == 1 { "guest" } else { "guests" }
            ));
        }
        for (_, result) in &self.results {
            if let Err(failure) = result {
                failure.print();
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
