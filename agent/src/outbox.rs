//! Frames that wait to be written to the host, and the thread that writes them.
//!
//! Whoever has an answer writes it, when nobody else writes and the port takes it at once: a change of
//! threads would cost more than the write. The thread writes the rest.
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
    /// Somebody has frames in its hands.
    writing: bool,
    /// How many wait for room, or until all is written.
    waiting: usize,
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
            self.written(self.lock());
        }
    }

    /// Waits for frames that nobody else writes.
    fn next(&self) -> (Vec<u8>, Arc<Port>) {
        let mut queue = self.lock();
        loop {
            if let Some(taken) = queue.take() {
                return taken;
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What somebody had in its hands is written.
    fn written(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.writing = false;
        if queue.waiting > 0 || !queue.frames.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Writes what waits, as far as one write does that.
    fn write_now(&self, mut queue: MutexGuard<'_, Queue>) {
        let Some((frames, port)) = queue.take() else {
            // Whoever writes goes on to these, or there is no port.
            return;
        };
        drop(queue);
        let length = port.write_now(&frames);
        let mut queue = self.lock();
        let same_port = queue
            .port
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, &port));
        if length < frames.len() && same_port {
            queue.bytes += frames.len() - length;
            queue.frames.push_front(frames[length..].to_vec());
        }
        self.written(queue);
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
            self.write_now(queue);
        }
    }

    /// Sends a message soon: with the next, or by [`Outbox::push`].
    pub(crate) fn send_soon(&self, session: SessionId, request: RequestId, message: &ToHost) {
        let mut frame = Vec::new();
        if encode(session, request, message, &mut frame).is_ok() {
            let mut queue = self.lock();
            if queue.session == Some(session) {
                queue.push(frame);
            }
        }
    }

    /// Writes what was to be sent soon.
    pub(crate) fn push(&self) {
        self.write_now(self.lock());
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
                self.write_now(queue);
                return Sent::Yes;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Sent::NoRoom;
            }
            let left = left.unwrap_or(Duration::from_secs(3600));
            queue.waiting += 1;
            let waited = self.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            queue.waiting -= 1;
        }
    }

    /// Waits until all is written, `limit` at most.
    pub(crate) fn flush(&self, limit: Duration) {
        let mut queue = self.lock();
        queue.waiting += 1;
        let busy = |queue: &mut Queue| queue.writing || !queue.frames.is_empty();
        let waited = self.changed.wait_timeout_while(queue, limit, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }
}

impl Queue {
    /// Takes frames to write them, unless somebody else does: as many as one write takes, as each
    /// write wakes the host.
    fn take(&mut self) -> Option<(Vec<u8>, Arc<Port>)> {
        if self.writing {
            return None;
        }
        let port = self.port.clone()?;
        let mut frames = self.frames.pop_front()?;
        while let Some(frame) = self.frames.front()
            && frames.len() + frame.len() <= PORT_WRITE
        {
            frames.extend_from_slice(frame);
            self.frames.pop_front();
        }
        self.bytes -= frames.len();
        self.writing = true;
        Some((frames, port))
    }

    fn push(&mut self, frame: Vec<u8>) {
        if self.port.is_some() {
            self.bytes += frame.len();
            self.frames.push_back(frame);
        }
    }
}
