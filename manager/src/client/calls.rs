//! Requests to the daemon: made and answered, watched, or listened to.

use std::{ops::ControlFlow, sync::atomic::Ordering, time::Duration};

use hyper::Method;
use serde::de::DeserializeOwned;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Client, Error, ServerEvent,
    connection::{Call, Connection},
    events::Stream,
};
use crate::ops::RestoreObserver;
use brood_core::guest_id::random;

/// How often a wait checks whether it was cancelled.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Client {
    /// Makes a request, and reads the answer.
    pub(crate) fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(connection.call(call))
    }

    /// The same, where the answer is text.
    pub(crate) fn text(&self, call: &Call) -> Result<String, Error> {
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(connection.text(call))
    }

    /// Makes a request that restores guests; tells how that comes along, and cancels it when it is
    /// to be interrupted. It is answered all the same.
    pub(crate) fn watched<T: DeserializeOwned>(
        &self,
        call: Call,
        observer: &dyn RestoreObserver,
    ) -> Result<T, Error> {
        let random: [u8; 8] = random().unwrap_or_default();
        let id = format!("brood-{:016x}", u64::from_be_bytes(random));
        let call = call.of(&id);
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(async {
            let (socket, dir) = connection.place();
            let (mut canceller, path) = (
                Connection::new(&socket, &dir),
                format!("/api/v1/events?request={id}"),
            );
            // Without it there is no progress to show; that is no reason not to restore.
            let mut stream = Stream::open(&socket, &dir, &path).await.ok();
            let answer = connection.call(&call);
            tokio::pin!(answer);
            let mut ticks = interval(CANCEL_POLL_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut told = false;
            loop {
                tokio::select! {
                    told = next(&mut stream) => match told {
                        Some(told) => {
                            if let Ok(event) = serde_json::from_str(&told.data) {
                                observer.told(&event);
                            }
                        }
                        None => stream = None,
                    },
                    answer = &mut answer => return answer,
                    _ = ticks.tick(), if !told => {
                        if observer.cancelled().load(Ordering::Relaxed) {
                            let path = format!("/api/v1/restores/{id}");
                            let cancel = Call::change(Method::DELETE, path, "cancel a restore");
                            // It may not have begun yet: then it is tried again.
                            told = canceller.call::<()>(&cancel).await.is_ok();
                        }
                    }
                }
            }
        })
    }

    /// Listens to all events until `hear` breaks; it is also called, without one, several times a
    /// second. Returns when the daemon ends the stream, too.
    pub(crate) fn listen(
        &self,
        hear: &mut dyn FnMut(Option<ServerEvent>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let (socket, dir) = self.connection.borrow().place();
        self.runtime.block_on(async {
            let mut stream = Some(Stream::open(&socket, &dir, "/api/v1/events").await?);
            let mut ticks = interval(CANCEL_POLL_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let told = tokio::select! {
                    told = next(&mut stream) => match told {
                        Some(told) => Some(told),
                        None => return Ok(()),
                    },
                    _ = ticks.tick() => None,
                };
                if hear(told).is_break() {
                    return Ok(());
                }
            }
        })
    }
}

/// The next event; never, where there is no stream.
async fn next(stream: &mut Option<Stream>) -> Option<ServerEvent> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}
