//! The event stream: what happens to guests, how restores come along, and what it all costs, as
//! server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{
    Notify,
    broadcast::{self, error::RecvError},
    watch,
};
use utoipa::{IntoParams, ToSchema};

use super::{App, extract::Query, problem::Problem, workers};
use crate::{guests::View, pool::Pool, restore::job::FailureView};

/// Events that a slow listener may be behind before it is told everything anew.
const BACKLOG: usize = 1024;

/// Where events go out from.
#[derive(Debug)]
pub(super) struct Events {
    sender: broadcast::Sender<Message>,
    poke: Notify,
}

#[derive(Clone, Debug)]
struct Message {
    kind: &'static str,
    data: Arc<str>,
    /// The request that it is of.
    request: Option<Arc<str>>,
}

impl Message {
    fn new(kind: &'static str, data: &impl Serialize) -> Self {
        let data = serde_json::to_string(data).expect("events are plain data");
        Self {
            kind,
            data: data.into(),
            request: None,
        }
    }
}

impl Events {
    pub(super) fn new() -> Self {
        Self {
            sender: broadcast::channel(BACKLOG).0,
            poke: Notify::new(),
        }
    }

    /// Tells everybody who listens.
    pub(super) fn send(&self, kind: &'static str, data: &impl Serialize) {
        if self.heard() {
            // It fails only when the last listener has just gone.
            let _ = self.sender.send(Message::new(kind, data));
        }
    }

    /// The same, of what a request does.
    pub(super) fn send_of(&self, request: &str, kind: &'static str, data: &impl Serialize) {
        if self.heard() {
            let _ = self.sender.send(Message {
                request: Some(request.into()),
                ..Message::new(kind, data)
            });
        }
    }

    /// Whether anybody listens.
    pub(super) fn heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Has the guests looked at now: something was done to them.
    pub(super) fn poke(&self) {
        self.poke.notify_one();
    }

    /// Until somebody pokes.
    pub(super) async fn poked(&self) {
        self.poke.notified().await;
    }
}

/// How a restore comes along, and what has happened last.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct RestoreEvent {
    /// Id of the request that restores; empty when nobody asked for it: the daemon fills a pool.
    pub(crate) request_id: String,
    /// The pool that is filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pool: Option<String>,
    /// The bundle.
    pub(crate) checkpoint: String,
    /// Guests asked for.
    pub(crate) asked: u32,
    /// Guests restored so far.
    pub(crate) restored: u32,
    /// Guests failed so far.
    pub(crate) failed: u32,
    /// How much of the checkpoint was checked, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verified_bytes: Option<u64>,
    /// How much there is to check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verify_bytes: Option<u64>,
    /// The guest that has failed just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<FailureView>,
    /// What was odd just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<String>,
}

/// What to tell.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Listening {
    /// Only how the restore of the request with this id comes along.
    request: Option<String>,
}

/// What happens, as it happens (server-sent events)
///
/// Begins with an event `guests`: all guests (an array of Guest), and `pools`: all pools (an array
/// of Pool). Then come `guest` (GuestEvent: something happened to one, whoever did it), `pools`
/// (when any has changed), `restore` (RestoreEvent: how a restore that the API was asked for comes
/// along), `claim` (ClaimEvent), `suspend` and `resume` (SuspendedClaim, ResumeEvent: a claim rests, or
/// is back) and, every two seconds, `counters` (Sample). A client that is too slow is told everything
/// anew, from `guests` on. Whoever listens for one request is told only how its restore comes along.
#[utoipa::path(
    get, path = "/events", tag = "host", operation_id = "events",
    params(Listening),
    responses(
        (status = 200, description = "The stream", body = String, content_type = "text/event-stream"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(app): State<App>,
    Query(listening): Query<Listening>,
) -> impl IntoResponse {
    let listener = Listener {
        receiver: app.events.sender.subscribe(),
        draining: app.draining.subscribe(),
        behind: true,
        only: listening.request,
        pools: None,
        app,
    };
    Sse::new(listener.stream()).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

/// Somebody who listens.
struct Listener {
    app: App,
    receiver: broadcast::Receiver<Message>,
    draining: watch::Receiver<bool>,
    /// Whether it must be told everything first.
    behind: bool,
    /// What it must be told after that.
    pools: Option<Message>,
    /// The request that it wants to be told of, and of nothing else.
    only: Option<String>,
}

impl Listener {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut listener| {
            let message = listener.next().await?;
            let event = Event::default().event(message.kind).data(message.data);
            Some((Ok(event), listener))
        })
    }

    /// The next event; none when the daemon drains, or cannot tell any more.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if std::mem::take(&mut self.behind) && self.only.is_none() {
                let (guests, pools) = everything(&self.app).await.ok()?;
                self.pools = Some(Message::new("pools", &pools));
                return Some(Message::new("guests", &guests));
            }
            if let Some(pools) = self.pools.take() {
                return Some(pools);
            }
            tokio::select! {
                message = self.receiver.recv() => match message {
                    Ok(message) => {
                        if self.only.is_none() || self.only.as_deref() == message.request.as_deref() {
                            return Some(message);
                        }
                    }
                    Err(RecvError::Lagged(_)) => {
                        self.receiver = self.receiver.resubscribe();
                        self.behind = true;
                    }
                    Err(RecvError::Closed) => return None,
                },
                _ = self.draining.wait_for(|draining| *draining) => return None,
            }
        }
    }
}

async fn everything(app: &App) -> Result<(Vec<View>, Vec<Pool>), Problem> {
    let workers = Arc::clone(&app.workers);
    workers::blocking(move || {
        let kind = workers.engine().kind();
        let guests = workers.call(|state, engine| workers::guests(state, engine).list())?;
        let guests = guests
            .iter()
            .map(|guest| View::new(guest, kind, None))
            .collect();
        Ok((guests, workers.pools(|pools| pools.list())?))
    })
    .await
}
