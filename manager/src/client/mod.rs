//! Client of the daemon, for the command line: blocking, over the socket of the state folder, with
//! the same types as the server.
//!
//! Its errors say whether the daemon has begun anything. A daemon that does not answer, that serves
//! another state folder or engine, or whose version does not know the request, has begun nothing:
//! [`Error::NotBegun`], and the caller does the work itself. When the connection breaks after a
//! change was asked for, nobody knows whether it was made: [`Error::Lost`], and nothing is tried
//! again.

mod auto;
mod calls;
mod connection;
mod error;
mod events;
mod operations;
mod path;

use std::{cell::RefCell, path::Path};

use tokio::runtime::{self, Runtime};

pub(crate) use auto::{Auto, daemon};
pub(crate) use error::Error;
pub(crate) use events::ServerEvent;

use crate::api::host::Daemon;
use connection::{Call, Connection};
use path::Segment;

/// A daemon that answers.
#[derive(Debug)]
pub(crate) struct Client {
    runtime: Runtime,
    connection: RefCell<Connection>,
}

impl Client {
    /// The daemon that listens on `socket` and keeps the guests of the state folder.
    ///
    /// # Errors
    /// [`Error::NotBegun`] when there is none.
    pub(crate) fn find(socket: &Path, state_dir: &Path) -> Result<Self, Error> {
        // Without a daemon this is all that is done: nothing is set up before.
        let stream = connection::open(socket)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::NotBegun(format!("no runtime: {e}")))?;
        let mut connection = Connection::new(socket, state_dir);
        runtime.block_on(connection.begin(stream))?;
        Ok(Self {
            runtime,
            connection: RefCell::new(connection),
        })
    }

    /// What it says of itself.
    pub(crate) fn daemon(&self) -> Daemon {
        self.connection.borrow().daemon().clone()
    }
}
