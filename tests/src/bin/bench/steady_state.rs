//! Wait for the host's memory to settle, by the rule of brood's own density run.

use std::{
    thread,
    time::{Duration, Instant},
};

use brood::density::{
    snapshot::MemorySnapshot,
    steady_state::{Sample, settled},
};
use brood_core::host::proc::ProcRoot;

use super::{command::Interrupt, error::Error};

const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// A host that others keep busy never settles.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until memory is stable, or will not become so, and returns it.
pub(crate) fn settle(interrupt: &Interrupt) -> Result<MemorySnapshot, Error> {
    let (root, begin) = (ProcRoot::default(), Instant::now());
    let mut samples = Vec::new();
    loop {
        interrupt.check()?;
        let memory = MemorySnapshot::read(&root)?;
        samples.push(Sample {
            at: begin.elapsed(),
            available: memory.available,
        });
        if settled(&samples) || begin.elapsed() > PATIENCE {
            return Ok(memory);
        }
        thread::sleep(SAMPLE_EVERY);
    }
}
