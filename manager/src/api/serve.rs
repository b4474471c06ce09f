//! Life of the daemon: it listens, serves, and drains when it is told to end or another daemon has
//! taken its place.

use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    os::unix::{fs::MetadataExt, net::UnixListener as StdListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, UnixListener},
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{
    App, Error, Parts,
    cloud_hypervisor::GuestSockets,
    connections::{Budget, Clients, Entrance},
    door::{Door, HeaderCase},
    events::Events,
    fills::Fills,
    in_flight::InFlight,
    metrics::Metrics,
    permits::Permits,
    pool_reconciler,
    reload::Reload,
    request::Token,
    router,
    sample::Sampler,
    socket::{Name, Place},
    watch as watcher,
    workers::Workers,
};
use brood_core::{engine::EngineConfig, owner_only, pool::NewPool, state::State};

/// How often the daemon looks whether its socket is still its own.
const SOCKET_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long the port of a daemon that is being replaced is waited for.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// Shortest token that is taken.
const TOKEN_MIN: usize = 16;
/// Longest token file that is read.
const TOKEN_MAX: u64 = 4096;
/// Threads for the daemon's own calls, which keep pools and watch guests.
const OWN_THREADS: usize = 40;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// The state folder.
    pub state: PathBuf,
    /// The folder of keys of which one must have signed each checkpoint.
    pub signers: Option<PathBuf>,
    /// The socket to listen on.
    pub socket: PathBuf,
    /// Its permissions.
    pub socket_mode: u32,
    /// The folder of checkpoints that are named without one.
    pub checkpoints: PathBuf,
    /// A port to listen on, too.
    pub listen: Option<Listen>,
    /// How the engines are configured.
    pub engines: EngineConfig,
    /// The pools that there should be.
    pub pools: Vec<NewPool>,
}

/// How the daemon came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// All that was asked was answered.
    Drained,
    /// A second signal ended it, and cut off open requests.
    CutOff,
}

/// A port to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// An address of this machine that only this machine can reach.
    pub address: SocketAddr,
    /// The file with the token that requests must bear.
    pub token_file: PathBuf,
}

/// Serves until SIGTERM or SIGINT, or until another daemon has taken over; then answers open
/// requests, and returns. A second signal ends it at once. At SIGHUP it reads the configuration
/// again.
///
/// # Errors
/// When the state cannot be opened, or no socket be made.
pub fn serve(config: ServeConfig, reload: &Reload) -> Result<ServeEnd, Error> {
    let token = config.listen.as_ref().map(token).transpose()?;
    let budget = Budget::of_process();
    // Opened once here, so that an unusable folder is an error at once.
    drop(State::open(&config.state)?);
    if owner_only::is_open(&config.state) {
        tracing::warn!(
            "other users may list the state folder, though not read its files: chmod 700 {}",
            config.state.display()
        );
    }
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(budget.calls + OWN_THREADS)
        .build()
        .map_err(|source| Error::Start {
            action: "start threads",
            source,
        })?;
    let ended = runtime.block_on(run(config, budget, token, reload));
    if matches!(ended, Ok(ServeEnd::CutOff)) {
        runtime.shutdown_background();
    }
    ended
}

/// The daemon's part that listens.
struct Doors {
    app: App,
    budget: Budget,
    clients: Arc<Clients>,
    place: Place,
    /// The door of the socket, and others before it whose clients are still served.
    socket: Door,
    before: Vec<JoinHandle<()>>,
    port: Option<Door>,
}

impl Doors {
    fn open(
        app: &App,
        budget: Budget,
        clients: Arc<Clients>,
        config: &ServeConfig,
    ) -> Result<Self, Error> {
        let (listener, place) = Place::take(&config.state, &config.socket, config.socket_mode)?;
        let listener = async_listener(listener, &place)?;
        let router = router(app.clone(), None);
        Ok(Self {
            socket: Door::open(app, &clients, listener, router, HeaderCase::Lower),
            app: app.clone(),
            budget,
            clients,
            place,
            before: Vec::new(),
            port: None,
        })
    }

    /// The name of the socket was removed: it is made again.
    fn open_socket_again(&mut self) -> Result<(), Error> {
        let Some((listener, place)) = self.place.take_again()? else {
            return Ok(());
        };
        let listener = async_listener(listener, &place)?;
        let router = router(self.app.clone(), None);
        let door = Door::open(
            &self.app,
            &self.clients,
            listener,
            router,
            HeaderCase::Lower,
        );
        let before = std::mem::replace(&mut self.socket, door);
        self.place = place;
        self.before.retain(|serving| !serving.is_finished());
        self.before.push(before.close());
        Ok(())
    }

    async fn open_port(&mut self, address: SocketAddr, token: Token) -> Result<(), Error> {
        let listener = port(address).await?;
        let address = listener.local_addr().unwrap_or(address);
        let clients = Clients::of_port(&self.budget, &self.app.metrics);
        let router = router(self.app.for_clients(Entrance::Port), Some(token));
        let door = Door::open(&self.app, &clients, listener, router, HeaderCase::Lower);
        self.port = Some(door);
        tracing::info!(%address, "listening on a port, for clients with the token");
        Ok(())
    }

    /// Until all clients are answered; the daemon drains.
    async fn close(self) {
        self.place.give_back();
        let doors = [self.socket].into_iter().chain(self.port);
        let serving = doors.map(Door::close).chain(self.before);
        let serving: Vec<_> = serving.chain(self.app.guest_sockets.stop()).collect();
        for serving in serving {
            let _ = serving.await;
        }
    }

    /// Looks after the socket's name until it is another's; returns why the daemon is to end.
    async fn until_replaced(&mut self) -> &'static str {
        let mut told = false;
        loop {
            match self.place.name() {
                Name::Ours => told = false,
                Name::Taken => return "another daemon has taken over",
                Name::Replaced => return "another file has the name of the socket",
                Name::Gone => match self.open_socket_again() {
                    Ok(()) => {
                        let socket = self.place.path().display();
                        tracing::warn!(%socket, "the socket had been removed: listening on it again");
                    }
                    // The folder may come back.
                    Err(e) if !told => {
                        tracing::error!("the socket was removed: {e}");
                        told = true;
                    }
                    Err(_) => {}
                },
            }
            sleep(SOCKET_POLL_INTERVAL).await;
        }
    }
}

fn async_listener(listener: StdListener, place: &Place) -> Result<UnixListener, Error> {
    UnixListener::from_std(listener).map_err(|source| Error::Listen {
        on: place.path().display().to_string(),
        source,
    })
}

/// What requests are answered with, and the clients of the socket.
pub(super) fn app(config: &ServeConfig, budget: &Budget) -> Result<(App, Arc<Clients>), Error> {
    let metrics = Metrics::new();
    let clients = Clients::of_socket(budget, &metrics);
    let parts = Arc::new(Parts {
        workers: Arc::new(Workers::new(config)?),
        events: Events::new(),
        metrics,
        guest_sockets: GuestSockets::new(&config.state, Arc::clone(&clients), budget.guest_sockets),
        sampler: Sampler::default(),
        in_flight: InFlight::default(),
        pools_changed: Notify::new(),
        room: Notify::new(),
        fills: Fills::default(),
        permits: Permits::new(budget),
        checkpoints: config.checkpoints.clone(),
        draining: watch::Sender::new(false),
    });
    let by = Entrance::Socket;
    Ok((App { parts, by }, clients))
}

async fn run(
    config: ServeConfig,
    budget: Budget,
    token: Option<Token>,
    reload: &Reload,
) -> Result<ServeEnd, Error> {
    let signals = |kind| {
        signal(kind).map_err(|source| Error::Start {
            action: "wait for signals",
            source,
        })
    };
    let (mut term, mut int, mut hup) = (
        signals(SignalKind::terminate())?,
        signals(SignalKind::interrupt())?,
        signals(SignalKind::hangup())?,
    );
    let (app, clients) = app(&config, &budget)?;
    let mut doors = Doors::open(&app, budget, clients, &config)?;
    if let Some((listen, token)) = config.listen.as_ref().zip(token) {
        // The socket is taken: a daemon that had the port lets go of it now.
        doors.open_port(listen.address, token).await?;
    }
    let socket = doors.place.path().display().to_string();
    tracing::info!(socket, pid = std::process::id(), "serving");

    let watching = tokio::spawn(watcher::watch(app.clone()));
    let keeping = tokio::spawn(pool_reconciler::keep(app.clone()));
    let begun = tokio::spawn(app.clone().configure(config.pools));
    let reopened = tokio::spawn(app.clone().reopen_guest_sockets());

    let why = {
        let mut replaced = std::pin::pin!(doors.until_replaced());
        loop {
            tokio::select! {
                _ = term.recv() => break "told to end",
                _ = int.recv() => break "told to end",
                why = &mut replaced => break why,
                _ = hup.recv() => drop(tokio::spawn(app.clone().reload(Arc::clone(reload)))),
            }
        }
    };
    tracing::info!("{why}: draining");
    app.draining.send_replace(true);
    let rest = async {
        doors.close().await;
        let _ = watching.await;
        let _ = keeping.await;
        let _ = begun.await;
        let _ = reopened.await;
    };
    let ended = tokio::select! {
        () = rest => ServeEnd::Drained,
        _ = term.recv() => ServeEnd::CutOff,
        _ = int.recv() => ServeEnd::CutOff,
    };
    match ended {
        ServeEnd::Drained => tracing::info!("drained"),
        ServeEnd::CutOff => tracing::warn!("second signal to end: open requests are cut off"),
    }
    Ok(ended)
}

/// Listens on a port, which a daemon that is being replaced may still have for a moment.
async fn port(address: SocketAddr) -> Result<TcpListener, Error> {
    let begin = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < PORT_PATIENCE => {
                sleep(SOCKET_POLL_INTERVAL).await;
            }
            result => {
                return result.map_err(|source| Error::Listen {
                    on: address.to_string(),
                    source,
                });
            }
        }
    }
}

/// Reads the token, from a file that only its owner may read.
fn token(listen: &Listen) -> Result<Token, Error> {
    if !listen.address.ip().is_loopback() {
        return Err(Error::NotLoopback(listen.address));
    }
    let path = &listen.token_file;
    let text = read_secret(path).map_err(|reason| Error::Token {
        path: path.clone(),
        reason,
    })?;
    Ok(Token::new(&text))
}

fn read_secret(path: &Path) -> Result<String, String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let facts = file.metadata().map_err(|e| e.to_string())?;
    if facts.mode() & 0o077 != 0 {
        return Err(format!(
            "others than its owner may use it (mode {:04o}): chmod 600 it",
            facts.mode() & 0o7777
        ));
    }
    let mut text = String::new();
    file.by_ref()
        .take(TOKEN_MAX)
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    let text = text.trim();
    if text.len() < TOKEN_MIN || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "a token has at least {TOKEN_MIN} characters, letters, digits and signs, in one line"
        ));
    }
    Ok(text.to_owned())
}
