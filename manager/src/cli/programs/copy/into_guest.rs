//! Copies from this host into a guest. The agent gives a file its name when it is whole and its
//! digest is right.

use std::{fs::File, io, path::Path};

use brood_core::agent::{
    Agent, AgentError,
    protocol::{Ended, Exec, FailureKind, FileKind, OsBytes, WriteFile},
};

use super::{Copied, Copying, Counted, MODE, ends_with_slash, here, join, listing, name_of};
use crate::{cli::programs::session::GuestSession, failure::Failure};

/// Copies a file or folder of this host into a guest.
pub(in crate::cli::programs) fn into_guest(
    session: &GuestSession<'_>,
    from: &Path,
    to: &Path,
    quiet: bool,
) -> Result<Copied, Failure> {
    let items = listing::of_host(from)?;
    let agent = &session.agent;
    let named = |e: AgentError| session.failure(&e);
    let is_folder = match agent.stat(OsBytes::from(to), true) {
        Ok(there) => there.kind == FileKind::Directory,
        Err(e) if e.failure() == Some(FailureKind::NotFound) => ends_with_slash(to),
        Err(e) => return Err(named(e)),
    };
    let to = match is_folder {
        true => to.join(name_of(from)?),
        false => to.to_owned(),
    };
    let copying = Copying::new(session, items, quiet);
    let agent = copying.agent();
    copying.each(|moved, item| {
        let (source, target) = (join(from, &item.below), join(&to, &item.below));
        let mode = item.metadata.mode & MODE;
        match item.metadata.kind {
            FileKind::Directory => {
                let made = agent.make_dir(OsBytes::from(&*target), mode, true);
                made.map_err(named)
            }
            FileKind::Link => {
                let leads = item.metadata.target.clone().unwrap_or_else(|| "".into());
                link_in_guest(agent, leads, &target).map_err(named)
            }
            FileKind::File | FileKind::Other => {
                let file = File::open(&source).map_err(|e| here("read", &source, &e))?;
                let write = WriteFile {
                    path: OsBytes::from(&*target),
                    mode,
                    user: None,
                    parents: true,
                    sync: false,
                    digest: true,
                };
                let sent = agent.write_file(write, &mut Counted(file, moved));
                sent.map(drop).map_err(|e| match e {
                    AgentError::Local { source: e, .. } => here("read", &source, &e),
                    e => named(e),
                })
            }
        }
    })
}

/// Makes a symbolic link in the guest, in place of one that is there.
fn link_in_guest(agent: &Agent, leads: OsBytes, path: &Path) -> Result<(), AgentError> {
    let exec = Exec {
        argv: vec!["ln".into(), "-sfn".into(), "--".into(), leads, path.into()],
        ..Exec::default()
    };
    let ran = agent.run(exec, 4096)?;
    match ran.ended {
        Ended::Code(0) => Ok(()),
        ended => Err(AgentError::Local {
            what: "make a symbolic link in the guest",
            source: io::Error::other(format!(
                "ln: {ended:?}: {}",
                String::from_utf8_lossy(&ran.error).trim()
            )),
        }),
    }
}
