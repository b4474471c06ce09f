//! Source of the picture: the daemon when one answers, else the state folder.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use jiff::Timestamp;

use super::{
    claims::{self, Heard},
    picture::{Density, Picture, PoolLine},
};
use crate::{
    api::{
        events::RestoreEvent,
        sample::HostSample,
        types::{Guest, Pool, Usage},
    },
    cli,
    client::{Client, Error},
    config::Config,
    failure::Failure,
};
use brood_core::{
    engine::Engine,
    guests::Guests,
    pool::{LOCK_LIMIT, NEVER, Pools},
    restore::SessionCache,
    state::State,
};

/// Where pictures come from.
pub(crate) struct Source {
    config: Config,
    /// The daemon that answered last.
    daemon: Option<Client>,
    here: Option<(State, Box<dyn Engine>)>,
    heard: Option<Arc<Mutex<Heard>>>,
}

/// The daemon's answers for one picture.
struct DaemonPicture {
    guests: Vec<Guest>,
    pools: Vec<Pool>,
    restores: Vec<RestoreEvent>,
    metrics: String,
    pid: u32,
}

impl Source {
    /// One that knows of claims what is in `heard`, too.
    pub(crate) fn new(config: &Config, heard: Option<Arc<Mutex<Heard>>>) -> Self {
        Self {
            config: config.clone(),
            daemon: None,
            here: None,
            heard,
        }
    }

    /// A picture of now.
    ///
    /// # Errors
    /// When there is no daemon, and the state cannot be read.
    pub(crate) fn look(&mut self) -> Result<Picture, Failure> {
        let engine = cli::output::engine(&self.config)?;
        let facts = cli::output::facts(&self.config, &*engine, None)?;
        if self.daemon.is_none() {
            self.daemon = cli::daemon::daemon(&self.config);
        }
        let asked = match self.daemon.as_ref().map(ask) {
            Some(asked) => cli::daemon::done(asked)?,
            None => None,
        };
        let (guests, pools, restores, daemon) = match asked {
            Some(asked) => {
                let counted = claims::counted(&asked.metrics);
                let now = Instant::now();
                let line = |pool: Pool| {
                    let counted = counted
                        .get(&pool.settings.name)
                        .copied()
                        .unwrap_or_default();
                    let claims = match &self.heard {
                        Some(heard) => {
                            claims::lock(heard).of_pool(&pool.settings.name, counted, now)
                        }
                        None => Heard::default().of_pool(&pool.settings.name, counted, now),
                    };
                    let claims = Some(claims);
                    PoolLine { pool, claims }
                };
                let pools = asked.pools.into_iter().map(line).collect();
                (asked.guests, pools, asked.restores, Some(asked.pid))
            }
            None => {
                self.daemon = None;
                let (guests, pools) = self.read()?;
                let line = |pool| PoolLine { pool, claims: None };
                let pools = pools.into_iter().map(line).collect();
                (guests, pools, Vec::new(), None)
            }
        };
        Ok(Picture {
            at: Timestamp::now().to_string(),
            daemon,
            host: HostSample::of(&facts),
            density: Density::of(&guests),
            pools,
            restores,
            guests,
        })
    }

    /// Reads the state.
    fn read(&mut self) -> Result<(Vec<Guest>, Vec<Pool>), Failure> {
        if self.here.is_none() {
            self.here = Some((
                cli::output::state(&self.config)?,
                cli::output::engine(&self.config)?,
            ));
        }
        let (state, engine) = self.here.as_mut().expect("it was just made");
        let mut guests = Guests {
            state,
            engine: &**engine,
            cancelled: &NEVER,
        };
        let all = guests.list()?;
        let overheads = guests.overheads()?;
        let views = all.iter().map(|guest| {
            let usage = guest.process().and_then(|_| guests.usage(guest).ok());
            let usage = usage.map(|usage| Usage::new(usage, overheads.of(&guest.row.sha256)));
            Guest::new(guest, guests.engine.kind(), usage)
        });
        let views = views.collect();
        let facts = |_: &std::path::Path| unreachable!("pools are only listed");
        let pools = Pools {
            state,
            engine: &**engine,
            facts: &facts,
            standing: &SessionCache::default(),
            cancelled: &NEVER,
            lock_limit: LOCK_LIMIT,
        };
        let pools = pools.list()?.into_iter().map(Into::into);
        Ok((views, pools.collect()))
    }
}

fn ask(client: &Client) -> Result<DaemonPicture, Error> {
    Ok(DaemonPicture {
        guests: client.guests(true)?,
        pools: client.pools()?,
        restores: client.restores()?,
        metrics: client.metrics()?,
        pid: client.daemon().pid,
    })
}
