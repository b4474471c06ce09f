//! Remains of a guest whose process has ended: why it did, and what is left of it on the host.

use super::{exit_reason::ExitReason, exit_record, limit_group};
use crate::engine::{Error, GuestRef};

/// How a guest ended, in words, when that was recorded.
pub(crate) fn ended(guest: GuestRef<'_>) -> Result<Option<String>, Error> {
    match exit_record::read(guest.run_dir, guest.id) {
        // A nursery that was killed too has recorded nothing.
        Ok(None) => Ok(limit_group::exceeded(guest.run_dir, guest.id)
            .map(|limit| ExitReason::MemoryLimit { limit }.to_string())),
        Ok(reason) => Ok(reason.map(|reason| reason.to_string())),
        Err(source) => Err(Error::Io {
            action: "read how the guest ended",
            source,
        }),
    }
}

/// Removes a guest's control group, its socket and its record.
pub(crate) fn forget(guest: GuestRef<'_>) -> Result<(), Error> {
    let removed = limit_group::remove(guest.run_dir, guest.id)
        .and_then(|()| exit_record::forget(guest.run_dir, guest.id));
    removed.map_err(|source| Error::Io {
        action: "remove the guest's files",
        source,
    })
}
