//! Page of the daemon: pools and guests as they are now, for people. It uses nothing but the API,
//! and nothing from other hosts. The page itself holds no data, so it needs no token; its calls do.

use axum::{
    Router,
    http::{HeaderName, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::App;

const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Its files: path, media type and content. They tell nothing of this host.
#[cfg(feature = "page")]
const FILES: &[(&str, &str, &str)] = &[
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("page/page.html"),
    ),
    ("/page.css", CSS, include_str!("page/page.css")),
    ("/theme.js", SCRIPT, include_str!("page/theme.js")),
    ("/page.js", SCRIPT, include_str!("page/page.js")),
    ("/api.js", SCRIPT, include_str!("page/api.js")),
    ("/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/pools.js", SCRIPT, include_str!("page/pools.js")),
    ("/claims.js", SCRIPT, include_str!("page/claims.js")),
    ("/guests.js", SCRIPT, include_str!("page/guests.js")),
    ("/programs.js", SCRIPT, include_str!("page/programs.js")),
    ("/strip.js", SCRIPT, include_str!("page/strip.js")),
    ("/curve.js", SCRIPT, include_str!("page/curve.js")),
];
/// A build without the page has none.
#[cfg(not(feature = "page"))]
const FILES: &[(&str, &str, &str)] = &[];

/// What the page may load: its own files, and the API.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<App> {
    FILES
        .iter()
        .fold(Router::new(), |router, &(path, media_type, text)| {
            router.route(path, get(async move || file(media_type, text)))
        })
}

/// Whether this is a file of the page.
pub(super) fn has(path: &str) -> bool {
    FILES.iter().any(|(file, _, _)| *file == path)
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
