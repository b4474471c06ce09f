//! Frames that wait to be written to the host, and the thread that writes them.
//!
//! Answers always find room, as there are only so many requests. Data waits for room: so what waits
//! in all is bounded, whatever number of programs write at once.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use brood_agent_protocol::{RequestId, SessionId, ToHost, encode};

use crate::port::Port;

/// How many bytes may wait for more data to be taken.
const ROOM: usize = 512 * 1024;

/// What a virtio-serial port of Linux takes in one write.
const PORT_WRITE: usize = 32 * 1024;
/// How much of a stream goes into one message, so that its frame is one write.
pub(crate) const PIECE: usize = PORT_WRITE - 256;

/// How an attempt to send data ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Yes,
    /// There was no room until the time was over.
    NoRoom,
    /// The session has ended.
    Gone,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    session: Option<SessionId>,
    port: Option<Arc<Port>>,
    /// The writer has a frame in its hands.
    writing: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// Something changed in the queue.
    changed: Condvar,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the thread that writes.
    pub(crate) fn start(self: &Arc<Outbox>) -> std::io::Result<()> {
        let outbox = Arc::clone(self);
        let writer = thread::Builder::new().name("writer".into());
        writer.spawn(move || outbox.write())?;
        Ok(())
    }

    fn write(&self) {
        loop {
            let (frames, port) = self.next();
            // Where the host is gone they are lost; the next session will not miss them.
            let _ = port.write_all(&frames);
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for frames: as many as one write takes, as each write wakes the host.
    fn next(&self) -> (Vec<u8>, Arc<Port>) {
        let mut queue = self.lock();
        loop {
            if let Some(port) = queue.port.clone()
                && let Some(mut frames) = queue.frames.pop_front()
            {
                while let Some(frame) = queue.frames.front()
                    && frames.len() + frame.len() <= PORT_WRITE
                {
                    frames.extend_from_slice(frame);
                    queue.frames.pop_front();
                }
                queue.bytes -= frames.len();
                queue.writing = true;
                return (frames, port);
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Where frames go from now on; what waits for the port before it is dropped.
    pub(crate) fn set_port(&self, port: Option<Arc<Port>>) {
        let mut queue = self.lock();
        queue.port = port;
        queue.frames.clear();
        queue.bytes = 0;
        self.changed.notify_all();
    }

    /// Frames of other sessions are dropped from now on.
    pub(crate) fn set_session(&self, session: Option<SessionId>) {
        let mut queue = self.lock();
        queue.session = session;
        queue.frames.clear();
        queue.bytes = 0;
        self.changed.notify_all();
    }

    /// Sends a message that needs no room. It is dropped when its session is over.
    pub(crate) fn send(&self, session: SessionId, request: RequestId, message: &ToHost) {
        let mut frame = Vec::new();
        if encode(session, request, message, &mut frame).is_err() {
            // Replies are made so that they fit.
            return;
        }
        let mut queue = self.lock();
        if session == SessionId::NONE || queue.session == Some(session) {
            queue.push(frame);
            self.changed.notify_all();
        }
    }

    /// Sends a message that waits for room, until then at most; for ever, when that is none.
    pub(crate) fn send_data(
        &self,
        session: SessionId,
        request: RequestId,
        message: &ToHost,
        until: Option<Instant>,
    ) -> Sent {
        let mut frame = Vec::new();
        if encode(session, request, message, &mut frame).is_err() {
            return Sent::Gone;
        }
        let mut queue = self.lock();
        loop {
            if queue.session != Some(session) {
                return Sent::Gone;
            }
            if queue.bytes < ROOM {
                queue.push(frame);
                self.changed.notify_all();
                return Sent::Yes;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Sent::NoRoom;
            }
            let left = left.unwrap_or(Duration::from_secs(3600));
            let waited = self.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until all is written, `limit` at most.
    pub(crate) fn flush(&self, limit: Duration) {
        let queue = self.lock();
        let busy = |queue: &mut Queue| queue.writing || !queue.frames.is_empty();
        let waited = self.changed.wait_timeout_while(queue, limit, busy);
        drop(waited);
    }
}

impl Queue {
    fn push(&mut self, frame: Vec<u8>) {
        if self.port.is_some() {
            self.bytes += frame.len();
            self.frames.push_back(frame);
        }
    }
}
