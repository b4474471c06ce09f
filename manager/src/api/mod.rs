//! Daemon (`brood serve`): the API over HTTP, on a socket in the state folder and, if asked for, on
//! a port of this machine.
//!
//! The daemon keeps no data of its own. It acts as the command line does, on the same state folder;
//! both can be used at once. It can be killed and replaced at any time: guests are not its children
//! in any way that matters, and the state tells it of all of them.

mod checkpoints;
pub(crate) mod claims;
mod cloud_hypervisor;
mod connections;
mod disks;
mod door;
mod error;
pub(crate) mod events;
pub(crate) mod evict;
mod exec_stream;
mod extract;
mod fills;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod guest_files;
pub(crate) mod guests;
pub(crate) mod host;
mod in_flight;
mod listener;
mod memory;
mod metrics;
mod openapi;
mod page;
mod permits;
mod pool_reconciler;
pub(crate) mod pools;
pub(crate) mod problem;
pub(crate) mod programs;
mod reload;
mod request;
pub(crate) mod restores;
pub(crate) mod sample;
mod serve;
mod socket;
pub(crate) mod suspended_claims;
mod watch;
mod workers;

use std::{
    ops::Deref,
    path::PathBuf,
    sync::{self, Arc},
};

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
};
use tokio::sync::{Notify, watch as channel};
use tower_http::catch_panic::CatchPanicLayer;

pub use error::Error;
pub use openapi::document;
pub use reload::{Reload, ReloadReport};
pub use serve::{Listen, ServeConfig, ServeEnd, serve};

use crate::types;

use cloud_hypervisor::GuestSockets;
use connections::Entrance;
use events::Events;
use fills::Fills;
use in_flight::InFlight;
use metrics::Metrics;
use permits::Permits;
use problem::Problem;
use request::Token;
use sample::Sampler;
use workers::Workers;

/// What every request is answered with.
#[derive(Clone, Debug)]
struct App {
    parts: Arc<Parts>,
    /// How its client came.
    by: Entrance,
}

#[derive(Debug)]
struct Parts {
    workers: Arc<Workers>,
    events: Events,
    metrics: Metrics,
    sampler: Sampler,
    in_flight: InFlight,
    /// Told when pools were changed or claimed from: the reconciler looks at them.
    pools_changed: Notify,
    /// Told when there may be room for a claim that waits.
    room: Notify,
    /// Fills of pools that the reconciler has under way.
    fills: Fills,
    /// For calls that may take long.
    permits: Permits,
    /// Sockets of single guests, with Cloud Hypervisor's API.
    guest_sockets: GuestSockets,
    /// The folder of checkpoints that are named without one.
    checkpoints: PathBuf,
    /// Becomes true when the daemon is to end.
    draining: channel::Sender<bool>,
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl App {
    /// For clients who come so.
    fn for_clients(&self, by: Entrance) -> Self {
        Self {
            parts: Arc::clone(&self.parts),
            by,
        }
    }
}

/// All routes; with a token, only for requests that bear it.
fn router(app: App, token: Option<Token>) -> Router {
    let routes = openapi::routes()
        .0
        .merge(page::routes())
        .fallback(async |uri: Uri| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no-such-path",
                format!("there is nothing at {}", uri.path()),
            )
            .with_hint("GET /openapi.json lists all paths")
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                format!("{} cannot be used with {method}", uri.path()),
            )
            .with_hint("GET /openapi.json lists the methods of each path")
        })
        .layer(CatchPanicLayer::custom(|_| {
            use axum::response::IntoResponse;
            Problem::internal().into_response()
        }));
    let routes = match token {
        Some(token) => routes.layer(middleware::from_fn_with_state(token, request::require)),
        None => routes,
    };
    routes
        .layer(middleware::from_fn_with_state(
            app.clone(),
            request::observe,
        ))
        .with_state(app)
}
