//! Tests of the report as a reader gets it.

use std::fs;

use scraper::{Html, Selector};

use super::*;
use crate::density::{
    snapshot::MemoryDelta,
    step::{Breakdown, tests::example},
};
use brood_core::{percentiles::Percentiles, units::Bytes};

/// Steps as a run of 8, 50, 200, 1,000 and 10,000 guests would leave them.
fn run() -> Vec<Step> {
    let latency = |i: u64| {
        // Mostly close to 1 ms, with a tail.
        let x = f64::from(u32::try_from(i * 7919 % 1000).unwrap()) / 1000.0;
        0.7 + 0.4 * x + 0.02 / (1.003 - x)
    };
    [8, 50, 200, 1000, 10_000]
        .into_iter()
        .map(|guests| {
            let n = figures::count(guests);
            let latencies_ms: Vec<_> = (0..guests).map(latency).collect();
            let delta = MemoryDelta {
                available: 1.5 + 0.51 * n,
                page_tables: 0.055 * n,
                kernel_stack: 0.032 * n,
                slab: 0.6 + 0.18 * n,
                vmalloc: 0.044 * n,
                secondary_page_tables: 0.021 * n,
                percpu: 0.001 * n,
                ..MemoryDelta::default()
            };
            Step {
                guests,
                answered: guests,
                wall_s: 0.0012 * n,
                restore_ms: Percentiles::of(&latencies_ms),
                host_delta_mib: delta.available,
                per_guest_mib: delta.available / n,
                breakdown: Breakdown::of(
                    &delta,
                    guests,
                    Bytes::kib(90 * guests),
                    Bytes::kib(50 * guests),
                ),
                latencies_ms,
                ..example()
            }
        })
        .collect()
}

/// Writes the report and gives its page as text and parsed.
fn page(steps: &[Step]) -> (tempfile::TempDir, String, Html) {
    let dir = tempfile::tempdir().unwrap();
    let path = write_report(&dir.path().join("a report"), steps).unwrap();
    let text = fs::read_to_string(path).unwrap();
    let html = Html::parse_document(&text);
    (dir, text, html)
}

#[test]
fn the_page_is_well_formed_and_stands_alone() {
    let (dir, text, html) = page(&run());
    assert_eq!(html.errors, [""; 0], "the HTML parser complains");
    assert_eq!(
        html.select(&Selector::parse("section svg[role=img]").unwrap())
            .count(),
        3
    );
    assert!(
        !text.contains("{{"),
        "a place of the template was not filled"
    );
    let alone = fs::read_to_string(dir.path().join("a report/density.svg")).unwrap();
    for text in [&text, &alone] {
        let without_names = text.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for host in [
            "http:", "https:", "src=", "url(", "@import", "<link", "<script",
        ] {
            assert!(
                !without_names.contains(host),
                "the page needs something outside: {host}"
            );
        }
    }
    assert!(alone.contains("prefers-color-scheme"));
}

#[test]
fn the_page_holds_every_number() {
    let steps = run();
    let (dir, _, html) = page(&steps);
    let all = |selector: &str| -> Vec<String> {
        let selector = Selector::parse(selector).unwrap();
        html.select(&selector)
            .map(|element| element.text().collect())
            .collect()
    };
    // To the last digit in the JSON, and rounded in the tables.
    let [json] = all("details code").try_into().unwrap();
    assert_eq!(json, serde_json::to_string_pretty(&steps).unwrap());

    let cells = all("td");
    for step in &steps {
        let ms = step.restore_ms;
        let shown = [figures::whole(step.guests), figures::whole(step.answered)];
        let measured = [
            step.wall_s,
            ms.p50,
            ms.p90,
            ms.p99,
            ms.max,
            step.host_delta_mib,
        ]
        .into_iter()
        .chain(step.breakdown.parts())
        .map(figures::measured);
        for figure in measured.chain(shown) {
            assert!(cells.contains(&figure), "{figure} is in no table");
        }
    }
    let full = fs::read_to_string(dir.path().join("a report/density.json")).unwrap();
    let full: serde_json::Value = serde_json::from_str(&full).unwrap();
    assert_eq!(full[4]["latencies_ms"].as_array().unwrap().len(), 10_000);
    assert_eq!(full[0]["guests"], 8);

    let pre = all("pre").concat();
    assert!(
        pre.contains("--guests 8,50,200,1000,10000 --concurrency 1 --dirty-pages 16"),
        "{pre}"
    );
    assert!(
        pre.contains("/a report'"),
        "a path with a space is quoted: {pre}"
    );
    let text = all("body").concat();
    assert!(
        text.contains("A <Processor> & more"),
        "text is escaped, once"
    );
    assert!(text.contains("24,105 MiB") && text.contains(&"ab".repeat(32)));
}

#[test]
fn odd_steps_are_still_reported() {
    let odd = Step {
        guests: 1,
        answered: 0,
        host_delta_mib: -3.0,
        per_guest_mib: -3.0,
        restore_ms: Percentiles::default(),
        latencies_ms: vec![],
        breakdown: Breakdown::default(),
        checkpoint: "</code><script>alert(1)</script>{{json}}".into(),
        checkpoint_sha256_after: "cd".repeat(32),
        ..example()
    };
    let (_dir, text, html) = page(&[odd]);
    assert_eq!(html.errors, [""; 0]);
    assert!(text.contains("CHANGED") && text.contains(&"cd".repeat(32)));
    assert!(text.contains("0 of 1") && !text.contains("<script"));
    assert!(matches!(
        write_report(Path::new("/"), &[]),
        Err(Error::NoSteps)
    ));
    let error = write_report(Path::new("/dev/null/report"), &[example()]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot write /dev/null/report: "),
        "{error}"
    );
}

#[test]
fn noise_is_called_noise_and_nothing_negative_is_plotted() {
    let quiet = example();
    let mut noisy = Step {
        guests: 50,
        noise: Some("memory moved <by> itself".into()),
        ..example()
    };
    noisy.host_delta_mib = -42.5;
    noisy.per_guest_mib = -0.85;
    let plot = memory_plot::draw(&[noisy.clone(), quiet]).unwrap();
    assert!(!plot.contains("−42.5"), "a negative amount is plotted");
    let dir = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(write_report(dir.path(), &[noisy]).unwrap()).unwrap();
    assert!(page.contains("the step of 50 guests does not say"));
    assert!(page.contains("memory moved &lt;by&gt; itself"));
    assert!(page.contains("the host was too noisy"));
    assert!(page.contains("−0.850 (noise)"));
}
