//! The daemon's connections and routes: what clients send over the socket and over the port.
#![no_main]

use std::{fs, os::unix::fs::PermissionsExt, sync::OnceLock};

use brood::fuzzing::Daemon;

/// What would act on this machine beyond the state folder: it boots guests, or destroys file systems.
const NOT_SENT: [&[u8]; 2] = [b"/demo", b"/disks"];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((mode, sent)) = input.split_first() else {
        return;
    };
    let has = |word: &[u8]| sent.windows(word.len()).any(|bytes| bytes == word);
    if NOT_SENT.iter().any(|word| has(word)) {
        return;
    }
    static DAEMON: OnceLock<Daemon> = OnceLock::new();
    let daemon = DAEMON.get_or_init(|| {
        let state = tempfile::tempdir().unwrap().keep();
        fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
        fs::create_dir(state.join("checkpoints")).unwrap();
        Daemon::new(&state)
    });
    daemon.client(sent, mode & 1 == 1);
});
