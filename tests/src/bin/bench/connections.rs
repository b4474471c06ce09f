//! Cost of idle connections for the daemon: memory, and time of its owner's requests.

use std::{
    fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use brood_core::percentiles::Percentiles;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::blocking::Client;

use super::{
    Measurement,
    api::Daemon,
    error::Error,
    goal::{Goal, Row},
    workplace::Workplace,
};

/// Half of them send nothing, half the beginning of a request.
const CONNECTIONS: usize = 1000;
/// Requests that a percentile is taken of.
const SAMPLES: usize = 500;
/// How long the daemon may take to accept the connections, or to close them.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const KIB_PER_MIB: f64 = 1024.0;

/// Measures a daemon without connections, and with them.
pub(crate) fn connections(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    raise_descriptors()
        .map_err(io::Error::from)
        .map_err(Error::io("raise the limit of descriptors"))?;
    let (mut cost, mut added, mut added_late) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..workplace.rounds {
        let daemon = Daemon::start(workplace)?;
        let client = owner(&daemon.socket)?;
        // What it takes once is not to be counted.
        let _ = requests(workplace, &client)?;
        let (memory, open) = (anonymous_mib(&daemon)?, sockets(&daemon)?);
        let without = requests(workplace, &client)?;

        let opened = open_all(&daemon.socket).map_err(Error::io("connect to the daemon"))?;
        until(workplace, &daemon, |now| now >= opened.len())?;
        let with = requests(workplace, &client)?;
        let grown = anonymous_mib(&daemon)? - memory;
        let still = sockets(&daemon)?;
        if still < opened.len() {
            return Err(Error::Short {
                command: "holding connections open",
                done: still as u64,
                asked: opened.len() as u64,
            });
        }
        drop(opened);
        until(workplace, &daemon, |now| now <= open + 8)?;
        eprintln!(
            "connections: round {} of {}: {grown:.1} MiB; p50 {:.3} ms without them, {:.3} ms with",
            n + 1,
            workplace.rounds,
            without.p50,
            with.p50
        );
        cost.push(grown);
        added.push(with.p50 - without.p50);
        added_late.push(with.p99 - without.p99);
    }
    let row = |figure: String, unit, values: &[f64], goal| {
        Row::alone(Measurement::Connections, figure, unit, values, goal)
    };
    Ok(vec![
        row(
            format!("{CONNECTIONS} idle connections: memory of the daemon"),
            "MiB",
            &cost,
            Some(Goal::AtMost(20.0)),
        ),
        row(
            "a request of the socket's owner, above one without them: p50".to_owned(),
            "ms",
            &added,
            Some(Goal::AtMost(0.1)),
        ),
        row("the same: p99".to_owned(), "ms", &added_late, None),
    ])
}

/// A client that makes a connection for each request.
fn owner(socket: &Path) -> Result<Client, Error> {
    let client = Client::builder().unix_socket(socket);
    Ok(client.pool_max_idle_per_host(0).build()?)
}

fn requests(workplace: &Workplace, client: &Client) -> Result<Percentiles, Error> {
    let mut took = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        workplace.brood.interrupt.check()?;
        let begin = Instant::now();
        let answer = client.get("http://brood/api/v1/pools").send()?;
        let _ = answer.error_for_status()?.bytes()?;
        took.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Percentiles::of(&took))
}

fn open_all(socket: &Path) -> io::Result<Vec<UnixStream>> {
    let open = |n| {
        let mut stream = UnixStream::connect(socket)?;
        if n % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nx: ")?;
        }
        Ok(stream)
    };
    (0..CONNECTIONS).map(open).collect()
}

/// Waits until the daemon has so many sockets.
fn until(
    workplace: &Workplace,
    daemon: &Daemon,
    there: impl Fn(usize) -> bool,
) -> Result<(), Error> {
    let begin = Instant::now();
    loop {
        let now = sockets(daemon)?;
        if there(now) {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            return Err(Error::Short {
                command: "opening or closing connections (sockets of the daemon)",
                done: now as u64,
                asked: CONNECTIONS as u64,
            });
        }
        workplace.brood.interrupt.check()?;
        thread::sleep(POLL_INTERVAL);
    }
}

/// Sockets of the daemon: its connections, and the few that it listens on and wakes itself by.
/// Other descriptors come and go with its requests.
fn sockets(daemon: &Daemon) -> Result<usize, Error> {
    let folder = format!("/proc/{}/fd", daemon.process.id());
    let entries = fs::read_dir(&folder).map_err(Error::io(format!("read {folder}")))?;
    let links = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    let is_socket = |link: &std::path::PathBuf| link.to_string_lossy().starts_with("socket:");
    Ok(links.filter(is_socket).count())
}

/// Memory of the daemon that no file backs.
fn anonymous_mib(daemon: &Daemon) -> Result<f64, Error> {
    let file = format!("/proc/{}/status", daemon.process.id());
    let status = fs::read_to_string(&file).map_err(Error::io(format!("read {file}")))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        .map_err(Error::io(format!("find RssAnon in {file}")))?;
    Ok(kib / KIB_PER_MIB)
}

/// This process holds the other end of each connection.
fn raise_descriptors() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}
