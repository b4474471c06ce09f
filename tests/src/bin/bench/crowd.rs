//! Crowd: what a guest more costs beside a thousand others, and beside twelve thousand.

use std::{fs, num::NonZero, thread, time::Instant};

use nix::unistd::{SysconfVar, sysconf};

use brood_core::{percentiles::Percentiles, pool::Tier, state::Policy};

use super::{
    Measurement,
    brood::Restored,
    cgroup::Group,
    error::Error,
    goal::{Goal, Row},
    pool::Manager,
    steady_state::settle,
    workplace::Workplace,
};

/// Guests that are there, of which a twelfth is there at the first measurement.
const CROWD: u32 = 12_000;
const PARTS: u32 = 12;
/// Claims that a median is taken of.
const CLAIMS: u32 = 20;
const LEASE_S: u64 = 3600;
/// The private limit of the others. They write nothing.
const PRIVATE_LIMIT: &str = "128K";
/// Beside the whole crowd a guest may cost this much of what it costs beside a part.
const LINEAR: Goal = Goal::AtMost(1.1);
/// Two workers restore so many times as fast as one.
const TWICE: Goal = Goal::AtLeast(1.9);

/// Milliseconds for each guest, one value for each round.
#[derive(Default)]
struct Costs {
    restore: Vec<f64>,
    claim: Vec<f64>,
    destroy: Vec<f64>,
    /// A guest of all that there are.
    list: Vec<f64>,
    /// By how much two workers are faster than one.
    speed_up: Vec<f64>,
    /// Cores that were busy while one worker restored: no speed-up is greater than all by these.
    busy_cores: Vec<f64>,
}

/// Restore, claim and destroy of some guests, beside a part of a crowd and beside all of it.
pub(crate) fn crowd(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let crowd = workplace.guests.unwrap_or(CROWD);
    let part = (crowd / PARTS).max(1);
    let group = Group::make(
        2 * u64::from(crowd) * 11 / 10 + 1024,
        settle(&workplace.brood.interrupt)?.available.0 / 10 * 9,
    );
    let mut there = 0;
    let mut measure = |others: u32| {
        while there < others {
            let more = part.min(others - there);
            let concurrency = workplace.concurrency;
            restore(
                workplace,
                &group,
                &format!("crowd{there}"),
                more,
                concurrency,
            )?;
            there += more;
        }
        beside(workplace, &group, others, (part / 2).max(1))
    };
    let few = measure(part)?;
    let many = measure(crowd)?;
    let begin = Instant::now();
    workplace.brood.destroy_all()?;
    let destroyed = begin.elapsed().as_secs_f64() * 1e3 / f64::from(crowd);

    let row = |figure: String, unit, values: &[f64], goal| {
        Row::alone(Measurement::Crowd, figure, unit, values, goal)
    };
    let mut rows = Vec::new();
    for (what, few, many) in [
        ("restore", few.restore, many.restore),
        ("hot claim, p50,", few.claim, many.claim),
        ("destroy", few.destroy, many.destroy),
        ("list", few.list, many.list),
    ] {
        let ratios: Vec<_> = many
            .iter()
            .zip(&few)
            .map(|(many, few)| many / few)
            .collect();
        rows.push(row(format!("{what} beside {part}, each"), "ms", &few, None));
        rows.push(row(
            format!("{what} beside {crowd}, each"),
            "ms",
            &many,
            None,
        ));
        rows.push(row(
            format!("{what} beside {crowd}, by that beside {part}"),
            "",
            &ratios,
            Some(LINEAR),
        ));
    }
    rows.push(row(
        format!("restore beside {part}, one worker by two"),
        "",
        &few.speed_up,
        Some(TWICE),
    ));
    rows.push(row(
        format!("cores busy meanwhile with one worker, of {}", cores()),
        "",
        &few.busy_cores,
        None,
    ));
    rows.push(row(
        format!("destroy of all {crowd}, each"),
        "ms",
        &[destroyed],
        None,
    ));
    Ok(rows)
}

/// Restores, claims, lists and destroys guests beside `others`, as often as there are rounds.
fn beside(workplace: &Workplace, group: &Group, others: u32, guests: u32) -> Result<Costs, Error> {
    let mut costs = Costs::default();
    let brood = &workplace.brood;
    // The memory of the first has been nobody's yet. A host that is a virtual machine itself has
    // it given by its own host at that moment, which takes as long as the rest of a restore.
    restore(workplace, group, "more", guests, workplace.concurrency)?;
    brood.run(&["destroy", "--prefix", "more"])?;
    settle(&brood.interrupt)?;
    for _ in 0..workplace.rounds {
        let by_two = restore(workplace, group, "more", guests, 2)?.wall_s;
        costs.restore.push(by_two * 1e3 / f64::from(guests));
        let begin = Instant::now();
        brood.run(&["destroy", "--prefix", "more"])?;
        let elapsed_ms = begin.elapsed().as_secs_f64() * 1e3;
        costs.destroy.push(elapsed_ms / f64::from(guests));
        let (begin, busy) = (Instant::now(), busy_s());
        let by_one = restore(workplace, group, "more", guests, 1)?.wall_s;
        let busy = (busy_s() - busy) / begin.elapsed().as_secs_f64();
        costs.busy_cores.push(busy);
        costs.speed_up.push(by_one / by_two);
        brood.run(&["destroy", "--prefix", "more"])?;
        let begin = Instant::now();
        brood.run(&["list", "--json"])?;
        let elapsed_ms = begin.elapsed().as_secs_f64() * 1e3;
        costs.list.push(elapsed_ms / f64::from(others));
        costs.claim.push(claim(workplace)?);
    }
    Ok(costs)
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// For how many seconds this machine's cores were busy since it was started, all added up
/// (`/proc/stat`, proc(5)).
fn busy_s() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let times = stat.lines().next().unwrap_or_default().split_whitespace();
    // user, nice, system, (idle, iowait), irq, softirq, steal. What comes after is counted in these.
    let times = times.skip(1).take(8).enumerate();
    let busy = times.filter(|(place, _)| ![3, 4].contains(place));
    let ticks: f64 = busy.filter_map(|(_, time)| time.parse::<f64>().ok()).sum();
    let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks / second as f64
}

/// The median of hot claims until the guest's answer.
fn claim(workplace: &Workplace) -> Result<f64, Error> {
    let mut manager = Manager::open(workplace)?;
    manager.create(workplace, Policy::hot(u64::from(CLAIMS), LEASE_S))?;
    manager.fill(workplace)?;
    let mut latencies = Vec::new();
    for _ in 0..CLAIMS {
        let (token, latency) = manager.claim(Tier::Hot)?;
        latencies.push(latency);
        manager.release(&[token])?;
    }
    manager.remove()?;
    Ok(Percentiles::of(&latencies).p50)
}

fn restore(
    workplace: &Workplace,
    group: &Group,
    prefix: &str,
    guests: u32,
    concurrency: u32,
) -> Result<Restored, Error> {
    let brood = &workplace.brood;
    let checkpoint = brood.checkpoint.to_string_lossy();
    let command = brood.command(&[
        "restore",
        &checkpoint,
        "--guests",
        &guests.to_string(),
        "--concurrency",
        &concurrency.to_string(),
        "--prefix",
        prefix,
        "--private-limit",
        PRIVATE_LIMIT,
    ]);
    brood.ask(group.around(&command))
}
