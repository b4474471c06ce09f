//! What fuzz targets need of this module's own functions: a daemon without listeners, whose clients
//! are byte streams in memory.
//!
//! Its clock is tokio's paused one: when all there is to do is to wait, the time is over at once. So
//! a client that would be kept waiting is found without a wait, and a stream without end costs none.

use std::{path::Path, sync::Arc, time::Duration};

use axum::Router;
use brood_core::engine::EngineConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::{
    App, ServeConfig,
    connections::{Budget, Clients},
    door::{HeaderCase, Site},
    request::Token,
    router,
    serve::app,
};

/// How long a client stays after its last byte: longer than any wait that it may ask for.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A daemon over a state folder.
pub struct Daemon {
    runtime: Runtime,
    app: App,
    clients: Arc<Clients>,
    router: Router,
    /// For clients that must show a token.
    port: Router,
}

impl Daemon {
    /// One with this state folder, and checkpoints in it.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        let config = ServeConfig {
            state: state.to_owned(),
            signers: None,
            socket: state.join("api.sock"),
            socket_mode: 0o600,
            checkpoints: state.join("checkpoints"),
            listen: None,
            engines: EngineConfig::default(),
            pools: Vec::new(),
        };
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(4)
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let (app, clients) = app(&config, &Budget::of_process()).unwrap();
        // Once for all clients, as the daemon does.
        let router_of = |token| router(app.clone(), token).with_state(());
        Self {
            router: router_of(None),
            port: router_of(Some(Token::new("a token of the fuzz target"))),
            runtime,
            app,
            clients,
        }
    }

    /// A client sends this, and reads all that is answered. None of it may be the daemon's own error.
    pub fn client(&self, sent: &[u8], over_port: bool) -> Vec<u8> {
        let site = Site {
            router: if over_port { &self.port } else { &self.router }.clone(),
            headers: HeaderCase::Lower,
        };
        let guard = self.clients.try_enter().expect("there is one client");
        let draining = self.app.draining.subscribe();
        let answers = self.runtime.block_on(async {
            let (mut ours, theirs) = duplex(1 << 20);
            let serving = tokio::spawn(guard.serve(theirs, site, draining));
            ours.write_all(sent).await.unwrap();
            ours.shutdown().await.unwrap();
            let mut answers = Vec::new();
            // A stream of events has no end.
            let events = sent.windows(6).any(|word| word == b"events");
            let patience = if events {
                Duration::from_millis(5)
            } else {
                PATIENCE
            };
            let ended = timeout(patience, ours.read_to_end(&mut answers)).await;
            assert!(events || ended.is_ok(), "a client waits for its answer");
            drop(ours);
            serving.await.unwrap();
            answers
        });
        assert!(!answers.starts_with(b"HTTP/1.1 500"));
        answers
    }
}
