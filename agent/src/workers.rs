//! Worker threads of requests. A few stay when they have no work: a thread that is there already
//! costs a clone neither time nor pages of its own.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// How many stay without work.
const MAX_IDLE: usize = 2;
/// What requests call needs no deep stack.
const STACK: usize = 128 * 1024;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    idle: usize,
    /// Work that idle workers have not taken yet; never more than there are idle ones.
    jobs: VecDeque<Job>,
}

#[derive(Default)]
pub(crate) struct Workers {
    state: Mutex<State>,
    work: Condvar,
}

impl Workers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a worker that waits.
    pub(crate) fn start(self: &Arc<Workers>) -> io::Result<()> {
        self.spawn(Box::new(|| {}))
    }

    /// Has a worker do this, now.
    pub(crate) fn run(self: &Arc<Workers>, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.lock();
        if state.idle > state.jobs.len() {
            state.jobs.push_back(Box::new(job));
            self.work.notify_one();
            return Ok(());
        }
        drop(state);
        self.spawn(Box::new(job))
    }

    fn spawn(self: &Arc<Workers>, job: Job) -> io::Result<()> {
        let workers = Arc::clone(self);
        let thread = thread::Builder::new().name("worker".into());
        thread.stack_size(STACK).spawn(move || workers.work(job))?;
        Ok(())
    }

    fn work(&self, first: Job) {
        let mut job = first;
        loop {
            job();
            let mut state = self.lock();
            if state.idle >= MAX_IDLE {
                return;
            }
            state.idle += 1;
            job = loop {
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn all_work_is_done_at_once_and_few_workers_stay() {
        let workers = Arc::new(Workers::default());
        workers.start().unwrap();
        for _ in 0..20 {
            let (began, begins) = channel();
            let mut gates = Vec::new();
            for _ in 0..10 {
                let (open, gate) = channel::<()>();
                gates.push(open);
                let began = began.clone();
                let job = move || {
                    began.send(()).unwrap();
                    let _ = gate.recv();
                };
                workers.run(job).unwrap();
            }
            // None waits for another to end.
            for _ in 0..10 {
                begins.recv().unwrap();
            }
            drop(gates);
        }
        assert!(workers.lock().idle <= MAX_IDLE);
    }
}
