//! Cloud Hypervisor's API, for each guest on a socket of its own: `STATE/ch/NAME.sock`.
//!
//! Cloud Hypervisor has one process and one socket for each virtual machine, and so its clients name
//! no machine in their requests. The daemon therefore makes such a socket for each guest for which
//! somebody asks for one. Methods and bodies are those of `cloud-hypervisor.yaml`, version 0.3.0.
//! Errors are those of the program itself, which has fewer statuses than its document: clients are
//! written against the program.

mod sockets;
mod types;
mod verbs;

use axum::{
    Extension, Json as Answer, Router,
    extract::{Request, State},
    http::{Method, StatusCode, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use hyper::ext::ReasonPhrase;
use serde::Serialize;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use utoipa::ToSchema;

pub(super) use sockets::GuestSockets;

use super::{
    App,
    extract::Path,
    guests::TIMEOUT,
    problem::{Problem, ToldProblem},
    request,
};
use brood_core::{guest_id::GuestId, guests};

/// The guest that a socket is of.
#[derive(Clone, Debug)]
struct SocketGuest {
    id: GuestId,
    name: String,
}

/// The socket of a guest.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GuestSocket {
    /// Name of the guest.
    #[schema(example = "demo-1")]
    guest: String,
    /// The socket.
    #[schema(example = "/var/db/brood/ch/demo-1.sock")]
    socket: String,
}

/// Serves Cloud Hypervisor's API for a guest on a socket of its own, until the guest ends
///
/// Clients of Cloud Hypervisor (`ch-remote --api-socket SOCKET`) find there `vmm.ping`, `vm.info`,
/// `vm.counters`, `vm.pause`, `vm.resume`, `vm.snapshot`, `vm.shutdown`, `vm.delete` and
/// `vmm.shutdown`. A guest that has its socket already keeps it.
#[utoipa::path(
    post, path = "/guests/{guest}/ch-socket", tag = "guests", operation_id = "serveCloudHypervisor",
    params(("guest" = String, Path, description = "Name or id")),
    responses((status = 200, body = GuestSocket))
)]
pub(super) async fn socket(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<GuestSocket>, Problem> {
    let opener = app.clone();
    app.look_at_guests(move |found| {
        let guest = found.find(&name)?;
        if guest.process().is_none() {
            return Err(guests::Error::NotAlive {
                guest: guest.row.name,
                state: guest.state,
                reason: guest.row.reason,
            }
            .into());
        }
        let served = SocketGuest {
            id: guest.row.id,
            name: guest.row.name,
        };
        let socket = opener.guest_sockets.open(&opener, &served)?;
        Ok(Answer(GuestSocket {
            guest: served.name,
            socket: socket.display().to_string(),
        }))
    })
    .await
}

/// What answers on the socket of a guest.
fn router(app: App, served: SocketGuest) -> Router {
    Router::new()
        .route("/api/v1/vmm.ping", get(verbs::ping))
        .route("/api/v1/vmm.shutdown", put(verbs::shutdown_vmm))
        .route("/api/v1/vm.info", get(verbs::info))
        .route("/api/v1/vm.counters", get(verbs::counters))
        .route("/api/v1/vm.pause", put(verbs::pause))
        .route("/api/v1/vm.resume", put(verbs::resume))
        .route("/api/v1/vm.snapshot", put(verbs::snapshot))
        .route("/api/v1/vm.restore", put(verbs::restore))
        .route("/api/v1/vm.shutdown", put(verbs::shutdown))
        .route("/api/v1/vm.delete", put(verbs::delete))
        .fallback(async |uri: Uri| {
            let detail = format!("brood does not serve {}", uri.path());
            Problem::new(StatusCode::NOT_FOUND, NO_SUCH_PATH, detail)
                .with_hint("docs/api.md lists the verbs of Cloud Hypervisor's API that it serves")
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Problem::bad_request(format!("{} cannot be used with {method}", uri.path()))
        })
        .layer(CatchPanicLayer::custom(|_| {
            Problem::internal().into_response()
        }))
        .layer(Extension(served.clone()))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            request::observe,
        ))
        .layer(middleware::from_fn_with_state(served, answer))
        .with_state(app)
}

/// Longest body that is read.
const BODY_MAX: usize = 64 << 10;

const NO_SUCH_PATH: &str = "no-such-path";

/// Goes around every request to a guest: the log tells of which guest it is, and errors become what
/// Cloud Hypervisor's clients read.
async fn answer(State(served): State<SocketGuest>, request: Request, next: Next) -> Response {
    let span = tracing::error_span!("cloud-hypervisor", guest = served.name);
    let answered = match whole(request).await {
        Ok(request) => next.run(request).instrument(span).await,
        Err(problem) => problem.into_response(),
    };
    let mut response = match answered.extensions().get::<ToldProblem>() {
        Some(told) => failure(answered.status(), told),
        None => answered,
    };
    // ch-remote reads all of the status line that comes after the version as a number.
    response
        .extensions_mut()
        .insert(ReasonPhrase::from_static(b""));
    response
}

/// The request, read to its end. ch-remote gives up when it is answered before it has sent all of
/// it, also where nothing is done with the rest.
async fn whole(request: Request) -> Result<Request, Problem> {
    let (head, body) = request.into_parts();
    match timeout(TIMEOUT, axum::body::to_bytes(body, BODY_MAX)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, body.into())),
        Ok(Err(e)) => Err(Problem::bad_request(format!("cannot read the body: {e}"))),
        Err(e) => Err(Problem::bad_request(format!("cannot read the body: {e}"))),
    }
}

/// An error as Cloud Hypervisor answers it: messages, from what was tried to why it failed. 400 is
/// the client's mistake, 404 means that there is no such guest or verb, and 500 is everything else.
fn failure(status: StatusCode, told: &ToldProblem) -> Response {
    let status = match (status, &told.kind[..]) {
        (StatusCode::NOT_FOUND, kind)
            if kind.ends_with(":no-such-guest") || kind.ends_with(NO_SUCH_PATH) =>
        {
            StatusCode::NOT_FOUND
        }
        (StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE, _) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let messages: Vec<&str> = std::iter::once(&told.detail[..])
        .chain(told.hint.as_deref())
        .collect();
    (status, Answer(messages)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_are_lists_of_messages_with_the_three_statuses() {
        let guest = |kind: &str, status| Problem::new(status, kind, "why").with_hint("what next");
        for (problem, expected) in [
            (guest("no-such-guest", StatusCode::NOT_FOUND), 404),
            (guest(NO_SUCH_PATH, StatusCode::NOT_FOUND), 404),
            (guest("no-such-folder", StatusCode::NOT_FOUND), 500),
            (guest("guest-state", StatusCode::CONFLICT), 500),
            (guest("bad-request", StatusCode::BAD_REQUEST), 400),
            (guest("body-too-large", StatusCode::PAYLOAD_TOO_LARGE), 400),
        ] {
            let status = problem.status();
            let response = problem.into_response();
            let told = response.extensions().get::<ToldProblem>().unwrap();
            let answered = failure(status, told);
            assert_eq!(answered.status().as_u16(), expected, "{told:?}");
            let body = axum::body::to_bytes(answered.into_body(), 1000).await;
            assert_eq!(&body.unwrap()[..], br#"["why","what next"]"#);
        }
    }
}
