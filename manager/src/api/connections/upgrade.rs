//! Connections on which another protocol has taken the place of HTTP.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::http::StatusCode;
use tokio::sync::Notify;

use super::{Client, RequestGuard};
use crate::api::problem::Problem;

/// How many upgrades of a connection go on: one, if any.
#[derive(Debug, Default)]
pub(super) struct Upgrades {
    count: AtomicUsize,
    /// Told when one is over.
    over: Notify,
}

impl Upgrades {
    /// Waits until none goes on.
    pub(super) async fn until_over(&self) {
        while self.count.load(Ordering::Acquire) > 0 {
            self.over.notified().await;
        }
    }
}

/// An upgrade. The connection counts as one with an open request until this is dropped.
pub(in crate::api) struct Upgraded {
    client: Arc<Client>,
    _answering: RequestGuard,
}

impl Client {
    /// Begins an upgrade, before its request is answered.
    ///
    /// # Errors
    /// When there are as many as may be: each may have a long message half sent.
    pub(in crate::api) fn upgrade(self: &Arc<Self>) -> Result<Upgraded, Problem> {
        let upgraded = Upgraded {
            client: Arc::clone(self),
            _answering: RequestGuard::begin(self),
        };
        self.upgrades.count.fetch_add(1, Ordering::AcqRel);
        let most = self.of.connections_max.div_ceil(16);
        if self.of.websockets.fetch_add(1, Ordering::AcqRel) < most {
            return Ok(upgraded);
        }
        let detail = format!("{most} websockets are open over the {}", self.of.by.name());
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail);
        Err(problem.with_hint("close some, or try again later"))
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        self.client.of.websockets.fetch_sub(1, Ordering::AcqRel);
        self.client.upgrades.count.fetch_sub(1, Ordering::AcqRel);
        self.client.upgrades.over.notify_one();
    }
}
