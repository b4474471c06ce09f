//! A guest, as the client library of Cloud Hypervisor sees it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use brood_tests::{Daemon, Home, PATIENCE, text};
use cloud_hypervisor_client::{
    SocketBasedApiClient,
    apis::{DefaultApi, Error},
    models::{VmInfo, VmSnapshotConfig},
    socket_based_api_client,
};
use reqwest::{Method, blocking::Client};
use serde_json::Value;
use tokio::runtime::{self, Runtime};

/// A guest, as a client of Cloud Hypervisor sees it.
pub(super) struct Vm {
    pub(super) socket: PathBuf,
    pub(super) client: SocketBasedApiClient,
    pub(super) runtime: Runtime,
}

impl Vm {
    /// Asks the daemon for the guest's socket.
    #[track_caller]
    pub(super) fn of(daemon: &Daemon, guest: &str) -> Self {
        let path = format!("/api/v1/guests/{guest}/ch-socket");
        let answer = daemon.send(Method::POST, &path, 200);
        assert_eq!(answer["guest"], guest);
        let socket = PathBuf::from(text(&answer["socket"]));
        Self {
            client: socket_based_api_client(&socket),
            runtime: runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            socket,
        }
    }

    pub(super) fn pid(&self) -> Option<i64> {
        self.runtime.block_on(self.client.vmm_ping_get()).ok()?.pid
    }

    #[track_caller]
    pub(super) fn info(&self) -> VmInfo {
        self.runtime.block_on(self.client.vm_info_get()).unwrap()
    }

    pub(super) fn pause(&self) -> Result<(), Error> {
        self.runtime.block_on(self.client.pause_vm())
    }

    pub(super) fn resume(&self) -> Result<(), Error> {
        self.runtime.block_on(self.client.resume_vm())
    }

    pub(super) fn snapshot(&self, folder: &Path) -> Result<(), Error> {
        let config = VmSnapshotConfig {
            destination_url: Some(format!("file://{}", folder.display())),
        };
        self.runtime.block_on(self.client.vm_snapshot_put(config))
    }

    /// A request as other clients make them; returns the status and the body.
    #[track_caller]
    pub(super) fn send(&self, method: Method, verb: &str, body: &str) -> (u16, Value) {
        let client = Client::builder()
            .unix_socket(self.socket.clone())
            .timeout(PATIENCE)
            .build()
            .unwrap();
        let url = format!("http://localhost/api/v1/{verb}");
        let answer = client.request(method, url).body(body.to_owned()).send();
        let answer = answer.unwrap();
        let status = answer.status().as_u16();
        let body = answer.text().unwrap();
        let body = match &body[..] {
            "" => Value::Null,
            body => serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}")),
        };
        (status, body)
    }

    /// Its folder for snapshots, made.
    pub(super) fn folder(home: &Home, name: &str) -> PathBuf {
        let folder = home.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    }
}

/// The status and the messages of a refusal.
#[track_caller]
pub(super) fn refused(result: Result<(), Error>) -> (u16, Vec<String>) {
    match result {
        Err(Error::Api(refusal)) => (
            refusal.code.as_u16(),
            serde_json::from_str(&refusal.body).unwrap(),
        ),
        other => panic!("not refused: {other:?}"),
    }
}
