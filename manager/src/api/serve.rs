//! The daemon's life: it listens, serves, and drains when it is told to end or another daemon has
//! taken its place.

use std::{
    fs::File,
    future::Future,
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::exit,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, UnixListener},
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    App, Error, Parts,
    events::Events,
    keeper::{self, Fills},
    metrics::Metrics,
    permits::Permits,
    reload::Reload,
    request::Token,
    router,
    sample::Sampler,
    socket::Place,
    under_way::UnderWay,
    watch as watcher,
    workers::Workers,
};
use crate::{engine::bhyve::Rctl, owner_only, state::State};

/// How often the daemon looks whether its socket is still its own.
const GLANCE: Duration = Duration::from_millis(200);
/// How long the port of a daemon that is being replaced is waited for.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// Library calls at once. Further ones wait.
const BLOCKING_THREADS: usize = 256;
/// Shortest token that is taken.
const TOKEN_MIN: usize = 16;
/// Longest token file that is read.
const TOKEN_MAX: u64 = 4096;
/// Exit code after a second signal: what was under way was cut off.
const INTERRUPTED: i32 = 130;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state folder.
    pub state: PathBuf,
    /// The socket to listen on.
    pub socket: PathBuf,
    /// Its permissions.
    pub socket_mode: u32,
    /// The folder of checkpoints that are named without one.
    pub checkpoints: PathBuf,
    /// A port to listen on, too.
    pub listen: Option<Listen>,
    /// Limits of guests of the bhyve engine.
    pub rctl: Rctl,
}

/// A port to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// An address of this machine that only this machine can reach.
    pub address: SocketAddr,
    /// The file with the token that requests must bear.
    pub token_file: PathBuf,
}

/// Serves until SIGTERM or SIGINT, reading the configuration again at SIGHUP, or until another daemon has taken over; then answers what was
/// asked before, and returns. A second signal ends the process at once.
///
/// # Errors
/// When the state cannot be opened, or no socket be made.
pub fn serve(config: Config, reload: &Reload) -> Result<(), Error> {
    let token = config.listen.as_ref().map(token).transpose()?;
    // Opened once here, so that a folder that cannot be used is told at once.
    drop(State::open(&config.state)?);
    if owner_only::is_open(&config.state) {
        tracing::warn!(
            "others may look into the state folder, though at none of its files: chmod 700 {}",
            config.state.display()
        );
    }
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|source| Error::Start {
            action: "start threads",
            source,
        })?;
    runtime.block_on(run(config, token, reload))
}

async fn run(config: Config, token: Option<Token>, reload: &Reload) -> Result<(), Error> {
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
    let app = App(Arc::new(Parts {
        workers: Arc::new(Workers::new(&config.state, &config.rctl)?),
        events: Events::new(),
        metrics: Metrics::new(),
        sampler: Sampler::default(),
        under_way: UnderWay::default(),
        pools_changed: Notify::new(),
        room: Notify::new(),
        fills: Fills::default(),
        permits: Permits::default(),
        checkpoints: config.checkpoints,
        draining: watch::Sender::new(false),
    }));
    let (listener, place) = Place::take(&config.state, &config.socket, config.socket_mode)?;
    let listener = UnixListener::from_std(listener).map_err(|source| Error::Listen {
        on: place.path().display().to_string(),
        source,
    })?;
    let port = match config.listen.zip(token) {
        None => None,
        // The socket is taken: a daemon that had the port lets go of it now.
        Some((listen, token)) => Some((port(listen.address).await?, token)),
    };
    tracing::info!(socket = %place.path().display(), pid = std::process::id(), "serving");

    let watching = tokio::spawn(watcher::watch(app.clone()));
    let keeping = tokio::spawn(keeper::keep(app.clone()));
    let over_socket =
        axum::serve(listener, router(app.clone(), None)).with_graceful_shutdown(drained(&app));
    let over_socket = tokio::spawn(over_socket.into_future());
    let over_port = port.map(|(listener, token)| {
        tracing::info!(address = ?listener.local_addr().ok(), "serving with a token");
        let router = router(app.clone(), Some(token));
        let serving = axum::serve(listener, router).with_graceful_shutdown(drained(&app));
        tokio::spawn(serving.into_future())
    });

    let why = loop {
        tokio::select! {
            _ = term.recv() => break "told to end",
            _ = int.recv() => break "told to end",
            () = replaced(&place) => break "another daemon has taken over",
            _ = hup.recv() => drop(tokio::spawn(app.clone().reload(Arc::clone(reload)))),
        }
    };
    tracing::info!("{why}: draining");
    app.draining.send_replace(true);
    place.give_back();
    let rest = async {
        let _ = over_socket.await;
        if let Some(over_port) = over_port {
            let _ = over_port.await;
        }
        let _ = watching.await;
        let _ = keeping.await;
    };
    tokio::select! {
        () = rest => tracing::info!("drained"),
        _ = term.recv() => cut_off(),
        _ = int.recv() => cut_off(),
    }
    Ok(())
}

fn cut_off() {
    tracing::warn!("told to end again: what is under way is cut off");
    exit(INTERRUPTED);
}

fn drained(app: &App) -> impl Future<Output = ()> + Send + 'static {
    let mut draining = app.draining.subscribe();
    async move {
        // It fails only when the daemon is gone altogether.
        let _ = draining.wait_for(|draining| *draining).await;
    }
}

async fn replaced(place: &Place) {
    while place.is_ours() {
        sleep(GLANCE).await;
    }
}

/// Listens on a port, which a daemon that is being replaced may still have for a moment.
async fn port(address: SocketAddr) -> Result<TcpListener, Error> {
    let begin = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < PORT_PATIENCE => {
                sleep(GLANCE).await;
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
