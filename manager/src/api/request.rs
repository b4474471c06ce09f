//! Middleware for every request: it gives the request an id, which appears in the answer and in
//! each log line about it; counts it; and, over TCP, checks the token.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use tracing::Instrument;

use super::{
    App,
    connections::{Client, body_length},
    page,
    problem::{Problem, ToldProblem},
};

/// The header with a request's id, in the request and in its answer.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a client.
const LONGEST: usize = 64;

/// Id of a request.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// The client's own id, when it is a plain word; else a new one.
    fn of(request: &Request) -> Self {
        let given = request.headers().get(&HEADER).filter(|value| {
            let bytes = value.as_bytes();
            let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:".contains(b);
            !bytes.is_empty() && bytes.len() <= LONGEST && bytes.iter().all(plain)
        });
        if let Some(given) = given {
            return Self(given.clone());
        }
        // Without randomness requests cannot be told apart, but they can be served.
        let random: [u8; 8] = brood_core::guest_id::random().unwrap_or_default();
        let text = format!("{:016x}", u64::from_be_bytes(random));
        Self(HeaderValue::try_from(text).expect("hexadecimal digits"))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

/// Longest body that is read, as of axum's own limit.
pub(super) const BODY_MAX: u64 = 2 << 20;

/// Goes around every request.
pub(super) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let in_flight = app.metrics.begin_request();
    let id = RequestId::of(&request);
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
    // The token of a claim is its claimer's alone: it is not for the log.
    let path = if route.contains("{token}") {
        route.clone()
    } else {
        request.uri().path().to_owned()
    };
    request.extensions_mut().insert(id.clone());
    let span = tracing::error_span!("request", request_id = %id, %method, path);
    let client = request.extensions().get::<Arc<Client>>().cloned();
    let room = match (refuse(&request), client) {
        (Some(problem), _) => Err(problem),
        (None, Some(client)) => {
            let length = body_length(&request);
            client.room_for_body(length).await
        }
        (None, None) => Ok(None),
    };
    let mut response = match room {
        Err(problem) => problem.into_response(),
        Ok(_room) => next.run(request).instrument(span.clone()).await,
    };
    drop(in_flight);
    let (took, status) = (begin.elapsed(), response.status());
    // A client may make methods up; there is one count for all of those.
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    let counted = if known.contains(&method) {
        method.as_str()
    } else {
        "other"
    };
    app.metrics.answered(counted, &route, status.as_u16(), took);
    let told = response.extensions().get::<ToldProblem>();
    span.in_scope(|| tell(&route, status, took, told));
    response.headers_mut().insert(HEADER, id.0);
    response
}

/// Whether a request's body may be of any length, and is never in memory as a whole: a guest's file.
pub(super) fn is_streamed<B>(request: &axum::http::Request<B>) -> bool {
    request.method() == Method::PUT && request.uri().path().ends_with("/files")
}

/// Refuses a request that is invalid for every route.
fn refuse(request: &Request) -> Option<Problem> {
    let headers = request.headers();
    if request.version() == Version::HTTP_11 && headers.get_all(header::HOST).iter().count() != 1 {
        let detail = "a request of HTTP/1.1 has one header Host (RFC 9112, 3.2)";
        return Some(Problem::bad_request(detail));
    }
    if is_streamed(request) {
        return None;
    }
    let length = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    if length.parse().is_ok_and(|length: u64| length <= BODY_MAX) {
        return None;
    }
    let detail = format!("the body would be {length} bytes long; at most {BODY_MAX} are read");
    Some(Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body-too-large",
        detail,
    ))
}

/// Logs an answered request in one line. Routine requests of machines have a lower level.
fn tell(route: &str, status: StatusCode, took: Duration, problem: Option<&ToldProblem>) {
    let status_code = status.as_u16();
    // Microseconds are as much as means anything.
    let ms = (took.as_secs_f64() * 1e6).round() / 1e3;
    match problem {
        Some(problem) if status.is_server_error() => {
            tracing::error!(
                status = status_code,
                ms,
                kind = problem.kind,
                "{}",
                problem.detail
            );
        }
        Some(problem) => {
            tracing::info!(
                status = status_code,
                ms,
                kind = problem.kind,
                "{}",
                problem.detail
            );
        }
        None if is_routine(route) && status.is_success() => {
            tracing::debug!(status = status_code, ms, "answered");
        }
        None => tracing::info!(status = status_code, ms, "answered"),
    }
}

/// Whether a machine asks for this again and again, or every visit of the page does.
fn is_routine(route: &str) -> bool {
    ["/health", "/metrics", "/openapi.json", "/api/v1/daemon"].contains(&route) || page::has(route)
}

/// The bearer token that requests over TCP must show, as its digest: digests are compared in a time
/// that says nothing of the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

/// Whether a request bears the token, where it must.
#[derive(Clone, Copy, Debug)]
pub(super) struct Authorization(pub(super) bool);

/// The subprotocol of websockets.
pub(super) const STREAM_PROTOCOL: &str = "brood.exec";
/// What a websocket's offer of a subprotocol begins with that is the token.
const STREAM_TOKEN: &str = "brood.token.";

/// The token in a request's header.
fn bearer(request: &Request) -> Option<Token> {
    let value = request
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| Token::new(token.trim()))
}

/// The token that a websocket offers as a subprotocol: a page's script can set no header of one. Its
/// bytes are hexadecimal digits there, as names of subprotocols have few characters.
fn stream_token(request: &Request) -> Option<Token> {
    let offers = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers = offers.iter().filter_map(|value| value.to_str().ok());
    let mut words = offers.flat_map(|value| value.split(',').map(str::trim));
    let digits = words.find_map(|word| word.strip_prefix(STREAM_TOKEN))?;
    let digits = digits.as_bytes().chunks(2);
    let bytes = digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
    let token = String::from_utf8(bytes.collect::<Option<_>>()?).ok()?;
    Some(Token::new(&token))
}

/// Lets only requests through that bear the token; the page and `/health` tell nothing that is
/// secret.
pub(super) async fn require(
    State(token): State<Token>,
    mut request: Request,
    next: Next,
) -> Response {
    let bearer = bearer(&request).or_else(|| stream_token(&request));
    let path = request.uri().path();
    let open = path == "/health" || page::has(path);
    let known = bearer == Some(token);
    if let Some(client) = request.extensions().get::<Arc<Client>>()
        && known
    {
        client.is_known();
    }
    if open || known {
        request.extensions_mut().insert(Authorization(known));
        return next.run(request).await;
    }
    let problem = Problem::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "the request does not bear this daemon's token",
    )
    .with_hint(
        "send the header Authorization: Bearer TOKEN; TOKEN is in the daemon's --token-file",
    );
    let mut response = problem.into_response();
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
