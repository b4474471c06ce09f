//! Real Linux guests on QEMU, beside a bare script: the same QEMU with the same memory and devices,
//! started by hand, without a manager.
//!
//! Brood's guest counts when it may be handed out: reseeded, with a clock, a name and a machine-id of
//! its own. The script's counts when its agent has answered once; and, a second time, when it has
//! taken the same steps.

mod memory;
mod place;
mod script;

use std::time::{Duration, Instant};

use brood_core::{
    agent::{
        Agent, CloneIdentity, GuestStep, StepLimits, StepReport, prepare_clone, protocol::Exec,
    },
    percentiles::Percentiles,
};

use self::{memory::Memory, place::Place, script::Script};
use super::{
    Measurement,
    cgroup::Group,
    error::Error,
    goal::{Baseline, Goal, Row},
    steady_state::settle,
    workplace::Workplace,
};

/// Guests of a round, restored one at a time.
const GUESTS: u32 = 5;
/// Fewest rounds: a translated guest's times lie far apart.
const ROUNDS: u32 = 10;
/// Guests at once.
const CROWD: u32 = 200;
/// Programs that are run in a guest.
const PROGRAMS: u32 = 100;
/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Processes and threads that a QEMU may have.
const THREADS: u64 = 12;

/// All figures of Linux guests.
pub(crate) fn linux(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let place = Place::make(workplace)?;
    let script = Script::of(&place)?;
    let mut rows = restores(workplace, &place, &script)?;
    rows.extend(steps(workplace, &script)?);
    rows.extend(programs(workplace, &place)?);
    rows.extend(crowd(workplace, &place)?);
    Ok(rows)
}

fn row(figure: impl Into<String>, unit: &'static str, values: &[f64], goal: Option<Goal>) -> Row {
    Row::alone(Measurement::Linux, figure, unit, values, goal)
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// One value for each round.
#[derive(Default)]
struct Rounds {
    took: Vec<f64>,
    memory: Vec<Memory>,
}

impl Rounds {
    fn column(&self, part: impl Fn(&Memory) -> f64) -> Vec<f64> {
        self.memory.iter().map(part).collect()
    }
}

/// Time of a restore, and memory of the guests afterwards, of brood and of the script in turns.
fn restores(workplace: &Workplace, place: &Place, script: &Script) -> Result<Vec<Row>, Error> {
    let rounds = workplace.rounds.max(ROUNDS);
    let (mut brood, mut bare, mut safe) = (Rounds::default(), Rounds::default(), Rounds::default());
    for round in 0..rounds {
        for turn in 0..3 {
            workplace.brood.interrupt.check()?;
            let (who, (took, memory), rounds_of) = match (round + turn) % 3 {
                0 => ("brood", by_brood(place)?, &mut brood),
                1 => ("the script", by_script(script, None)?, &mut bare),
                _ => (
                    "the script with steps",
                    by_script(script, Some(round))?,
                    &mut safe,
                ),
            };
            let each = memory.total();
            eprintln!(
                "linux: round {} of {rounds}: {who}: {took:.1} ms, {each:.2} MiB",
                round + 1
            );
            rounds_of.took.push(took);
            rounds_of.memory.push(memory);
        }
    }
    let compared = |figure: &str, part: fn(&Memory) -> f64, goal| {
        let (own, other) = (brood.column(part), bare.column(part));
        row(figure, "MiB", &own, None).against(Baseline::Script, &own, &other, goal)
    };
    let times = |than: &str, other: &Rounds, goal| {
        let figure =
            format!("Linux: restore p50, {GUESTS} guests one at a time; the script {than}");
        let times = row(figure, "ms", &brood.took, None);
        times.against(Baseline::Script, &brood.took, &other.took, goal)
    };
    let with_steps = {
        let (own, other) = (brood.column(Memory::total), safe.column(Memory::total));
        let figure = "Linux: memory per guest; the script takes the same steps";
        let memory = row(figure, "MiB", &own, None);
        memory.against(Baseline::Script, &own, &other, None)
    };
    let goal = Some(Goal::RatioAtMost(1.1));
    Ok(vec![
        times("takes the same steps", &safe, goal),
        times("is answered once", &bare, None),
        with_steps,
        compared(
            "Linux: memory per guest",
            Memory::total,
            Some(Goal::RatioAtMost(1.0)),
        ),
        compared("Linux: of it the guest's own pages", |m| m.guest, None),
        compared("Linux: of it QEMU's own pages", |m| m.process, None),
        compared("Linux: of it page tables and stacks", |m| m.kernel, None),
    ])
}

fn by_brood(place: &Place) -> Result<(f64, Memory), Error> {
    let restored = place.brood.restore(GUESTS, 1, None)?;
    let pids = place.pids()?;
    let memory = Memory::settled(&pids, &place.brood.interrupt)?;
    place.brood.destroy_all()?;
    Ok((restored.restore_ms.p50, memory))
}

/// Guests of the script; with a number they take the steps that make a clone safe.
fn by_script(script: &Script, steps: Option<u32>) -> Result<(f64, Memory), Error> {
    let mut guests = Vec::new();
    let mut took = Vec::new();
    for number in 0..GUESTS {
        let guest = script.start(number)?;
        match steps {
            Some(round) => {
                let _ = prepare(&guest.agent, round)?;
            }
            None => guest.answers()?,
        }
        took.push(ms(guest.began.elapsed()));
        guests.push(guest);
    }
    let pids: Vec<u32> = guests.iter().map(script::Guest::pid).collect();
    let memory = Memory::settled(&pids, &script.interrupt)?;
    Ok((Percentiles::of(&took).p50, memory))
}

/// Makes a clone safe.
fn prepare(agent: &Agent, number: u32) -> Result<StepReport, Error> {
    let identity = CloneIdentity {
        hostname: format!("clone-{number}"),
        mac: None,
        machine_id: [number.to_le_bytes()[0]; 16],
        generation: [number.to_le_bytes()[0]; 16],
    };
    let prepared = prepare_clone(agent, &identity, None, StepLimits::default());
    prepared.map_err(|e| Error::Guest(e.to_string()))
}

/// The steps that make a clone safe, in clones that were just started.
fn steps(workplace: &Workplace, script: &Script) -> Result<Vec<Row>, Error> {
    const STEPS: [GuestStep; 6] = [
        GuestStep::Thaw,
        GuestStep::Reseed,
        GuestStep::Clock,
        GuestStep::Identity,
        GuestStep::Hooks,
        GuestStep::Ready,
    ];
    let mut sums = Vec::new();
    let mut by_step = [const { Vec::new() }; STEPS.len()];
    for round in 0..workplace.rounds.max(ROUNDS) {
        script.interrupt.check()?;
        let guest = script.start(0)?;
        let began = Instant::now();
        let report = prepare(&guest.agent, round)?;
        let sum = ms(began.elapsed());
        eprintln!("linux: steps of clone {round}: {sum:.1} ms");
        sums.push(sum);
        for (step, values) in STEPS.iter().zip(&mut by_step) {
            let took = report.took.iter().find(|(of, _)| of == step);
            values.push(took.map_or(f64::NAN, |(_, took)| ms(*took)));
        }
    }
    let sum = row(
        "Linux: steps that make a clone safe",
        "ms",
        &sums,
        Some(Goal::AtMost(20.0)),
    );
    let each = STEPS.iter().zip(&by_step).map(|(step, values)| {
        let figure = format!("Linux: of it {step}");
        row(figure, "ms", values, None)
    });
    Ok([sum].into_iter().chain(each).collect())
}

/// A program that does nothing, run by the host and by the guest itself.
fn programs(workplace: &Workplace, place: &Place) -> Result<Vec<Row>, Error> {
    let (mut own, mut by_agent, mut above) = (Vec::new(), Vec::new(), Vec::new());
    let restored = place.brood.restore(1, 1, None)?;
    let name = restored.guests.first().map(|guest| guest.name.clone());
    let agent = place.agent(&name.unwrap_or_default())?;
    for round in 0..workplace.rounds {
        workplace.brood.interrupt.check()?;
        let looped = |count: u32| -> Result<Duration, Error> {
            let line = format!("i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done");
            run(&agent, &["/bin/sh", "-c", &line])
        };
        let (none, all) = (looped(0)?, looped(PROGRAMS)?);
        let guests_own = ms(all.saturating_sub(none)) / f64::from(PROGRAMS);
        let mut took = Vec::new();
        for _ in 0..PROGRAMS {
            took.push(ms(run(&agent, &["/bin/true"])?));
        }
        let p50 = Percentiles::of(&took).p50;
        eprintln!(
            "linux: round {} of {}: exec {p50:.2} ms, the guest's own {guests_own:.2} ms",
            round + 1,
            workplace.rounds
        );
        own.push(guests_own);
        by_agent.push(p50);
        above.push(p50 - guests_own);
    }
    drop(agent);
    place.brood.destroy_all()?;
    Ok(vec![
        row(
            "Linux: exec of /bin/true by its agent, p50",
            "ms",
            &by_agent,
            None,
        ),
        row(
            "Linux: the guest's own fork and exec of it",
            "ms",
            &own,
            None,
        ),
        row(
            "Linux: what the agent adds",
            "ms",
            &above,
            Some(Goal::AtMost(5.0)),
        ),
    ])
}

fn run(agent: &Agent, argv: &[&str]) -> Result<Duration, Error> {
    let exec = Exec {
        argv: argv.iter().map(|word| (*word).into()).collect(),
        ..Exec::default()
    };
    let began = Instant::now();
    let ran = agent.run(exec, 1 << 10);
    let _ = ran.map_err(|e| Error::Guest(e.to_string()))?;
    Ok(began.elapsed())
}

/// Many at once: whether all are there, and what they take.
fn crowd(workplace: &Workplace, place: &Place) -> Result<Vec<Row>, Error> {
    let guests = workplace.guests.unwrap_or(CROWD);
    let before = settle(&workplace.brood.interrupt)?;
    let pids = u64::from(guests) * THREADS + 256;
    let group = Group::make(pids, before.available.0 / 10 * 9);
    let limits = match &group.limits[..] {
        [] => "none".to_owned(),
        limits => limits.join(", "),
    };
    eprintln!("linux: limits of brood's own control group: {limits}");
    let restored = place
        .brood
        .restore(guests, workplace.concurrency, Some(&group))?;
    let memory = Memory::settled(&place.pids()?, &workplace.brood.interrupt)?;
    let mut answered = 0_u32;
    for guest in &restored.guests {
        workplace.brood.interrupt.check()?;
        answered += u32::from(place.brood.ping(&guest.name).is_ok());
    }
    place.brood.destroy_all()?;
    let row = |figure: &str, unit, value, goal| {
        row(
            format!("{guests} Linux clones: {figure}"),
            unit,
            &[value],
            goal,
        )
    };
    let all = Goal::AtLeast(f64::from(guests));
    Ok(vec![
        row("that answered", "", f64::from(answered), Some(all)),
        row("restore", "s", restored.wall_s, None),
        row("memory per guest", "MiB", memory.total(), None),
    ])
}
