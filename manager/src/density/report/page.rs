//! Report page: a template, a style sheet, and the figures filled in.

use std::path::Path;

use super::{
    Error,
    figures::{measured, memory, whole},
    palette, reference,
};
use crate::density::step::{PARTS, Step};

/// The three plots as SVG.
pub(super) struct Plots<'a> {
    pub(super) memory: &'a str,
    pub(super) latency: String,
    pub(super) breakdown: String,
}

pub(super) fn render(dir: &Path, steps: &[Step], plots: &Plots<'_>) -> Result<String, Error> {
    let Some(largest) = steps.iter().max_by_key(|step| step.guests) else {
        return Err(Error::NoSteps);
    };
    let style = include_str!("style.css").to_owned() + &palette::dark_css();
    let json = serde_json::to_string_pretty(steps)?;
    let step_names = steps
        .iter()
        .map(|step| format!("{} guests", whole(step.guests)));
    let part_names = PARTS.map(|name| title(&name.replace('_', " ")));
    let values = [
        ("style", style),
        ("headline", escape(&headline(largest))),
        ("checkpoint", escape(&largest.checkpoint)),
        ("started", escape(&steps[0].started_at.to_string())),
        ("tiles", tiles(largest, steps)),
        ("noise", noise(steps)),
        ("reference", escape(reference::SOURCE)),
        (
            "memory_plot",
            accessible(plots.memory, "Host memory against number of guests"),
        ),
        (
            "latency_plot",
            accessible(&plots.latency, "Distribution of restore latency"),
        ),
        (
            "breakdown_plot",
            accessible(&plots.breakdown, "Host memory per guest by use"),
        ),
        ("step_keys", keys(step_names)),
        ("part_keys", keys(part_names.clone().into_iter())),
        ("step_table", step_table(steps)),
        ("breakdown_table", breakdown_table(steps, &part_names)),
        ("digests", digests(steps)),
        ("machine", machine(largest)),
        ("command", escape(&command(dir, steps))),
        ("json", escape(&json)),
    ];
    Ok(fill(include_str!("page.html"), &values))
}

/// Puts each value in its place. A value is never searched for places, so that no text of a
/// checkpoint or machine can name one.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut page = String::new();
    let mut rest = template;
    while let Some((before, (name, after))) = rest
        .split_once("{{")
        .and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
    {
        page.push_str(before);
        let value = values.iter().find(|(key, _)| *key == name);
        page.push_str(value.map_or("", |(_, value)| value));
        rest = after;
    }
    page + rest
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// First letter large.
fn title(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>())
        .unwrap_or_default()
        + letters.as_str()
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn headline(step: &Step) -> String {
    let guest_memory = memory(step.memory_mib * step.guests as f64);
    if step.host_delta_mib <= 0.0 {
        let guests = whole(step.guests);
        return format!("{guests} guests, {guest_memory} of guest memory; the host was too noisy");
    }
    format!(
        "{} guests, {guest_memory} of guest memory, in {} of the host’s",
        whole(step.guests),
        memory(step.host_delta_mib),
    )
}

fn tiles(largest: &Step, steps: &[Step]) -> String {
    let tile = |value: String, class: &str, what: String| {
        format!(
            "<div><b class=\"{class}\">{value}</b><span>{}</span></div>\n",
            escape(&what)
        )
    };
    let answered = largest.answered == largest.guests;
    let unchanged = steps.iter().all(is_unchanged);
    let same = |(guests, _): &&(u64, f64)| *guests == largest.guests;
    // Only like is compared with like: as many guests, of the same size.
    let reference = reference::CURVE
        .iter()
        .find(same)
        .filter(|_| largest.memory_mib == reference::GUEST_MIB && largest.host_delta_mib > 0.0)
        .map(|(_, mib)| {
            format!(
                "; {} × less than the reference",
                measured(mib / largest.host_delta_mib)
            )
        })
        .unwrap_or_default();
    [
        tile(
            format!("{} MiB", measured(largest.per_guest_mib)),
            if largest.noise.is_some() { "bad" } else { "" },
            match &largest.noise {
                Some(_) => "noise of the host, not what a guest costs".to_owned(),
                None => format!("host memory per guest{reference}"),
            },
        ),
        tile(
            format!("{} ms", measured(largest.restore_ms.p50)),
            "",
            format!(
                "median restore, to the guest’s answer; p99 {} ms",
                measured(largest.restore_ms.p99)
            ),
        ),
        tile(
            if answered {
                format!("all {}", whole(largest.guests))
            } else {
                format!("{} of {}", whole(largest.answered), whole(largest.guests))
            },
            if answered { "" } else { "bad" },
            format!("guests answered within {} s", measured(largest.wall_s)),
        ),
        tile(
            if unchanged { "unchanged" } else { "CHANGED" }.to_owned(),
            if unchanged { "good" } else { "bad" },
            "checkpoint after all steps, by SHA-256".to_owned(),
        ),
    ]
    .concat()
}

/// Which steps cannot be relied on, and why.
fn noise(steps: &[Step]) -> String {
    let noisy = steps
        .iter()
        .filter_map(|step| Some((step, step.noise.as_ref()?)));
    noisy
        .map(|(step, why)| {
            let plotted = match step.host_delta_mib > 0.0 {
                true => "",
                false => " It is not in the first plot.",
            };
            format!(
                "<p class=\"note\"><b class=\"bad\">Noise:</b> the step of {} guests does not say \
                 what they cost: {}.{plotted}</p>\n",
                whole(step.guests),
                escape(why)
            )
        })
        .collect()
}

/// Colour keys for the series of a plot, in their order.
fn keys(names: impl Iterator<Item = String>) -> String {
    names
        .zip(palette::SERIES.iter().cycle())
        .map(|(name, color)| {
            let color = palette::hex(*color);
            format!(
                "<li><svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><rect width=\"10\" height=\"10\" \
                 rx=\"2\" fill=\"{color}\"/></svg>{}</li>\n",
                escape(&name)
            )
        })
        .collect()
}

/// Tells a screen reader what a plot shows.
fn accessible(svg: &str, label: &str) -> String {
    svg.replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{}\" ", escape(label)),
        1,
    )
}

fn table(heads: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        let cells = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let body: String = rows.map(|row| cells("td", &row)).collect();
    format!(
        "<table><thead>{}</thead><tbody>\n{body}</tbody></table>",
        cells("th", heads)
    )
}

fn step_table(steps: &[Step]) -> String {
    let heads = [
        "Guests",
        "Answered",
        "Guest MiB",
        "Dirty pages",
        "At once",
        "Wall s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "Host MiB",
        "MiB per guest",
    ];
    let have_disks = steps.iter().any(|step| step.disk_per_guest_mib.is_some());
    let heads = heads
        .into_iter()
        .chain(have_disks.then_some("Disk MiB per guest"));
    let heads: Vec<String> = heads.map(str::to_owned).collect();
    let rows = steps.iter().map(|step| {
        let ms = &step.restore_ms;
        let mut row = vec![
            whole(step.guests),
            whole(step.answered),
            measured(step.memory_mib),
            whole(step.dirty_pages),
            whole(step.concurrency),
            measured(step.wall_s),
            measured(ms.p50),
            measured(ms.p90),
            measured(ms.p99),
            measured(ms.max),
            measured(step.host_delta_mib),
            measured(step.per_guest_mib),
        ];
        let disk = step
            .disk_per_guest_mib
            .map_or_else(|| "–".to_owned(), measured);
        row.extend(have_disks.then_some(disk));
        row
    });
    table(&heads, rows)
}

fn breakdown_table(steps: &[Step], parts: &[String]) -> String {
    let mut heads = vec!["Guests".to_owned()];
    heads.extend(parts.iter().cloned());
    heads.push("Total".to_owned());
    let rows = steps.iter().map(|step| {
        let mut row = vec![whole(step.guests)];
        row.extend(step.breakdown.parts().map(measured));
        row.push(measured(step.per_guest_mib));
        row
    });
    table(&heads, rows)
}

fn is_unchanged(step: &Step) -> bool {
    step.checkpoint_sha256_before == step.checkpoint_sha256_after
}

/// One line if every step saw the same checkpoint, else a line for each step.
fn digests(steps: &[Step]) -> String {
    let first = &steps[0].checkpoint_sha256_before;
    let all_same = steps
        .iter()
        .all(|step| is_unchanged(step) && step.checkpoint_sha256_before == *first);
    let row = |what: &str, digest: &str| {
        format!(
            "<dt>{}</dt><dd><code>{}</code></dd>\n",
            escape(what),
            escape(digest)
        )
    };
    let rows: String = if all_same {
        row("Before and after every step", first)
    } else {
        let rows = steps.iter().flat_map(|step| {
            let guests = format!("{} guests", whole(step.guests));
            [
                row(&format!("{guests}, before"), &step.checkpoint_sha256_before),
                row(&format!("{guests}, after"), &step.checkpoint_sha256_after),
            ]
        });
        rows.collect()
    };
    format!("<dl>{rows}</dl>")
}

fn machine(step: &Step) -> String {
    let machine = &step.machine;
    let engine = serde_json::to_value(step.engine).unwrap_or_default();
    [
        ("Kernel", machine.kernel.clone()),
        ("CPU", format!("{} × {}", machine.cores, machine.cpu)),
        ("Memory", format!("{} MiB", whole_mib(machine.memory_mib))),
        ("KVM", machine.kvm.clone()),
        ("Engine", engine.as_str().unwrap_or_default().to_owned()),
    ]
    .map(|(what, value)| format!("<dt>{what}</dt><dd>{}</dd>\n", escape(&value)))
    .concat()
}

/// All digits of an amount, for facts that are not measurements.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded"
)]
fn whole_mib(mib: f64) -> String {
    whole(mib.round().max(0.0) as u64)
}

/// The command line that makes these steps and this report.
fn command(dir: &Path, steps: &[Step]) -> String {
    let guests: Vec<_> = steps.iter().map(|step| step.guests.to_string()).collect();
    let first = &steps[0];
    let dirty = match first.dirty_pages {
        0 => String::new(),
        n => format!(" --dirty-pages {n}"),
    };
    format!(
        "brood density {} --guests {} --concurrency {}{dirty} --report {}",
        quoted(&first.checkpoint),
        guests.join(","),
        first.concurrency,
        quoted(&dir.display().to_string()),
    )
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
