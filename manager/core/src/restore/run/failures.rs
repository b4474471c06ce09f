//! Failures of a run: guests that do not answer, a nursery that was killed, a restore that was
//! cancelled.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{NURSERIES, Run};
use crate::{
    engine::{GuestOrder, GuestRef, process},
    guest_id::GuestId,
    guests,
    restore::{
        error::Error,
        report::{RestoreFailure, RestoreStep},
        spec::TIMEOUT,
    },
};

/// How long a killed process may take to go.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What became of a guest that was to be ended.
enum End {
    /// Its process is gone.
    Ended,
    /// It has come to nothing that it could be found by.
    NotFound,
    /// Its process does not go, or cannot be looked at: why.
    Stays(String),
}

impl Run<'_> {
    /// Ends guests whose time is up. An order's time counts from when it was given out; an order
    /// that may still be queued behind others has time as long as outcomes keep coming.
    pub(super) fn end_silent(
        &mut self,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) -> Result<(), Error> {
        let timeout = self.parts.spec.timeout.unwrap_or(TIMEOUT);
        let nobody_is_heard = self.heard.elapsed() > timeout;
        let late = |(place, (_, begin)): &(&u64, &(GuestOrder, Instant))| {
            begin.elapsed() > timeout && (nobody_is_heard || **place < self.furthest)
        };
        let silent: Vec<u64> = self
            .given_out
            .iter()
            .filter(late)
            .map(|(n, _)| *n)
            .collect();
        let mut lost = false;
        for place in silent {
            let Some((order, _)) = self.given_out.remove(&place) else {
                continue;
            };
            let why = format!("it did not answer within {} s", timeout.as_secs_f64());
            match self.end(&order.id) {
                End::Stays(also) => {
                    let error = format!("{why}, and {also}");
                    self.tell_failure(order.identity.name, error, observe);
                }
                end => {
                    // The process with this order cannot be told from those with other orders.
                    lost |= matches!(end, End::NotFound);
                    if lost {
                        self.warm.session.abort();
                    }
                    self.fail(order.id, order.identity.name, why, observe);
                }
            }
        }
        if lost {
            self.replace_nursery(observe)?;
            self.heard = Instant::now();
        }
        Ok(())
    }

    /// Ends all that are still under way, as if they had not been begun.
    pub(super) fn call_off(&mut self, observe: &mut dyn FnMut(&RestoreStep<'_>)) {
        // Answers that came before the end are still to be had.
        while let Ok(Some(outcome)) = self.warm.session.wait(Duration::ZERO) {
            if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                self.take_outcome(order, begin.elapsed(), outcome.result, observe);
            }
        }
        self.warm.session.abort();
        self.broken = true;
        for (_, (order, _)) in std::mem::take(&mut self.given_out) {
            match self.end(&order.id) {
                End::Stays(error) => {
                    self.tell_failure(order.identity.name, error, observe);
                }
                End::Ended | End::NotFound => {
                    match self
                        .parts
                        .engine
                        .forget(GuestRef::new(&self.state.run_dir(), &order.id))
                    {
                        Ok(()) => self.queue.push_front(order),
                        // It keeps its record, so that the next look removes what is left.
                        Err(e) => self.tell_failure(order.identity.name, e.to_string(), observe),
                    }
                }
            }
        }
    }

    /// Ends a guest that failed, and tells why it did.
    pub(super) fn fail(
        &mut self,
        id: GuestId,
        name: String,
        error: String,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) {
        // A guest that lives, or may, keeps its record: without one, nobody would find it. So does
        // a guest whose disk is left. The next command that looks tries again.
        let error = match self.end(&id) {
            End::Stays(also) => {
                self.tell_failure(name, format!("{error}, and {also}"), observe);
                return;
            }
            End::Ended | End::NotFound => error,
        };
        self.tell_failure(name, error, observe);
        let run_dir = self.state.run_dir();
        if self
            .parts
            .engine
            .forget(GuestRef::new(&run_dir, &id))
            .is_ok()
            && self.release(&id).is_ok()
        {
            let _ = self.state.remove_guests(&[id]);
        }
    }

    fn tell_failure(
        &mut self,
        name: String,
        error: String,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) {
        let failure = RestoreFailure { name, error };
        observe(&RestoreStep::Failed(&failure));
        self.report.failures.push(failure);
    }

    fn fail_given_out(&mut self, why: &str, observe: &mut dyn FnMut(&RestoreStep<'_>)) {
        for (_, (order, _)) in std::mem::take(&mut self.given_out) {
            self.fail(order.id, order.identity.name, why.to_owned(), observe);
        }
    }

    /// Ends a guest that has not answered.
    fn end(&self, id: &GuestId) -> End {
        let guest = match self
            .parts
            .engine
            .find(GuestRef::new(&self.state.run_dir(), id))
        {
            Ok(Some(guest)) => guest,
            Ok(None) => return End::NotFound,
            Err(e) => return End::Stays(e.to_string()),
        };
        match guest.open() {
            Ok(None) => End::Ended,
            Ok(Some(handle)) => {
                let _ = process::send(&handle, Signal::SIGKILL);
                match process::wait_for_end(&handle, KILL_PATIENCE) {
                    Ok(true) => End::Ended,
                    // It is listed: its control socket is found.
                    _ => End::Stays(format!("its process {} does not end", guest.pid)),
                }
            }
            Err(e) => End::Stays(format!("its process {} cannot be ended: {e}", guest.pid)),
        }
    }

    /// The nursery is gone, and with it every guest that had not answered. Their orders are given
    /// to a new one, unless nurseries keep dying.
    pub(super) fn replace_nursery(
        &mut self,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) -> Result<(), Error> {
        // Answers that came before the end are still to be had.
        while let Ok(Some(outcome)) = self.warm.session.wait(Duration::ZERO) {
            if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                self.take_outcome(order, begin.elapsed(), outcome.result, observe);
            }
        }
        self.warm.session.abort();
        if self.nurseries >= NURSERIES {
            self.fail_given_out("the nursery was killed again and again", observe);
            while let Some(order) = self.queue.pop_front() {
                self.fail(
                    order.id,
                    order.identity.name,
                    "the nursery was killed again and again".to_owned(),
                    observe,
                );
            }
            return Ok(());
        }
        let run_dir = self.state.run_dir();
        let mut again: Vec<_> = std::mem::take(&mut self.given_out).into_iter().collect();
        again.sort_by_key(|(seq, _)| std::cmp::Reverse(*seq));
        for (_, (order, _)) in again {
            if let End::Stays(error) = self.end(&order.id) {
                self.tell_failure(order.identity.name, error, observe);
                continue;
            }
            // The dead guest's control socket, and its writes on its disk, would be in the new
            // guest's way.
            self.parts
                .engine
                .forget(GuestRef::new(&run_dir, &order.id))?;
            self.release(&order.id).map_err(guests::Error::from)?;
            self.queue.push_front(order);
        }
        self.warm.session = self.parts.begin_session(&run_dir, &mut self.nurseries)?;
        (self.warm.next, self.furthest) = (0, 0);
        observe(&RestoreStep::NurseryReplaced);
        Ok(())
    }
}
