//! Completion in a shell. The script of `brood completions` runs this program each time the Tab key
//! is pressed, and the program looks the names up then.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
};

use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter},
    env::Shells,
};

use super::completions::visible;
use crate::{
    config::{Config, Sources},
    image::Images,
};
use brood_core::state::{DATABASE, State};

/// Says that a shell asks, and which.
const VARIABLE: &str = "BROOD_COMPLETE";
/// Suffix of a checkpoint's manifest.
const MANIFEST: &str = ".ckp.brood";

/// Answers a shell, if one asks, and ends.
pub(super) fn answer() {
    CompleteEnv::with_factory(visible).var(VARIABLE).complete();
}

/// The script for a shell.
pub(super) fn script(shell: &str) -> Option<String> {
    let shells = Shells::builtins();
    let mut script = Vec::new();
    shells
        .completer(shell)?
        .write_registration(VARIABLE, "brood", "brood", "brood", &mut script)
        .ok()?;
    let mut script = String::from_utf8_lossy(&script).trim_end().to_owned();
    if shell == "zsh" {
        // From a folder of functions zsh runs it at the first Tab only, to complete.
        script += "\nif [[ ${funcstack[1]} == _brood ]]; then\n    \
                   _clap_dynamic_completer_brood \"$@\"\nfi";
    }
    Some(script)
}

/// Lets an argument be completed by one of the functions below.
pub(super) fn with(names: fn(&OsStr) -> Vec<CompletionCandidate>) -> ArgValueCompleter {
    ArgValueCompleter::new(names)
}

/// Names of guests.
pub(super) fn guests(typed: &OsStr) -> Vec<CompletionCandidate> {
    let names = |state: &State| {
        let guests = state.guests().ok()?.into_iter();
        Some(guests.map(|guest| guest.name).collect())
    };
    candidates(typed, names)
}

/// Guests, as the beginning of `GUEST:PATH`, and files of this host. What is in a guest is not looked
/// at: that would ask the guest.
pub(super) fn places(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mut all = Vec::new();
    if !typed.to_string_lossy().contains(['/', ':']) {
        let begun = guests(typed).into_iter();
        all.extend(begun.map(|guest| {
            let mut place = guest.get_value().to_owned();
            place.push(":");
            CompletionCandidate::new(place)
        }));
    }
    all.extend(PathCompleter::any().complete(typed));
    all
}

/// Names of pools.
pub(super) fn pools(typed: &OsStr) -> Vec<CompletionCandidate> {
    let names = |state: &State| {
        let pools = state.pools().ok()?.into_iter();
        Some(pools.map(|pool| pool.name).collect())
    };
    candidates(typed, names)
}

/// Names of pools, and checkpoints.
pub(super) fn pools_and_checkpoints(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mut all = pools(typed);
    all.extend(checkpoints(typed));
    all
}

/// Names of images.
pub(super) fn images(typed: &OsStr) -> Vec<CompletionCandidate> {
    let folder = config().and_then(|config| config.images().ok());
    let names = folder.map(|folder| Images::in_folder(folder).names());
    let names = names.and_then(Result::ok).unwrap_or_default();
    let typed = typed.to_string_lossy();
    let wanted = names.into_iter().filter(|name| name.starts_with(&*typed));
    wanted.map(CompletionCandidate::new).collect()
}

fn candidates(
    typed: &OsStr,
    names: impl Fn(&State) -> Option<Vec<String>>,
) -> Vec<CompletionCandidate> {
    let names = state().and_then(|state| names(&state)).unwrap_or_default();
    let typed = typed.to_string_lossy();
    let wanted = names.into_iter().filter(|name| name.starts_with(&*typed));
    wanted.map(CompletionCandidate::new).collect()
}

/// Checkpoints, as `DIR/NAME`, and the folders that lead to more.
pub(super) fn checkpoints(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let (dir, begun) = match typed.rfind('/') {
        Some(at) => typed.split_at(at + 1),
        None => ("", &*typed),
    };
    let place = if dir.is_empty() { "." } else { dir };
    let mut found: Vec<String> = fs::read_dir(place)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            if let Some(bundle) = name.strip_suffix(MANIFEST) {
                // A bundle that is being written begins with a dot.
                return (!bundle.starts_with('.')).then(|| bundle.to_owned());
            }
            let shown = !name.starts_with('.') || begun.starts_with('.');
            (shown && entry.path().is_dir()).then(|| format!("{name}/"))
        })
        .filter(|name| name.starts_with(begun))
        .collect();
    found.sort();
    let whole = found.into_iter().map(|name| format!("{dir}{name}"));
    whole.map(CompletionCandidate::new).collect()
}

/// The configuration that the command being typed would use.
fn config() -> Option<Config> {
    let mut sources = Sources::of_process();
    let words: Vec<OsString> = env::args_os().collect();
    if let Some(dir) = option(&words, "--state-dir") {
        sources.flags.insert("state.dir", dir);
    }
    if let Some(file) = option(&words, "--config") {
        sources.file = Some(file.into());
    }
    Config::load(&sources).ok()
}

/// The state that the command being typed would use; none where there is none yet.
fn state() -> Option<State> {
    let config = config()?;
    let dir = config.state_dir().ok()?;
    // Completion never creates a state folder.
    dir.join(DATABASE).exists().then_some(())?;
    State::open_to_look(dir).ok()
}

/// The value of an option, given as `--option VALUE` or `--option=VALUE`.
fn option(words: &[OsString], name: &str) -> Option<OsString> {
    let mut words = words.iter();
    let mut found = None;
    while let Some(word) = words.next() {
        let word = word.to_string_lossy();
        if word == name {
            found = words.next().cloned();
        } else if let Some(value) = word
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
        {
            found = Some(value.into());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_in_both_forms() {
        let words: Vec<OsString> = ["brood", "--state-dir", "a", "list", "--state-dir=b"]
            .map(Into::into)
            .into();
        assert_eq!(option(&words, "--state-dir"), Some("b".into()));
        assert_eq!(option(&words[..4], "--state-dir"), Some("a".into()));
        assert_eq!(option(&words, "--config"), None);
        assert_eq!(option(&words[..2], "--state-dir"), None);
    }

    #[test]
    fn a_place_with_a_slash_is_a_file_of_this_host() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let typed = dir.path().join("no");
        let found = places(typed.as_os_str());
        let found: Vec<_> = found.iter().map(CompletionCandidate::get_value).collect();
        assert_eq!(found, [dir.path().join("notes.txt")]);
    }

    #[test]
    fn checkpoints_are_found_where_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "demo.ckp",
            "demo.ckp.brood",
            "other.ckp.brood",
            ".x.ckp.brood.new",
        ] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        fs::create_dir(dir.path().join("deeper")).unwrap();
        let at = dir.path().to_str().unwrap();
        let complete = |typed: &str| -> Vec<String> {
            checkpoints(OsStr::new(&format!("{at}/{typed}")))
                .iter()
                .map(|found| {
                    found
                        .get_value()
                        .to_string_lossy()
                        .replace(&format!("{at}/"), "")
                })
                .collect()
        };
        assert_eq!(complete(""), ["deeper/", "demo", "other"]);
        assert_eq!(complete("de"), ["deeper/", "demo"]);
        assert_eq!(complete("none"), Vec::<String>::new());
    }
}
