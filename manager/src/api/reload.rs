//! SIGHUP: the configuration is read again, and what can change while the daemon runs does.

use std::sync::Arc;

use super::{App, workers::blocking};
use crate::pool::NewPool;

/// What the configuration says now.
#[derive(Debug)]
pub struct Reloaded {
    /// The pools that there should be.
    pub pools: Vec<NewPool>,
    /// Settings that have changed, and that only another daemon will have.
    pub later: Vec<String>,
}

/// Reads the configuration again; the error says what is wrong with it, and then nothing changes.
pub type Reload = Arc<dyn Fn() -> Result<Reloaded, String> + Send + Sync>;

impl App {
    /// Reads the configuration again, and has the pools be what it says. Pools that it does not
    /// name stay as they are.
    pub(super) async fn reload(self, reload: Reload) {
        let app = self.clone();
        let reloaded = blocking(move || {
            let Reloaded { pools, later } = match reload() {
                Ok(reloaded) => reloaded,
                Err(error) => {
                    tracing::error!("the configuration is not used: {error}");
                    return Ok(());
                }
            };
            for wanted in &pools {
                match app
                    .workers
                    .pools(|pools| pools.apply(wanted, &crate::checkpoint::unwatched))
                {
                    Ok(applied) => tracing::info!(pool = wanted.name, ?applied, "configured"),
                    Err(error) => {
                        tracing::error!(pool = wanted.name, "not as configured: {error}");
                    }
                }
            }
            if !later.is_empty() {
                tracing::warn!("start the daemon again for {}", later.join(", "));
            }
            tracing::info!("the configuration was read again");
            Ok(())
        });
        if let Err(problem) = reloaded.await {
            tracing::error!(?problem, "the configuration was not read again");
        }
        self.pools_changed.notify_one();
        self.events.poke();
    }
}
