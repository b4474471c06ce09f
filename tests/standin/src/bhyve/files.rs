//! Files that came to a stand-in guest through its agent. They are its process's: no clone has them.

use std::collections::BTreeMap;

use brood_agent_protocol::{
    Failure, FailureKind, FileKind, Metadata, OsBytes, Reply, Request, RequestId, Stream, ToHost,
    Transfer, WriteFile, limits::MAX_DATA,
};
use sha2::{Digest, Sha256};

#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Mode and content.
    there: BTreeMap<Vec<u8>, (u32, Vec<u8>)>,
    /// Those that are being written, by number of the request.
    coming: BTreeMap<u32, (WriteFile, Vec<u8>)>,
}

impl Files {
    /// Files that no session writes any more are not there.
    pub(crate) fn begin_session(&mut self) {
        self.coming.clear();
    }

    /// Answers a request about a file; `None` for others.
    pub(crate) fn ask(&mut self, request: RequestId, asked: &Request) -> Option<Vec<ToHost>> {
        let done = |file: Option<Reply>| {
            let none = || Failure::new(FailureKind::NotFound, "there is no such file");
            ToHost::Done(file.ok_or_else(none))
        };
        Some(match asked {
            Request::WriteFile(file) => {
                self.coming.insert(request.0, (file.clone(), Vec::new()));
                Vec::new()
            }
            Request::Stat { path, .. } => {
                let there = self.of(path);
                vec![done(there.map(|(mode, content)| {
                    Reply::Metadata(Metadata {
                        kind: FileKind::File,
                        size: size(content),
                        mode: *mode,
                        uid: 0,
                        gid: 0,
                        modified_ns: 0,
                        target: None,
                    })
                }))]
            }
            Request::ReadFile(file) => match self.of(&file.path) {
                None => vec![done(None)],
                Some((_, content)) => {
                    let pieces = content.chunks(MAX_DATA);
                    let pieces = pieces.map(|piece| ToHost::Data(Stream::Output, piece.to_vec()));
                    let end = done(Some(transferred(content, file.digest)));
                    pieces.chain([end]).collect()
                }
            },
            _ => return None,
        })
    }

    /// Takes a piece of what a request sends.
    pub(crate) fn take(&mut self, request: RequestId, bytes: &[u8]) -> Vec<ToHost> {
        if !bytes.is_empty() {
            let Some((_, content)) = self.coming.get_mut(&request.0) else {
                return Vec::new();
            };
            content.extend(bytes);
            return vec![ToHost::Credit(u32::try_from(bytes.len()).unwrap_or(0))];
        }
        let Some((file, content)) = self.coming.remove(&request.0) else {
            return Vec::new();
        };
        let reply = transferred(&content, file.digest);
        let path = file.path.as_bytes().to_vec();
        self.there.insert(path, (file.mode, content));
        vec![ToHost::Done(Ok(reply))]
    }

    fn of(&self, path: &OsBytes) -> Option<&(u32, Vec<u8>)> {
        self.there.get(path.as_bytes())
    }
}

fn size(content: &[u8]) -> u64 {
    u64::try_from(content.len()).unwrap_or(0)
}

fn transferred(content: &[u8], digest: bool) -> Reply {
    Reply::Transferred(Transfer {
        bytes: size(content),
        sha256: digest.then(|| Sha256::digest(content).into()),
    })
}
