//! Room for bodies of requests and answers that the clients of one entrance have the daemon keep in
//! memory.
//!
//! Small bodies need no room: there are as many of them as connections. A large answer that its
//! client does not read keeps its room until the client is closed, which happens when the client has
//! read nothing for as long as it may be idle, or as soon as another client wants the room.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{Response, StatusCode, header},
    response::IntoResponse,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Client, Clients};
use crate::api::{
    problem::Problem,
    request::{BODY_MAX, is_streamed},
};

/// Memory for bodies of requests, and as much for answers: for each connection, at least, and at
/// most.
const CONNECTION_KIB: usize = 32;
const LEAST_KIB: usize = 4 << 10;
const MOST_KIB: usize = 64 << 10;
/// Bodies that need no room: of a request, and of an answer.
const SMALL_REQUEST: u64 = 16 << 10;
const SMALL_ANSWER: u64 = 64 << 10;
/// Large answers that are there and wait for room.
const WAITING_ANSWERS: usize = 16;
/// How long a body waits for room.
const TURN: Duration = Duration::from_secs(30);
/// A client that has read nothing for so long may be closed for another.
const STALLED: Duration = Duration::from_secs(1);

/// Room of one entrance.
#[derive(Debug)]
pub(super) struct Room {
    kib: usize,
    requests: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Room {
    pub(super) fn new(connections_max: usize) -> Self {
        let kib = (connections_max * CONNECTION_KIB).clamp(LEAST_KIB, MOST_KIB);
        Self {
            kib,
            requests: Arc::new(Semaphore::new(kib)),
            answers: Arc::new(Semaphore::new(kib)),
            waiting: Semaphore::new(WAITING_ANSWERS),
        }
    }

    /// How much room a body takes; a larger one than there is room for takes all of it.
    fn kib(&self, bytes: u64) -> u32 {
        let kib = usize::try_from(bytes.div_ceil(1 << 10)).unwrap_or(usize::MAX);
        u32::try_from(kib.min(self.kib)).unwrap_or(u32::MAX)
    }
}

/// Most bytes of a request's body that are in memory.
pub(in crate::api) fn body_length(request: &Request) -> u64 {
    if is_streamed(request) || request.body().is_end_stream() {
        return 0;
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.map_or(BODY_MAX, |length: u64| length.min(BODY_MAX))
}

/// The room of a request's body, until the request is answered.
pub(in crate::api) struct BodyRoom {
    _room: OwnedSemaphorePermit,
}

/// The room of a large answer, until all of it is sent.
pub(super) struct AnswerRoom {
    client: Arc<Client>,
    _room: OwnedSemaphorePermit,
}

impl Drop for AnswerRoom {
    fn drop(&mut self) {
        self.client.large_answers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    /// Makes room for the body of a request, if it needs any.
    ///
    /// # Errors
    /// When there is none.
    pub(in crate::api) async fn room_for_body(
        &self,
        length: u64,
    ) -> Result<Option<BodyRoom>, Problem> {
        if length <= SMALL_REQUEST {
            return Ok(None);
        }
        let room = &self.of.room;
        let taken = Arc::clone(&room.requests).acquire_many_owned(room.kib(length));
        let taken = timeout(TURN, taken).await.ok().and_then(Result::ok);
        let taken = taken.ok_or_else(|| {
            busy("the bodies of other requests take all the memory that there is for them")
        })?;
        Ok(Some(BodyRoom { _room: taken }))
    }

    /// Makes room for an answer, or replaces it by one that says that there is none.
    pub(super) async fn room_for_answer(
        self: &Arc<Self>,
        answer: Response<Body>,
    ) -> (Response<Body>, Option<AnswerRoom>) {
        let length = answer.body().size_hint().exact().unwrap_or(0);
        if length <= SMALL_ANSWER {
            return (answer, None);
        }
        match self.of.make_room_for_answer(length).await {
            Some(taken) => {
                self.large_answers.fetch_add(1, Ordering::Relaxed);
                let room = AnswerRoom {
                    client: Arc::clone(self),
                    _room: taken,
                };
                (answer, Some(room))
            }
            None => {
                let detail = "answers that clients do not read take all the memory that there is \
                              for them";
                (busy(detail).into_response(), None)
            }
        }
    }

    /// Whether it has not read all of a large answer.
    pub(super) fn has_large_answer(&self) -> bool {
        self.large_answers.load(Ordering::Relaxed) > 0
    }

    /// Since when it has read nothing, if that is so.
    pub(super) fn note_stalled(&self, since: Option<Instant>) {
        let stalled = self.stalled_since.lock();
        *stalled.unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Since when it has not read a large answer that is there for it.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        let since = self.stalled_since.lock();
        let since = *since.unwrap_or_else(PoisonError::into_inner);
        since.filter(|since| self.has_large_answer() && since.elapsed() >= STALLED)
    }
}

impl Clients {
    async fn make_room_for_answer(&self, length: u64) -> Option<OwnedSemaphorePermit> {
        let room = &self.room;
        let kib = room.kib(length);
        if let Ok(taken) = Arc::clone(&room.answers).try_acquire_many_owned(kib) {
            return Some(taken);
        }
        let _waiting = room.waiting.try_acquire().ok()?;
        let taking = async {
            let mut taken = std::pin::pin!(Arc::clone(&room.answers).acquire_many_owned(kib));
            loop {
                // One that stalls now may not have stalled long enough yet.
                let tried = timeout(STALLED / 4, taken.as_mut()).await;
                if let Ok(taken) = tried {
                    return taken.ok();
                }
                self.close_stalled();
            }
        };
        timeout(TURN, taking).await.ok().flatten()
    }

    /// Closes the client that has not read its answer for the longest time.
    fn close_stalled(&self) {
        let all = self.all();
        let stalled = all.iter().filter_map(|client| {
            let since = client.stalled_since()?;
            Some((since, client))
        });
        if let Some((_, client)) = stalled.min_by_key(|(since, _)| *since) {
            client.make_room.notify_one();
        }
    }
}

fn busy(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).with_hint("try again later")
}
