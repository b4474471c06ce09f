//! Connections on which another protocol has taken the place of HTTP.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::{Client, RequestGuard};

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
    pub(in crate::api) fn upgrade(self: &Arc<Self>) -> Upgraded {
        self.upgrades.count.fetch_add(1, Ordering::AcqRel);
        Upgraded {
            client: Arc::clone(self),
            _answering: RequestGuard::begin(self),
        }
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        self.client.upgrades.count.fetch_sub(1, Ordering::AcqRel);
        self.client.upgrades.over.notify_one();
    }
}
