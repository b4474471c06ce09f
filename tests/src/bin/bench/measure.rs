//! Measurements. Each destroys its guests before it returns.

use std::{
    io,
    process::Command,
    time::{Duration, Instant},
};

use brood_core::{
    percentiles::Percentiles,
    units::{Bytes, PAGE_SIZE},
};
use brood_tests::HEAP;

use super::{
    Measurement,
    cgroup::Group,
    command::{self, Interrupt},
    contest::{Contest, Subject},
    error::Error,
    goal::{Goal, Row},
    steady_state::settle,
    workplace::Workplace,
};

/// Restores that latency is measured over, and resumes in a round.
const SAMPLES: u32 = 200;
/// Guests that are paused and resumed in turn.
const RESUMED_GUESTS: u32 = 50;
/// Pages that a guest has written before it is suspended to a delta.
const SCATTERED: u64 = 1000;
const THOUSAND: u32 = 1000;
const TEN_THOUSAND: u32 = 10_000;
/// Guests of the ten thousand that are asked once more.
const ASKED_AGAIN: usize = 100;
/// Restore, in one or all, may take this much of what the floor takes.
const TIME_GOAL: Goal = Goal::RatioAtMost(1.3);

/// 200 guests, one at a time: the median from the request to the guest's answer.
pub(crate) fn latency(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let guests = workplace.guests.unwrap_or(SAMPLES);
    let contest = Contest::hold(
        workplace,
        Measurement::Latency,
        "ms",
        |subject| match subject {
            Subject::Brood => Ok(restore_once(workplace, guests, 1)?.0.p50),
            Subject::Floor(slot) => Ok(workplace
                .floor
                .run(slot, guests, 1, &workplace.brood.interrupt)?
                .restore_ms
                .p50),
        },
    )?;
    let figure = format!("restore p50, {guests} guests one at a time");
    Ok(contest.rows(
        Measurement::Latency,
        &figure,
        "ms",
        Some(TIME_GOAL),
        Some(TIME_GOAL),
    ))
}

/// 1,000 guests: seconds until the last has answered.
pub(crate) fn wall(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let (guests, at_once) = (workplace.guests.unwrap_or(THOUSAND), workplace.concurrency);
    let contest = Contest::hold(workplace, Measurement::Wall, "s", |subject| match subject {
        Subject::Brood => Ok(restore_once(workplace, guests, at_once)?.1),
        Subject::Floor(slot) => Ok(workplace
            .floor
            .run(slot, guests, at_once, &workplace.brood.interrupt)?
            .wall_s),
    })?;
    let figure = format!("restore of {guests} guests, {at_once} at once");
    Ok(contest.rows(
        Measurement::Wall,
        &figure,
        "s",
        Some(TIME_GOAL),
        Some(TIME_GOAL),
    ))
}

/// 1,000 guests: host memory for each.
pub(crate) fn density(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let (guests, at_once) = (workplace.guests.unwrap_or(THOUSAND), workplace.concurrency);
    let contest = Contest::hold(
        workplace,
        Measurement::Density,
        "MiB",
        |subject| match subject {
            Subject::Brood => Ok(workplace.brood.density(guests, at_once)?.per_guest_mib),
            Subject::Floor(slot) => Ok(workplace
                .floor
                .run(slot, guests, at_once, &workplace.brood.interrupt)?
                .per_guest_mib),
        },
    )?;
    let figure = format!(
        "host memory per guest, {guests} × {}",
        workplace.floor.memory
    );
    Ok(contest.rows(
        Measurement::Density,
        &figure,
        "MiB",
        None,
        Some(Goal::RatioAtMost(0.7)),
    ))
}

/// Paused guests resumed, one at a time.
pub(crate) fn resume(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let guests = workplace.guests.unwrap_or(RESUMED_GUESTS);
    let (mut p50, mut p90, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..workplace.rounds {
        settle(&workplace.brood.interrupt)?;
        let restored = workplace
            .brood
            .restore(guests, workplace.concurrency, None)?;
        let mut took_ms = Vec::new();
        for guest in restored.guests.iter().cycle().take(SAMPLES as usize) {
            workplace.brood.pause(&guest.name)?;
            took_ms.push(workplace.brood.resume(&guest.name)?);
        }
        workplace.brood.destroy_all()?;
        let took = Percentiles::of(&took_ms);
        eprintln!(
            "resume: round {} of {}: p50 {:.3} ms",
            round + 1,
            workplace.rounds,
            took.p50
        );
        p50.push(took.p50);
        p90.push(took.p90);
        p99.push(took.p99);
    }
    let row = |figure: &str, values: &[f64], goal| {
        let figure = format!("resume {figure}, {SAMPLES} over {guests} guests");
        Row::alone(Measurement::Resume, figure, "ms", values, goal)
    };
    Ok(vec![
        row("p50", &p50, Some(Goal::LessThan(1.0))),
        row("p90", &p90, None),
        row("p99", &p99, None),
    ])
}

/// A guest that has written 1,000 pages, evenly spread over its memory: the bytes of its delta for
/// each byte that it had to itself, and the median time to restore guests from it, beside that of
/// their full checkpoint.
#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio shown with three digits"
)]
pub(crate) fn delta(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let (brood, guests) = (&workplace.brood, workplace.guests.unwrap_or(SAMPLES));
    let memory = &workplace.floor.memory;
    let memory: Bytes = memory
        .parse()
        .map_err(io::Error::other)
        .map_err(Error::io(format!("read the memory size {memory}")))?;
    let pages = memory.0.saturating_sub(HEAP) / PAGE_SIZE;
    let stride = (pages / SCATTERED).max(1) * PAGE_SIZE;
    let (mut ratio, mut p50, mut full) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..workplace.rounds {
        let restored = brood.restore(1, 1, None)?;
        let guest = &restored.guests[0].name;
        for n in 0..SCATTERED {
            brood.poke(guest, HEAP + n * stride)?;
        }
        let private = brood.private(guest)?;
        let delta = brood.suspend_delta(guest, "delta")?;
        ratio.push(delta.checkpoint_size()? as f64 / private as f64);
        for (subject, took) in [(&delta, &mut p50), (brood, &mut full)] {
            settle(&brood.interrupt)?;
            took.push(subject.restore(guests, 1, None)?.restore_ms.p50);
            brood.destroy_all()?;
        }
        eprintln!(
            "delta: round {} of {}: p50 {:.3} ms, of its parent {:.3} ms",
            round + 1,
            workplace.rounds,
            p50[p50.len() - 1],
            full[full.len() - 1]
        );
        delta.remove_checkpoint()?;
    }
    let row = |figure: String, unit, values: &[f64], goal| {
        Row::alone(Measurement::Delta, figure, unit, values, goal)
    };
    Ok(vec![
        row(
            format!("delta of {SCATTERED} pages far apart: written by private bytes"),
            "",
            &ratio,
            Some(Goal::AtMost(1.1)),
        ),
        row(
            format!("restore p50 from it, {guests} guests one at a time"),
            "ms",
            &p50,
            Some(Goal::AtMost(10.0)),
        ),
        row("restore p50 from its parent".to_owned(), "ms", &full, None),
    ])
}

/// 10,000 guests at once: whether they are there, what they take, and what the host can still do.
pub(crate) fn ten_thousand(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let guests = workplace.guests.unwrap_or(TEN_THOUSAND);
    let brood = &workplace.brood;
    let before = settle(&brood.interrupt)?;
    // Two pids for each guest, and some for brood itself; a tenth of the host's memory stays.
    let group = Group::make(
        2 * u64::from(guests) * 11 / 10 + 256,
        before.available.0 / 10 * 9,
    );
    let limits = if group.limits.is_empty() {
        "none".to_owned()
    } else {
        group.limits.join(", ")
    };
    eprintln!("ten-thousand: limits of brood's own control group: {limits}");

    let restored = brood.restore(guests, workplace.concurrency, Some(&group))?;
    let taken_mib = before.delta(&settle(&brood.interrupt)?).available;
    // Less used than before: others on this host let go of more. That is no measurement.
    let taken_mib = if taken_mib > 0.0 { taken_mib } else { f64::NAN };
    let forked_ms = fork(&brood.interrupt)?;
    let step = (restored.guests.len() / ASKED_AGAIN).max(1);
    for guest in restored.guests.iter().step_by(step) {
        brood.ping(&guest.name)?;
    }
    brood.destroy_all()?;

    let row = |figure: &str, unit, value, goal| {
        Row::alone(Measurement::TenThousand, figure, unit, &[value], goal)
    };
    let all = format!("{guests} × {}", workplace.floor.memory);
    Ok(vec![
        row(
            &format!("{all}: guests that answered"),
            "",
            f64::from(guests),
            Some(Goal::AtLeast(f64::from(guests))),
        ),
        row(
            &format!("{all}: host memory in all"),
            "MiB",
            taken_mib,
            Some(Goal::AtMost(8192.0)),
        ),
        row(&format!("{all}: restore"), "s", restored.wall_s, None),
        row(
            &format!("{all}: then the host forks in"),
            "ms",
            forked_ms,
            None,
        ),
    ])
}

/// Restores guests on a settled host and destroys them; returns latencies and seconds in all.
fn restore_once(
    workplace: &Workplace,
    guests: u32,
    at_once: u32,
) -> Result<(Percentiles, f64), Error> {
    // The floor waits by itself.
    settle(&workplace.brood.interrupt)?;
    let restored = workplace.brood.restore(guests, at_once, None)?;
    workplace.brood.destroy_all()?;
    Ok((restored.restore_ms, restored.wall_s))
}

/// Proves that the host can still start a program; returns how long that took, in milliseconds.
fn fork(interrupt: &Interrupt) -> Result<f64, Error> {
    let begin = Instant::now();
    command::run(&mut Command::new("true"), interrupt)?;
    Ok(begin.elapsed().max(Duration::from_micros(1)).as_secs_f64() * 1e3)
}
