//! Connection of a client: served until it is over, makes room, or the daemon ends.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{sync::watch, time::sleep};

use super::{
    Client, RequestGuard,
    bodies::{AnsweringBody, BodyLimit, SentBody},
    stalls::WatchedStream,
};
use crate::api::door::{HeaderCase, Site};

/// How long a half-sent request holds up a daemon that is to end.
const HALF_SENT: Duration = Duration::from_secs(1);
/// Bytes of a request's head, and of its body in flight.
const BUFFER: usize = 64 << 10;

/// A connection that counts until this is dropped.
pub(in crate::api) struct ConnectionGuard(pub(super) Arc<Client>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let clients = &self.0.of;
        clients.all().retain(|client| !Arc::ptr_eq(client, &self.0));
        clients.metrics.connections.dec();
        clients.left.notify_one();
    }
}

impl ConnectionGuard {
    pub(in crate::api) async fn serve<S>(
        self,
        stream: S,
        site: Site,
        draining: watch::Receiver<bool>,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        self.speak(stream, site, draining).await;
        self.0.upgrades.until_over().await;
    }

    /// Serves until the connection is over, or speaks HTTP no more.
    async fn speak<S>(&self, stream: S, site: Site, mut draining: watch::Receiver<bool>)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let client = &self.0;
        let stream = WatchedStream::new(stream, client, client.of.idle);
        let router = TowerToHyperService::new(site.router);
        let service = service_fn(|request| answer(client, &router, request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(client.of.idle)
            .title_case_headers(site.headers == HeaderCase::Title)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        loop {
            tokio::select! {
                // A client that breaks off or speaks no HTTP is its own affair.
                _ = connection.as_mut() => return,
                () = client.make_room.notified() => {
                    if client.can_be_spared() {
                        client.of.metrics.connections_displaced.inc();
                        return;
                    }
                    // Another one is looked for.
                    client.of.left.notify_one();
                }
                _ = draining.wait_for(|draining| *draining) => break,
            }
        }
        connection.as_mut().graceful_shutdown();
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = sleep(HALF_SENT) => if client.is_idle() || client.is_sending() { return },
            }
        }
    }
}

fn answer(
    client: &Arc<Client>,
    router: &TowerToHyperService<Router>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
    let answering = RequestGuard::begin(client);
    request.extensions_mut().insert(Arc::clone(client));
    let limit = BodyLimit::of(&request);
    let response = router.call(request.map(|body| SentBody::new(body, client, limit)));
    let client = Arc::clone(client);
    async move {
        let (response, room) = client.room_for_answer(response.await?).await;
        Ok(response.map(|body| Body::new(AnsweringBody::new(body, room, answering))))
    }
}
