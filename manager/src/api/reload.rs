//! Reload: applies the configuration's pools when the daemon starts and at SIGHUP. At SIGHUP the
//! daemon reads the configuration again and adopts every setting that can change while it runs.

use std::sync::Arc;

use super::{App, workers::blocking};
use brood_core::{
    checkpoint::unwatched,
    pool::{NewPool, Pools},
};

/// The configuration as it is now.
#[derive(Debug)]
pub struct ReloadReport {
    /// The pools that there should be.
    pub pools: Vec<NewPool>,
    /// Settings that have changed, and that only another daemon will have.
    pub later: Vec<String>,
}

/// Reads the configuration again; the error says what is wrong with it, and then nothing changes.
pub type Reload = Arc<dyn Fn() -> Result<ReloadReport, String> + Send + Sync>;

impl App {
    /// Applies the configuration's pools when the daemon starts.
    pub(super) async fn configure(self, pools: Vec<NewPool>) {
        if pools.is_empty() {
            return;
        }
        let app = self.clone();
        let configured = blocking(move || {
            app.have(&pools);
            Ok(())
        });
        // The log has the error.
        let _ = configured.await;
        self.pools_changed.notify_one();
        self.events.poke();
    }

    fn have(&self, pools: &[NewPool]) {
        for wanted in pools {
            if *self.draining.borrow() {
                return;
            }
            let pool = &wanted.name;
            // The reconciler's present fill may be obsolete.
            let interrupted = self.fills.interrupt(pool);
            let apply = |pools: &mut Pools<'_>| pools.apply(wanted, &unwatched);
            match self.workers.call(|opened| opened.pools(apply)) {
                Ok(applied) => tracing::info!(pool, "configured: {}", applied.words()),
                Err(error) => {
                    let hint = error.hint().unwrap_or_default();
                    tracing::error!(pool, hint, "not as configured: {error}");
                }
            }
            drop(interrupted);
            // The reconciler fills it now, whatever the next one takes.
            self.pools_changed.notify_one();
        }
    }

    /// Reads the configuration again, and applies its pools. Other pools stay as they are.
    pub(super) async fn reload(self, reload: Reload) {
        let app = self.clone();
        let reloaded = blocking(move || {
            let ReloadReport { pools, later } = match reload() {
                Ok(reloaded) => reloaded,
                Err(error) => {
                    tracing::error!("the configuration is not used: {error}");
                    return Ok(());
                }
            };
            app.have(&pools);
            if !later.is_empty() {
                tracing::warn!("start the daemon again for {}", later.join(", "));
            }
            tracing::info!("configuration reloaded");
            Ok(())
        });
        if let Err(problem) = reloaded.await {
            tracing::error!("configuration not reloaded: {}", problem.detail);
        }
        self.pools_changed.notify_one();
        self.events.poke();
    }
}
