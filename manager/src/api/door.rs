//! Listener with its clients: it can stop listening while it still serves the clients that came
//! before.

use std::sync::Arc;

use axum::{Router, serve::Listener};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{App, connections::Clients};

/// What clients who come to one listener find.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// What answers them.
    pub(super) router: Router,
    /// How answers write the names of their headers.
    pub(super) headers: HeaderCase,
}

/// How names of headers are written. For HTTP that is all the same, but not for every client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderCase {
    /// `content-length`
    Lower,
    /// `Content-Length`
    Title,
}

/// A listener that is served.
#[derive(Debug)]
pub(super) struct Door {
    /// It stops listening when this is dropped.
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Door {
    pub(super) fn open(
        app: &App,
        clients: &Arc<Clients>,
        listener: impl Listener,
        router: Router,
        headers: HeaderCase,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let draining = app.draining.subscribe();
        let stopped = async {
            let _ = stopped.await;
        };
        let site = Site { router, headers };
        let serving = Arc::clone(clients).serve(listener, site, draining, stopped);
        Self {
            stop,
            serving: tokio::spawn(serving),
        }
    }

    /// Stops listening; what this returns ends with its last client.
    pub(super) fn close(self) -> JoinHandle<()> {
        drop(self.stop);
        self.serving
    }
}
