//! Files of guests over the API, as bodies of any length, and what a guest's console said.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::{
    App,
    extract::{Path, Query},
    guests::TIMEOUT,
    permits::PermitKind,
    problem::Problem,
    programs::{problem, session_problem},
    workers::blocking,
};
use brood_core::{
    agent::{
        AgentError,
        protocol::{FileKind, OsBytes, ReadFile, WriteFile},
    },
    engine::bounded_log,
};

/// Parts of a body that wait for the slower end.
const PARTS: usize = 8;
/// How long each part of a file may take.
const PART_LIMIT: Duration = Duration::from_secs(60);

/// Which file of a guest.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FileQuery {
    /// Its path; a relative one begins at the root.
    #[param(example = "/etc/hostname", min_length = 1)]
    path: String,
    /// Mode bits of a file that is written, as octal digits.
    #[param(default = "644", pattern = "^[0-7]{1,4}$")]
    mode: Option<String>,
}

impl FileQuery {
    fn path(&self) -> Result<OsBytes, Problem> {
        match self.path.is_empty() || self.path.contains('\0') {
            true => Err(Problem::bad_request(
                "path is empty, or has a zero byte in it",
            )),
            false => Ok(OsBytes::from(&*self.path)),
        }
    }

    fn mode(&self) -> Result<u32, Problem> {
        let mode = self.mode.as_deref().unwrap_or("644");
        let bits = u32::from_str_radix(mode, 8).ok();
        bits.filter(|bits| *bits <= 0o7777 && mode.len() <= 4)
            .ok_or_else(|| Problem::bad_request("mode is not up to four octal digits"))
    }
}

/// A body's parts, on their way to a thread that reads or writes them.
type Part = io::Result<Bytes>;

/// Writes parts to a body.
struct ToBody(mpsc::Sender<Part>);

impl Write for ToBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        // Whoever read it has gone.
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads parts of a body. An empty part is its end: without that its client has hung up.
struct FromBody {
    parts: mpsc::Receiver<Part>,
    part: Bytes,
    ended: bool,
}

impl Read for FromBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && !self.ended {
            let part = self.parts.blocking_recv();
            self.part = part.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
            self.ended = self.part.is_empty();
        }
        let length = buffer.len().min(self.part.len());
        buffer[..length].copy_from_slice(&self.part.split_to(length));
        Ok(length)
    }
}

/// Reads a file of a guest
///
/// When the file cannot be read to its end, the connection is closed before the body's.
#[utoipa::path(
    get, path = "/guests/{guest}/files", tag = "guests", operation_id = "readGuestFile",
    params(("guest" = String, Path, description = "Name or id"), FileQuery),
    responses((status = 200, description = "Its content", body = Vec<u8>, content_type = "application/octet-stream"))
)]
pub(super) async fn read(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(which): Query<FileQuery>,
) -> Result<Response, Problem> {
    let path = which.path()?;
    let bounds = [PermitKind::programs(&name)];
    let permit = app.take(&bounds, TIMEOUT).await?;
    let agent = app
        .on_guests(permit.clone(), {
            let (name, path) = (name.clone(), path.clone());
            move |guests| {
                let agent = guests.agent(&name, TIMEOUT)?.with_limit(PART_LIMIT);
                let there = agent.stat(path, true).map_err(|e| problem(&name, &e))?;
                match there.kind {
                    FileKind::Directory => Err(Problem::bad_request("the path is a folder's")),
                    _ => Ok(agent),
                }
            }
        })
        .await?;
    let (parts, receiver) = mpsc::channel::<Part>(PARTS);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let file = ReadFile {
            path,
            offset: 0,
            length: None,
            digest: true,
        };
        if let Err(e) = agent.read_file(file, &mut ToBody(parts.clone())) {
            tracing::info!("guest {name}: {e}");
            let _ = parts.blocking_send(Err(io::Error::other(e.to_string())));
        }
    });
    let body = stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(body)).into_response())
}

/// Writes a file of a guest: it has the whole body, or stays as it was
///
/// Folders above it are made.
#[utoipa::path(
    put, path = "/guests/{guest}/files", tag = "guests", operation_id = "writeGuestFile",
    params(("guest" = String, Path, description = "Name or id"), FileQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204, description = "It is written"))
)]
pub(super) async fn write(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(which): Query<FileQuery>,
    body: Body,
) -> Result<StatusCode, Problem> {
    let (path, mode) = (which.path()?, which.mode()?);
    let bounds = [PermitKind::programs(&name)];
    let permit = app.take(&bounds, TIMEOUT).await?;
    let found = name.clone();
    let agent = app
        .on_guests(permit.clone(), move |guests| {
            Ok(guests.agent(&found, TIMEOUT)?.with_limit(PART_LIMIT))
        })
        .await?;
    let (sender, parts) = mpsc::channel::<Part>(PARTS);
    let written = blocking(move || {
        let _permit = permit;
        let file = WriteFile {
            path,
            mode,
            user: None,
            parents: true,
            sync: false,
            digest: true,
        };
        let mut body = FromBody {
            parts,
            part: Bytes::new(),
            ended: false,
        };
        Ok(agent.write_file(file, &mut body))
    });
    let sent = async move {
        let mut body = body.into_data_stream();
        while let Some(part) = body.next().await {
            let part = part.map_err(io::Error::other);
            let is_empty = part.as_ref().is_ok_and(Bytes::is_empty);
            // The guest takes no more: its answer says why.
            if !is_empty && sender.send(part).await.is_err() {
                return;
            }
        }
        let _ = sender.send(Ok(Bytes::new())).await;
    };
    let ((), written) = tokio::join!(sent, written);
    match written? {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(AgentError::Local { source, .. }) => {
            let what = format!("the body did not come whole: {source}");
            Err(Problem::bad_request(what))
        }
        Err(e) => Err(session_problem(&app, &name, e).await),
    }
}

/// Tells what a guest's console said, as `brood logs`: its first 8 MiB
#[utoipa::path(
    get, path = "/guests/{guest}/logs", tag = "guests", operation_id = "guestLogs",
    params(("guest" = String, Path, description = "Name or id")),
    responses((status = 200, description = "What it said, with what is no UTF-8 replaced", body = String, content_type = "text/plain"))
)]
pub(super) async fn logs(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<String, Problem> {
    app.look_at_guests(move |guests| {
        let path = guests.console_log(&name)?;
        let mut said = Vec::new();
        let read = bounded_log::open(&path)
            .and_then(|file| file.take(bounded_log::LOG_MAX).read_to_end(&mut said));
        read.map_err(|e| {
            let detail = format!("cannot read what the console of guest {name} said: {e}");
            Problem::new(StatusCode::NOT_FOUND, "no-log", detail)
        })?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    })
    .await
}
