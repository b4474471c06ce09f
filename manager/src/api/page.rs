//! The page: pools and guests as they are now, for people. It uses nothing but the API, and nothing
//! from other hosts. It holds no data, so it needs no token; what it shows does.

use axum::{
    Router,
    http::{HeaderName, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::App;

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// What the page may load: its own two files, and the API.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Paths that tell nothing of this host.
pub(super) const PATHS: [&str; 3] = ["/", "/page.css", "/page.js"];

pub(super) fn routes() -> Router<App> {
    let [page, style, script] = PATHS;
    Router::new()
        .route(page, get(async || file("text/html; charset=utf-8", HTML)))
        .route(style, get(async || file("text/css; charset=utf-8", CSS)))
        .route(
            script,
            get(async || file("text/javascript; charset=utf-8", SCRIPT)),
        )
}

fn file(media_type: &'static str, text: &'static str) -> Response {
    const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
        (NO_SNIFF, "nosniff"),
    ];
    (headers, text).into_response()
}
