//! Manager of bhyve guests, with stand-ins for bhyve: whether a thousand guests cost it more for
//! each than a hundred do. The cost of the guests themselves is not measured: they are fakes.

use std::time::Instant;

use brood_tests::{Lab, Peak};

use super::{Measurement, error::Error, goal::Row, workplace::Workplace};

const FEW: u32 = 100;
const MANY: u32 = 1_000;

/// Time of one restore in seconds, and what the manager needed at most.
fn restore(lab: &Lab, checkpoint: &str, guests: u32) -> Result<(f64, Peak), Error> {
    let count = guests.to_string();
    let arguments = ["restore", checkpoint, "-n", &count, "--overcommit"];
    let begin = Instant::now();
    let (report, peak) = lab.watched(&arguments);
    let seconds = begin.elapsed().as_secs_f64();
    let restored = report["restored"].as_u64().unwrap_or(0);
    lab.destroy_all();
    if restored == u64::from(guests) {
        Ok((seconds, peak))
    } else {
        Err(Error::Short {
            command: "restoring stand-ins",
            done: restored,
            asked: guests.into(),
        })
    }
}

/// Time for each of many guests by that for each of few, and memory for each guest more.
pub(crate) fn manager(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let many = workplace.guests.unwrap_or(MANY).max(FEW + 1);
    let (lab, checkpoint) = Lab::with_checkpoint();
    let checkpoint = checkpoint.to_string();
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..workplace.rounds {
        workplace.brood.interrupt.check()?;
        let (few_s, few_peak) = restore(&lab, &checkpoint, FEW)?;
        let (many_s, many_peak) = restore(&lab, &checkpoint, many)?;
        times.push((many_s / f64::from(many)) / (few_s / f64::from(FEW)));
        let more = many_peak.memory.saturating_sub(few_peak.memory) >> 10;
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        memory.push(f64::from(more) / f64::from(many - FEW));
    }
    let row = |figure: String, unit, values: &[f64]| {
        Row::alone(Measurement::BhyveManager, figure, unit, values, None)
    };
    Ok(vec![
        row(
            format!("bhyve stand-ins: time for each of {many} by that of {FEW}"),
            "×",
            &times,
        ),
        row(
            "bhyve stand-ins: memory of the manager for each guest more".to_owned(),
            "KiB",
            &memory,
        ),
    ])
}
