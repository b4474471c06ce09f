//! Text format of metrics: OpenMetrics for clients that ask for it, else the older Prometheus text
//! format.

use std::fmt::Write;

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};

use crate::api::{App, problem::Problem};

/// What text formats are called.
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics for Prometheus
///
/// In the text format of Prometheus, or in OpenMetrics for a client that accepts that.
#[utoipa::path(
    get, path = "/metrics", tag = "host", operation_id = "metrics",
    responses(
        (status = 200, description = "The metrics", content(
            (String = "text/plain"),
            (String = "application/openmetrics-text"),
        )),
    )
)]
pub(in crate::api) async fn metrics(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let sample = app.sampler.sample(&app.workers).await?;
    let text = app
        .metrics
        .render(&sample)
        .expect("writing to a string cannot fail");
    let accepted = headers.get_all(header::ACCEPT).iter();
    let accepted: Vec<&str> = accepted.filter_map(|value| value.to_str().ok()).collect();
    let (media_type, text) = if wants_open_metrics(&accepted.join(",")) {
        (OPEN_METRICS_TYPE, text)
    } else {
        (CLASSIC_TYPE, classic(&text))
    };
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}

/// Whether a client wants `OpenMetrics` at least as much as text (RFC 9110, 12.5.1). A client
/// without a preference gets the text format, which most can read.
fn wants_open_metrics(accept: &str) -> bool {
    let (mut open, mut text) = (0.0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts
            .filter_map(|parameter| parameter.strip_prefix("q="))
            .find_map(|q| q.parse::<f64>().ok())
            .unwrap_or(1.0);
        if name.eq_ignore_ascii_case(OPEN_METRICS) {
            open = f64::max(open, quality);
        } else if name.eq_ignore_ascii_case("text/plain") {
            text = f64::max(text, quality);
        }
    }
    open > 0.0 && open >= text
}

/// The same in the text format of Prometheus: there a counter's name ends with `_total` in what
/// describes it too, and there are no infos, units and ends.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let counters: Vec<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        let _ = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), ..) => Ok(()),
            (Some("#"), Some("TYPE"), Some(name), Some("info")) => {
                writeln!(text, "# TYPE {name}_info gauge")
            }
            (Some("#"), Some("HELP"), Some(name), Some(help))
                if open_metrics.contains(&format!("# TYPE {name} info\n")) =>
            {
                writeln!(text, "# HELP {name}_info {help}")
            }
            (Some("#"), Some(what), Some(name), Some(said)) if counters.contains(&name) => {
                writeln!(text, "# {what} {name}_total {said}")
            }
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        // What Prometheus 2.53 sends.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, wants) in [
            ("", false),
            ("*/*", false),
            ("text/plain;version=0.0.4", false),
            ("application/openmetrics-text", true),
            ("application/openmetrics-text; q=0", false),
            (
                "application/openmetrics-text;q=0.2, text/plain;q=0.9",
                false,
            ),
            (prometheus, true),
        ] {
            assert_eq!(wants_open_metrics(accept), wants, "{accept}");
        }
    }

    #[test]
    fn the_classic_format_has_no_words_of_the_newer_one() {
        let open_metrics = "# HELP brood_build The brood that runs.\n# TYPE brood_build info\n\
            brood_build_info{version=\"1\"} 1\n# HELP brood_ended Guests.\n# TYPE brood_ended counter\n\
            brood_ended_total 3\n# HELP brood_s Time.\n# TYPE brood_s histogram\n# UNIT brood_s seconds\n\
            brood_s_sum 1.5\n# EOF\n";
        let expected = "# HELP brood_build_info The brood that runs.\n\
            # TYPE brood_build_info gauge\nbrood_build_info{version=\"1\"} 1\n\
            # HELP brood_ended_total Guests.\n# TYPE brood_ended_total counter\n\
            brood_ended_total 3\n# HELP brood_s Time.\n# TYPE brood_s histogram\nbrood_s_sum 1.5\n";
        assert_eq!(classic(open_metrics), expected);
    }
}
