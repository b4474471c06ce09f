//! Listeners of the event stream (server-sent events): which events each wants, and what it has
//! missed.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::ready,
    sync::Arc,
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
use serde::Deserialize;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};
use utoipa::IntoParams;

use super::{
    App,
    connections::{Client, Listens},
    events::{Message, StreamStart, json},
    extract::Query,
    problem::Problem,
    types::Guest,
    watch::{Observation, ObservedGuest, look},
};

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
