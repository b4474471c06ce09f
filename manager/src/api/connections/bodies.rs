//! Bodies of requests and answers that tell how far a client's request is.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};

use super::{Client, RequestGuard};

/// The body of a request. Its client counts as sending until all of it has come, or nobody reads it.
pub(super) struct SentBody {
    body: Incoming,
    client: Arc<Client>,
}

impl SentBody {
    pub(super) fn new(body: Incoming, client: &Arc<Client>) -> Self {
        let sending = !body.is_end_stream();
        client.sending.store(sending, Ordering::Relaxed);
        Self {
            body,
            client: Arc::clone(client),
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
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let sending = match &polled {
            Poll::Pending => true,
            Poll::Ready(Some(Ok(_))) => !self.body.is_end_stream(),
            Poll::Ready(None | Some(Err(_))) => false,
        };
        self.client.sending.store(sending, Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, whose request is being answered until all of it is sent.
pub(super) struct AnsweringBody {
    pub(super) body: Body,
    pub(super) _answering: RequestGuard,
}

impl HttpBody for AnsweringBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
