//! Bodies of requests and answers that tell how far a client's request is. A request's body has a
//! time limit, and a large answer goes out in pieces.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::Request,
};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::{Client, RequestGuard, room::AnswerRoom};
use crate::api::request::is_streamed;

/// How long the whole body of a request may take, or each part of one that may be of any length.
const WHOLE: Duration = Duration::from_secs(30);
const PART: Duration = Duration::from_secs(120);
/// Bytes of an answer that are given to its connection at a time.
const PIECE: usize = 64 << 10;

/// What has a time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyLimit {
    Whole,
    EachPart,
}

impl BodyLimit {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        if is_streamed(request) {
            Self::EachPart
        } else {
            Self::Whole
        }
    }

    const fn time(self) -> Duration {
        match self {
            Self::Whole => WHOLE,
            Self::EachPart => PART,
        }
    }
}

/// The body of a request. Its client counts as sending until all of it has come, or nobody reads it.
pub(super) struct SentBody {
    body: Incoming,
    client: Arc<Client>,
    limit: BodyLimit,
    /// Its time is over then. It begins when the body is waited for.
    ends: Option<Pin<Box<Sleep>>>,
}

impl SentBody {
    pub(super) fn new(body: Incoming, client: &Arc<Client>, limit: BodyLimit) -> Self {
        let sending = !body.is_end_stream();
        client.sending.store(sending, Ordering::Relaxed);
        Self {
            body,
            client: Arc::clone(client),
            limit,
            ends: None,
        }
    }

    /// Whether the client has taken too long.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let time = self.limit.time();
        let ends = self.ends.get_or_insert_with(|| Box::pin(sleep(time)));
        ends.is_elapsed() || ends.as_mut().poll(context).is_ready()
    }

    fn note_part(&mut self) {
        if self.limit == BodyLimit::EachPart
            && let Some(ends) = &mut self.ends
        {
            ends.as_mut().reset(Instant::now() + PART);
        }
    }
}

impl Drop for SentBody {
    fn drop(&mut self) {
        self.client.sending.store(false, Ordering::Relaxed);
    }
}

impl HttpBody for SentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let sending = match &polled {
            Poll::Pending => true,
            Poll::Ready(Some(Ok(_))) => !self.body.is_end_stream(),
            Poll::Ready(None | Some(Err(_))) => false,
        };
        self.client.sending.store(sending, Ordering::Relaxed);
        if polled.is_ready() {
            self.note_part();
        } else if self.is_late(context) {
            let text = format!("it did not come within {} s", self.limit.time().as_secs());
            let late = io::Error::new(io::ErrorKind::TimedOut, text);
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        polled.map_err(axum::Error::new)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, whose request is being answered until all of it is sent.
///
/// A connection takes a part at a time, and holds it until the client reads it. So a large part is
/// given to it in pieces, which are copies: one that waits keeps no more than itself in memory.
pub(super) struct AnsweringBody {
    body: Body,
    /// The rest of a large part.
    rest: Bytes,
    _room: Option<AnswerRoom>,
    _answering: RequestGuard,
}

impl AnsweringBody {
    pub(super) fn new(body: Body, room: Option<AnswerRoom>, answering: RequestGuard) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            _room: room,
            _answering: answering,
        }
    }
}

impl HttpBody for AnsweringBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            match frame.into_data() {
                Ok(data) if data.len() > PIECE => self.rest = data,
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let length = PIECE.min(self.rest.len());
        let piece = Bytes::copy_from_slice(&self.rest.split_to(length));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(rest + upper);
        }
        hint.set_lower(rest + body.lower());
        hint
    }
}
