//! Events: what happens to guests, the progress of restores, and counters of their cost. The last
//! ones are remembered for listeners who were disconnected.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, Notify, broadcast};

pub(crate) use super::types::RestoreEvent;
use super::watch::Observation;

/// Number of remembered events: a listener who has missed fewer receives them; for one who has
/// missed more, the stream starts again.
const BACKLOG: usize = 1024;
/// How long events are remembered after the last listener has gone.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Where events go out from.
#[derive(Debug)]
pub(super) struct Events {
    /// Prefix of ids, which tells this daemon's from those of others.
    pub(super) life: String,
    ring: Mutex<Ring>,
    sender: broadcast::Sender<Message>,
    poke: Notify,
    /// The last full list for a new listener, and when it was begun.
    pub(super) everything: AsyncMutex<Option<(Instant, Arc<Observation>)>>,
}

/// The last events.
#[derive(Debug)]
struct Ring {
    /// Number of the last event.
    last: u64,
    /// Every event from this number on is here.
    from: u64,
    messages: VecDeque<Message>,
    /// The last time when there was a listener.
    heard: Option<Instant>,
}

impl Ring {
    fn push(&mut self, message: Message) {
        self.messages.push_back(message);
        if self.messages.len() > BACKLOG
            && let Some(forgotten) = self.messages.pop_front()
        {
            self.from = forgotten.number + 1;
        }
    }

    fn forget(&mut self) {
        self.messages.clear();
        self.from = self.last + 1;
    }

    /// The events after `seen`; `None` when not all of them are remembered.
    fn after(&self, seen: u64) -> Option<VecDeque<Message>> {
        if seen > self.last || seen + 1 < self.from {
            return None;
        }
        let missed = self.messages.iter().filter(|m| m.number > seen);
        Some(missed.cloned().collect())
    }
}

/// An event, as listeners receive it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) number: u64,
    pub(super) kind: &'static str,
    pub(super) data: Arc<str>,
    /// The request that it is of.
    pub(super) request: Option<Arc<str>>,
    /// The pool that it is about.
    pub(super) pool: Option<Arc<str>>,
}

/// Subject of an event.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About<'a> {
    /// The request that does it.
    pub(super) request: Option<&'a str>,
    /// The pool that it happens to.
    pub(super) pool: Option<&'a str>,
}

impl<'a> About<'a> {
    /// About a pool.
    pub(super) fn pool(pool: &'a str) -> Self {
        Self {
            pool: Some(pool),
            ..Self::default()
        }
    }
}

pub(super) fn json(data: &impl Serialize) -> Arc<str> {
    let data = serde_json::to_string(data).expect("events are plain data");
    data.into()
}

/// What a new listener begins with.
pub(super) struct StreamStart {
    pub(super) receiver: broadcast::Receiver<Message>,
    /// The events that it has missed; `None` when the stream must start again.
    pub(super) missed: Option<VecDeque<Message>>,
    /// Number of the last event before.
    pub(super) last: u64,
}

impl Events {
    pub(super) fn new() -> Self {
        Self {
            life: format!("{:x}", Timestamp::now().as_millisecond()),
            ring: Mutex::new(Ring {
                last: 0,
                from: 1,
                messages: VecDeque::new(),
                heard: None,
            }),
            sender: broadcast::channel(BACKLOG).0,
            poke: Notify::new(),
            everything: AsyncMutex::default(),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event to all listeners, and remembers it for disconnected ones.
    pub(super) fn send(&self, kind: &'static str, about: About<'_>, data: &impl Serialize) {
        let mut ring = self.ring();
        ring.last += 1;
        if self.heard() {
            ring.heard = Some(Instant::now());
        }
        if ring.heard.is_none_or(|heard| heard.elapsed() > REMEMBERED) {
            ring.forget();
            return;
        }
        let message = Message {
            number: ring.last,
            kind,
            data: json(data),
            request: about.request.map(Into::into),
            pool: about.pool.map(Into::into),
        };
        ring.push(message.clone());
        // It fails only when the last listener has just gone.
        let _ = self.sender.send(message);
    }

    /// Sends an event to all listeners that is soon out of date, and so not remembered.
    pub(super) fn send_passing(&self, kind: &'static str, data: &impl Serialize) {
        if self.heard() {
            let number = self.ring().last;
            let _ = self.sender.send(Message {
                number,
                kind,
                data: json(data),
                request: None,
                pool: None,
            });
        }
    }

    /// Whether there are listeners.
    pub(super) fn heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Begins to listen, after the event with the id `seen`, if there was one.
    pub(super) fn begin(&self, seen: Option<&str>) -> StreamStart {
        let mut ring = self.ring();
        ring.heard = Some(Instant::now());
        let seen = seen.and_then(|id| {
            let number = id.strip_prefix(&self.life)?.strip_prefix('-')?;
            number.parse().ok()
        });
        StreamStart {
            receiver: self.sender.subscribe(),
            missed: seen.and_then(|seen| ring.after(seen)),
            last: ring.last,
        }
    }

    /// Has the guests looked at now: something was done to them.
    pub(super) fn poke(&self) {
        self.poke.notify_one();
    }

    /// Waits for a poke.
    pub(super) async fn poked(&self) {
        self.poke.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_told_as_long_as_all_of_it_is_remembered() {
        let events = Events::new();
        let id = |number: u64| format!("{}-{number}", events.life);
        let missed = |seen: &str| {
            let missed = events.begin(Some(seen)).missed?;
            Some(missed.iter().map(|m| m.number).collect::<Vec<_>>())
        };
        // Before anybody has listened, nothing is remembered.
        events.send("claim", About::default(), &0);
        let listener = events.begin(None);
        assert!(listener.missed.is_none());
        assert_eq!(listener.last, 1);
        events.send("claim", About::pool("web"), &1);
        events.send_passing("counters", &2);
        events.send("claim", About::default(), &3);
        drop(listener);
        // The listener is cut off; what happens now is remembered for it.
        events.send("claim", About::default(), &4);
        assert_eq!(missed(&id(1)), Some(vec![2, 3, 4]));
        assert_eq!(missed(&id(3)), Some(vec![4]));
        assert_eq!(missed(&id(4)), Some(vec![]));
        // An event of another daemon, of the future, or older than the remembered ones.
        assert_eq!(missed("1-3"), None);
        assert_eq!(missed(&id(5)), None);
        assert_eq!(missed(&id(0)), None);
        for _ in 0..BACKLOG {
            events.send("claim", About::default(), &5);
        }
        assert_eq!(missed(&id(3)), None);
        assert_eq!(missed(&id(4)).map(|missed| missed.len()), Some(BACKLOG));
    }
}
