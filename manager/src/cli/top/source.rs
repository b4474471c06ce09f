//! Source of the picture: the daemon when one answers, else the state folder.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use jiff::Timestamp;

use super::{
    claims::{self, ClaimNews},
    picture::{Density, Picture, PoolLine},
};
use crate::{
    api::sample::HostSample,
    cli::output::{local, operations},
    client::Auto,
    config::Config,
    failure::Failure,
    ops::StateFolder,
    types::Pool,
};

/// Where pictures come from.
pub(crate) struct Source {
    config: Config,
    ops: Auto,
    heard: Option<Arc<Mutex<ClaimNews>>>,
}

impl Source {
    /// One that knows of claims what is in `heard`, too.
    pub(crate) fn new(config: &Config, heard: Option<Arc<Mutex<ClaimNews>>>) -> Self {
        Self {
            config: config.clone(),
            ops: operations(config),
            heard,
        }
    }

    /// A picture of now.
    ///
    /// # Errors
    /// When there is no daemon, and the state cannot be read.
    pub(crate) fn look(&mut self) -> Result<Picture, Failure> {
        let facts = local(&self.config).facts(None)?;
        self.ops.find_daemon(&self.config);
        let (pools, guests, activity) = self
            .ops
            .run(|ops| Ok((ops.pools()?, ops.guests("", true)?, ops.activity()?)))?;
        let counted = activity
            .as_ref()
            .map(|daemon| claims::counted(&daemon.metrics));
        let now = Instant::now();
        let line = |pool: Pool| {
            let name = &pool.settings.name;
            let claims = counted.as_ref().map(|counted| {
                let counted = counted.get(name).copied().unwrap_or_default();
                match &self.heard {
                    Some(heard) => claims::lock(heard).of_pool(name, counted, now),
                    None => ClaimNews::default().of_pool(name, counted, now),
                }
            });
            PoolLine { pool, claims }
        };
        let (daemon, restores) = activity.map(|daemon| (daemon.pid, daemon.restores)).unzip();
        Ok(Picture {
            at: Timestamp::now().to_string(),
            daemon,
            host: HostSample::of(&facts),
            density: Density::of(&guests),
            pools: pools.into_iter().map(line).collect(),
            restores: restores.unwrap_or_default(),
            guests,
        })
    }
}
