//! Event stream (server-sent events): what happens to guests, the progress of restores, and
//! counters of their cost.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{
    Mutex as AsyncMutex, Notify,
    broadcast::{self, error::RecvError},
    watch,
};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    connections::{Client, Listens},
    extract::Query,
    problem::Problem,
    types::{Guest, report},
    watch::{Observation, ObservedGuest, look},
};
use brood_core::{
    checkpoint::Progress,
    restore::{RestoreFailure, RestoreStep},
};

/// Number of remembered events: a listener who has missed fewer receives them; for one who has
/// missed more, the stream starts again.
const BACKLOG: usize = 1024;
/// How long events are remembered after the last listener has gone.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Time after which a disconnected listener is to reconnect.
const RETRY: Duration = Duration::from_secs(2);
/// Interval of keep-alive messages to a listener.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The header with the id of the last event that a listener has seen.
const LAST_EVENT_ID: &str = "last-event-id";
/// All kinds of events.
const KINDS: [&str; 9] = [
    "claim", "counters", "guest", "guests", "pools", "release", "restore", "resume", "suspend",
];

/// Where events go out from.
#[derive(Debug)]
pub(super) struct Events {
    /// Prefix of ids, which tells this daemon's from those of others.
    life: String,
    ring: Mutex<Ring>,
    sender: broadcast::Sender<Message>,
    poke: Notify,
    /// The last full list for a new listener, and when it was begun.
    everything: AsyncMutex<Option<(Instant, Arc<Observation>)>>,
}

/// The last events.
#[derive(Debug)]
struct Ring {
    /// Number of the last event.
    last: u64,
    /// Every event from this number on is here.
    from: u64,
    messages: VecDeque<Message>,
    /// The last time when there was a listener.
    heard: Option<Instant>,
}

impl Ring {
    fn push(&mut self, message: Message) {
        self.messages.push_back(message);
        if self.messages.len() > BACKLOG
            && let Some(forgotten) = self.messages.pop_front()
        {
            self.from = forgotten.number + 1;
        }
    }

    fn forget(&mut self) {
        self.messages.clear();
        self.from = self.last + 1;
    }

    /// The events after `seen`; `None` when not all of them are remembered.
    fn after(&self, seen: u64) -> Option<VecDeque<Message>> {
        if seen > self.last || seen + 1 < self.from {
            return None;
        }
        let missed = self.messages.iter().filter(|m| m.number > seen);
        Some(missed.cloned().collect())
    }
}

#[derive(Clone, Debug)]
struct Message {
    number: u64,
    kind: &'static str,
    data: Arc<str>,
    /// The request that it is of.
    request: Option<Arc<str>>,
    /// The pool that it is about.
    pool: Option<Arc<str>>,
}

/// Subject of an event.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About<'a> {
    /// The request that does it.
    pub(super) request: Option<&'a str>,
    /// The pool that it happens to.
    pub(super) pool: Option<&'a str>,
}

impl<'a> About<'a> {
    /// About a pool.
    pub(super) fn pool(pool: &'a str) -> Self {
        Self {
            pool: Some(pool),
            ..Self::default()
        }
    }
}

fn json(data: &impl Serialize) -> Arc<str> {
    let data = serde_json::to_string(data).expect("events are plain data");
    data.into()
}

/// What a new listener begins with.
struct StreamStart {
    receiver: broadcast::Receiver<Message>,
    /// The events that it has missed; `None` when the stream must start again.
    missed: Option<VecDeque<Message>>,
    /// Number of the last event before.
    last: u64,
}

impl Events {
    pub(super) fn new() -> Self {
        Self {
            life: format!("{:x}", Timestamp::now().as_millisecond()),
            ring: Mutex::new(Ring {
                last: 0,
                from: 1,
                messages: VecDeque::new(),
                heard: None,
            }),
            sender: broadcast::channel(BACKLOG).0,
            poke: Notify::new(),
            everything: AsyncMutex::default(),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event to all listeners, and remembers it for disconnected ones.
    pub(super) fn send(&self, kind: &'static str, about: About<'_>, data: &impl Serialize) {
        let mut ring = self.ring();
        ring.last += 1;
        if self.heard() {
            ring.heard = Some(Instant::now());
        }
        if ring.heard.is_none_or(|heard| heard.elapsed() > REMEMBERED) {
            ring.forget();
            return;
        }
        let message = Message {
            number: ring.last,
            kind,
            data: json(data),
            request: about.request.map(Into::into),
            pool: about.pool.map(Into::into),
        };
        ring.push(message.clone());
        // It fails only when the last listener has just gone.
        let _ = self.sender.send(message);
    }

    /// Sends an event to all listeners that is soon out of date, and so not remembered.
    pub(super) fn send_passing(&self, kind: &'static str, data: &impl Serialize) {
        if self.heard() {
            let number = self.ring().last;
            let _ = self.sender.send(Message {
                number,
                kind,
                data: json(data),
                request: None,
                pool: None,
            });
        }
    }

    /// Whether there are listeners.
    pub(super) fn heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Begins to listen, after the event with the id `seen`, if there was one.
    fn begin(&self, seen: Option<&str>) -> StreamStart {
        let mut ring = self.ring();
        ring.heard = Some(Instant::now());
        let seen = seen.and_then(|id| {
            let number = id.strip_prefix(&self.life)?.strip_prefix('-')?;
            number.parse().ok()
        });
        StreamStart {
            receiver: self.sender.subscribe(),
            missed: seen.and_then(|seen| ring.after(seen)),
            last: ring.last,
        }
    }

    /// Has the guests looked at now: something was done to them.
    pub(super) fn poke(&self) {
        self.poke.notify_one();
    }

    /// Waits for a poke.
    pub(super) async fn poked(&self) {
        self.poke.notified().await;
    }
}

/// Progress of a restore, with its latest failure or warning.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct RestoreEvent {
    /// Id of the request that restores; empty when the daemon fills a pool by itself.
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
    /// Bytes of the checkpoint that were checked so far, during the check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verified_bytes: Option<u64>,
    /// Bytes to check in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verify_bytes: Option<u64>,
    /// The latest failed guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<report::RestoreFailure>)]
    pub(crate) failure: Option<RestoreFailure>,
    /// The latest warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<String>,
}

impl RestoreEvent {
    /// Counts a step, and tells of it.
    pub(crate) fn count(&mut self, step: &RestoreStep<'_>) {
        self.failure = None;
        match step {
            RestoreStep::Restored(_) => self.restored += 1,
            RestoreStep::Failed(failure) => {
                self.failed += 1;
                self.failure = Some((*failure).clone());
            }
            RestoreStep::Admitted { .. }
            | RestoreStep::NurseryReplaced
            | RestoreStep::Exposed(_) => {}
        }
        self.warning = step.warning();
    }

    /// Tells how far the check of the checkpoint is.
    pub(crate) fn verifying(&self, progress: Progress) -> Self {
        Self {
            verified_bytes: Some(progress.done.0),
            verify_bytes: Some(progress.total.0),
            ..self.clone()
        }
    }
}

/// What to tell.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// Only the progress of the restore of the request with this id.
    request: Option<String>,
    /// Only events of these types, with commas between them.
    #[param(example = "claim,release")]
    types: Option<String>,
    /// Only events about this pool.
    #[param(example = "web")]
    pool: Option<String>,
}

/// Which events a listener wants.
#[derive(Debug)]
struct Filter {
    request: Option<String>,
    types: Option<Vec<String>>,
    pool: Option<String>,
}

impl TryFrom<StreamQuery> for Filter {
    type Error = Problem;

    fn try_from(listening: StreamQuery) -> Result<Self, Problem> {
        let types = listening.types.map(|types| {
            let types: Vec<String> = types.split(',').map(str::to_owned).collect();
            types
        });
        let unknown = types
            .iter()
            .flatten()
            .find(|kind| !KINDS.contains(&kind.as_str()));
        if let Some(unknown) = unknown {
            let problem = Problem::bad_request(format!("there are no events {unknown:?}"));
            return Err(problem.with_hint(format!("types are: {}", KINDS.join(", "))));
        }
        Ok(Self {
            request: listening.request,
            types,
            pool: listening.pool,
        })
    }
}

impl Filter {
    fn wants(&self, kind: &str) -> bool {
        let wanted = |types: &Vec<String>| types.iter().any(|wanted| wanted == kind);
        self.types.as_ref().is_none_or(wanted)
    }

    /// Full lists are for listeners without a request.
    fn wants_list(&self, kind: &str) -> bool {
        self.request.is_none() && self.wants(kind)
    }

    fn passes(&self, message: &Message) -> bool {
        let request = self.request.as_deref();
        let pool = self.pool.as_deref();
        self.wants(message.kind)
            && request.is_none_or(|id| message.request.as_deref() == Some(id))
            // All pools are told of at once; the others' are taken out.
            && pool.is_none_or(|pool| message.pool.as_deref() == Some(pool) || message.kind == "pools")
    }
}

/// Streams events (server-sent events)
///
/// Begins with an event `guests`: all guests (an array of Guest), and `pools`: all pools (an array
/// of Pool). Then come `guest` (GuestEvent: a guest has changed, by whatever cause), `pools` (a
/// pool has changed), `restore` (RestoreEvent: progress of a restore by the API), `claim` and
/// `release` (ClaimEvent, ReleaseEvent: a claim was made, or is over), `suspend` and `resume`
/// (SuspendedClaim, ResumeEvent: a claim was suspended or resumed) and, every two seconds,
/// `counters` (Sample).
///
/// Each event has an id. A client that was disconnected and sends the last id that it has seen, as
/// `Last-Event-ID`, receives the events since then; if these are too many or too old, the stream
/// starts again with `guests`. The stream also starts again for a client that is too slow. With
/// `request`, the stream has only the progress of that request's restore; with `pool`, only events
/// about that pool and its guests.
#[utoipa::path(
    get, path = "/events", tag = "host", operation_id = "events",
    params(
        StreamQuery,
        ("last-event-id" = Option<String>, Header, description = "Id of the last event that was seen"),
    ),
    responses(
        (status = 200, description = "The stream", body = String, content_type = "text/event-stream"),
        (status = 503, description = "As many streams are open as may be", body = Problem,
         content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(app): State<App>,
    Extension(client): Extension<Arc<Client>>,
    headers: HeaderMap,
    Query(listening): Query<StreamQuery>,
) -> Result<impl IntoResponse, Problem> {
    let only = Filter::try_from(listening)?;
    let listens = client.listens()?;
    let seen = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    let since = Instant::now();
    let StreamStart {
        receiver,
        missed,
        last,
    } = app.events.begin(seen);
    let listener = Listener {
        _listens: listens,
        receiver,
        draining: app.draining.subscribe(),
        behind: missed.is_none().then_some((since, last)),
        waiting: missed.unwrap_or_default(),
        only,
        app,
    };
    let hello = stream::once(ready(Ok(Event::default().retry(RETRY))));
    let stream = hello.chain(listener.stream());
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// A listener.
struct Listener {
    _listens: Listens,
    app: App,
    receiver: broadcast::Receiver<Message>,
    draining: watch::Receiver<bool>,
    /// Since when, and after which event it must be told everything, if it must.
    behind: Option<(Instant, u64)>,
    /// Messages to be sent before any new one.
    waiting: VecDeque<Message>,
    only: Filter,
}

impl Listener {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut listener| {
            let message = listener.next().await?;
            let id = format!("{}-{}", listener.app.events.life, message.number);
            let event = Event::default()
                .event(message.kind)
                .id(id)
                .data(message.data);
            Some((Ok(event), listener))
        })
    }

    /// The next event; none when the daemon drains, or cannot tell any more.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((since, last)) = self.behind.take() {
                self.tell_everything(since, last).await.ok()?;
            }
            let message = match self.waiting.pop_front() {
                Some(message) => message,
                None => tokio::select! {
                    message = self.receiver.recv() => match message {
                        Ok(message) => message,
                        Err(RecvError::Lagged(_)) => {
                            let since = Instant::now();
                            let again = self.app.events.begin(None);
                            self.receiver = again.receiver;
                            self.behind = Some((since, again.last));
                            continue;
                        }
                        Err(RecvError::Closed) => return None,
                    },
                    _ = self.draining.wait_for(|draining| *draining) => return None,
                },
            };
            if self.only.passes(&message) {
                return Some(self.cut(message));
            }
        }
    }

    /// Puts all guests and pools before the next event.
    async fn tell_everything(&mut self, since: Instant, last: u64) -> Result<(), Problem> {
        let (guests, pools) = (
            self.only.wants_list("guests"),
            self.only.wants_list("pools"),
        );
        if !guests && !pools {
            return Ok(());
        }
        let look = self.app.everything(since).await?;
        let pool = self.only.pool.as_deref();
        let mut tell = |kind, data| {
            self.waiting.push_back(Message {
                number: last,
                kind,
                data,
                request: None,
                pool: pool.map(Into::into),
            });
        };
        if guests {
            let of_pool = |seen: &&ObservedGuest| pool.is_none_or(|pool| seen.pool() == Some(pool));
            let guests = look.guests.values().filter(of_pool);
            let views: Vec<&Guest> = guests.map(|seen| &seen.view).collect();
            tell("guests", json(&views));
        }
        if pools {
            tell("pools", json(&look.pools));
        }
        Ok(())
    }

    /// Without the pools that it did not ask for.
    fn cut(&self, message: Message) -> Message {
        let Some(wanted) = self
            .only
            .pool
            .as_deref()
            .filter(|_| message.kind == "pools")
        else {
            return message;
        };
        let Ok(serde_json::Value::Array(mut pools)) = serde_json::from_str(&message.data) else {
            return message;
        };
        pools.retain(|pool| pool["name"] == wanted);
        Message {
            data: json(&pools),
            ..message
        }
    }
}

impl App {
    /// All guests and pools as they were at `since` or later. However many want to know at once,
    /// they are looked at by one after the other, and one look is for all who came before it.
    async fn everything(&self, since: Instant) -> Result<Arc<Observation>, Problem> {
        let mut last = self.events.everything.lock().await;
        if let Some((begun, look)) = &*last
            && *begun >= since
        {
            return Ok(Arc::clone(look));
        }
        let begun = Instant::now();
        let look = Arc::new(look(self).await?);
        *last = Some((begun, Arc::clone(&look)));
        Ok(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_told_as_long_as_all_of_it_is_remembered() {
        let events = Events::new();
        let id = |number: u64| format!("{}-{number}", events.life);
        let missed = |seen: &str| {
            let missed = events.begin(Some(seen)).missed?;
            Some(missed.iter().map(|m| m.number).collect::<Vec<_>>())
        };
        // Before anybody has listened, nothing is remembered.
        events.send("claim", About::default(), &0);
        let listener = events.begin(None);
        assert!(listener.missed.is_none());
        assert_eq!(listener.last, 1);
        events.send("claim", About::pool("web"), &1);
        events.send_passing("counters", &2);
        events.send("claim", About::default(), &3);
        drop(listener);
        // The listener is cut off; what happens now is remembered for it.
        events.send("claim", About::default(), &4);
        assert_eq!(missed(&id(1)), Some(vec![2, 3, 4]));
        assert_eq!(missed(&id(3)), Some(vec![4]));
        assert_eq!(missed(&id(4)), Some(vec![]));
        // An event of another daemon, of the future, or older than the remembered ones.
        assert_eq!(missed("1-3"), None);
        assert_eq!(missed(&id(5)), None);
        assert_eq!(missed(&id(0)), None);
        for _ in 0..BACKLOG {
            events.send("claim", About::default(), &5);
        }
        assert_eq!(missed(&id(3)), None);
        assert_eq!(missed(&id(4)).map(|missed| missed.len()), Some(BACKLOG));
    }

    #[test]
    fn events_are_chosen_by_type_pool_and_request() {
        let message = |kind, request: Option<&str>, pool: Option<&str>| Message {
            number: 1,
            kind,
            data: "{}".into(),
            request: request.map(Into::into),
            pool: pool.map(Into::into),
        };
        let filter = |request: Option<&str>, types: Option<&str>, pool: Option<&str>| {
            Filter::try_from(StreamQuery {
                request: request.map(Into::into),
                types: types.map(Into::into),
                pool: pool.map(Into::into),
            })
        };
        let all = filter(None, None, None).unwrap();
        let claims = filter(None, Some("claim,release"), Some("web")).unwrap();
        let one = filter(Some("a"), None, None).unwrap();
        let claim = message("claim", None, Some("web"));
        let restore = message("restore", Some("a"), None);
        assert!(all.passes(&claim) && claims.passes(&claim) && !one.passes(&claim));
        assert!(all.passes(&restore) && !claims.passes(&restore) && one.passes(&restore));
        assert!(!claims.passes(&message("claim", None, Some("api"))));
        assert!(!claims.wants_list("pools") && all.wants_list("pools") && !one.wants_list("pools"));
        assert_eq!(filter(None, Some("claims"), None).unwrap_err().status, 400);
    }
}
