//! Sockets of guests: `STATE/ch/NAME.sock`, for the daemon's user alone.
//!
//! The folder itself records which guests have a socket. A daemon that starts serves the sockets
//! that it finds there; so they live on when one daemon takes over from another, or is killed.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use tokio::{net::UnixListener, task::JoinHandle};

use super::{SocketGuest, router};
use crate::api::{
    App,
    connections::Clients,
    door::{Door, HeaderCase},
    error::Error,
    problem::Problem,
    socket::{Name, Place},
    watch::Observation,
};
use brood_core::{full_disk, guest_id::GuestId, guests::GuestState, owner_only};

/// The folder in the state folder.
const FOLDER: &str = "ch";
/// How a socket's name ends.
const SUFFIX: &str = ".sock";
/// Permissions of a socket.
const MODE: u32 = 0o600;
/// How long a socket is served after `vm.shutdown` or `vm.delete`: clients follow them up with
/// `vm.delete` and `vmm.shutdown`.
const LINGER: Duration = Duration::from_secs(5);

/// All sockets of guests.
#[derive(Debug)]
pub(in crate::api) struct GuestSockets {
    state: PathBuf,
    /// Whoever comes to one of them has a place among the clients of the daemon's own socket.
    clients: Arc<Clients>,
    at_most: usize,
    open: Mutex<HashMap<GuestId, OpenSocket>>,
}

/// A socket that is served.
#[derive(Debug)]
struct OpenSocket {
    place: Place,
    door: Door,
    since: Instant,
    /// Until when it is served although its guest is gone.
    lingers_until: Option<Instant>,
}

impl OpenSocket {
    /// Stops listening, and removes the name.
    fn close(self) {
        self.place.give_back();
        drop(self.door.close());
    }
}

impl GuestSockets {
    pub(in crate::api) fn new(state: &Path, clients: Arc<Clients>, at_most: usize) -> Self {
        Self {
            state: state.to_owned(),
            clients,
            at_most,
            open: Mutex::default(),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<GuestId, OpenSocket>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self) -> PathBuf {
        self.state.join(FOLDER)
    }

    /// Serves a guest's socket, if it is not served yet; returns where it is. For a thread that may
    /// block.
    pub(super) fn open(&self, app: &App, served: &SocketGuest) -> Result<PathBuf, Problem> {
        let mut all = self.all();
        let others = all.len() - usize::from(all.contains_key(&served.id));
        match all.get(&served.id) {
            Some(open) if open.place.name() == Name::Ours => {
                return Ok(open.place.path().to_owned());
            }
            _ if others >= self.at_most => return Err(self.too_many()),
            _ => {}
        }
        let folder = self.folder();
        owner_only::create_folder(&folder).map_err(|e| not_made(&folder, &e))?;
        let path = folder.join(format!("{}{SUFFIX}", served.name));
        let (listener, place) = Place::take(&self.state, &path, MODE).map_err(|e| match e {
            Error::Listen { source, .. } => not_made(&path, &source),
            e => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "io", e.to_string()),
        })?;
        let listener = UnixListener::from_std(listener).map_err(|e| not_made(&path, &e))?;
        let router = router(app.clone(), served.clone());
        let open = OpenSocket {
            door: Door::open(app, &self.clients, listener, router, HeaderCase::Title),
            place,
            since: Instant::now(),
            lingers_until: None,
        };
        // One whose name was removed has no clients any more who could come.
        drop(all.insert(served.id, open));
        Ok(path)
    }

    fn too_many(&self) -> Problem {
        let detail = format!("{} guests have a socket of their own", self.at_most);
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-guest-sockets",
            detail,
        )
        .with_hint("end some, or start the daemon with a higher limit of open files: ulimit -n")
    }

    /// The guest was ended by a client that may have more to say.
    pub(super) fn linger(&self, id: &GuestId) {
        if let Some(open) = self.all().get_mut(id) {
            open.lingers_until = Some(Instant::now() + LINGER);
        }
    }

    /// Stops serving a guest's socket.
    pub(super) fn close(&self, id: &GuestId) {
        let open = self.all().remove(id);
        if let Some(open) = open {
            open.close();
        }
    }

    /// Stops serving sockets of guests that have ended.
    pub(in crate::api) fn reconcile(&self, look: &Observation) {
        let lives = |id: &GuestId| {
            let seen = look.guests.get(id);
            seen.is_some_and(|seen| seen.view.state != GuestState::Dead)
        };
        let now = Instant::now();
        let ended: Vec<OpenSocket> = self
            .all()
            .extract_if(|id, open| {
                // A guest that came after the look is not in it.
                open.since < look.at
                    && !lives(id)
                    && open.lingers_until.is_none_or(|until| until <= now)
            })
            .map(|(_, open)| open)
            .collect();
        ended.into_iter().for_each(OpenSocket::close);
    }

    /// Stops listening on all of them. Their names stay: the next daemon serves them.
    pub(in crate::api) fn stop(&self) -> Vec<JoinHandle<()>> {
        let all = std::mem::take(&mut *self.all());
        all.into_values().map(|open| open.door.close()).collect()
    }

    /// Names of guests whose sockets are in the folder.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter_map(|name| name.strip_suffix(SUFFIX).map(str::to_owned))
            .collect()
    }

    fn remove_left(&self, guest: &str) {
        let _ = fs::remove_file(self.folder().join(format!("{guest}{SUFFIX}")));
    }
}

impl App {
    /// Serves the sockets of guests that another daemon has served.
    pub(in crate::api) async fn reopen_guest_sockets(self) {
        let app = self.clone();
        let reopened = self.look_at_guests(move |guests| {
            for name in app.guest_sockets.left() {
                let guest = match guests.find(&name) {
                    Ok(guest) if guest.state != GuestState::Dead => guest,
                    Ok(_) | Err(brood_core::guests::Error::NoSuchGuest(_)) => {
                        app.guest_sockets.remove_left(&name);
                        continue;
                    }
                    Err(e) => return Err(e.into()),
                };
                let served = SocketGuest {
                    id: guest.row.id,
                    name: guest.row.name,
                };
                if let Err(problem) = app.guest_sockets.open(&app, &served) {
                    tracing::warn!(guest = name, "its socket is not served: {}", problem.detail);
                }
            }
            Ok(())
        });
        if let Err(problem) = reopened.await {
            tracing::warn!("sockets of guests are not served: {}", problem.detail);
        }
    }
}

/// A file of a socket cannot be made.
fn not_made(path: &Path, error: &io::Error) -> Problem {
    let detail = format!("cannot make {}: {error}", path.display());
    let (status, kind) = match error.kind() {
        io::ErrorKind::InvalidInput => (StatusCode::UNPROCESSABLE_ENTITY, "socket-path-too-long"),
        _ if full_disk::is_full(error) => (StatusCode::INSUFFICIENT_STORAGE, "no-space"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
    };
    let problem = Problem::new(status, kind, detail);
    match error.kind() {
        io::ErrorKind::InvalidInput => problem.with_hint(
            "the path of a socket may have 107 bytes: use a state folder with a shorter one, or a \
             shorter name for the guest",
        ),
        _ => problem,
    }
}
