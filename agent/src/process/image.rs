//! What the guest's image says of its programs, and requests that leave it to that.

use std::{fs, path::Path, sync::OnceLock};

use brood_agent_protocol::{Exec, Failure, ImageProcess};

use crate::failure::invalid;

/// Which program is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The arguments name it.
    Given,
    /// The image's, with these arguments.
    OfImage,
}

/// What this guest's image says. One that says nothing leaves all to the agent.
pub(super) fn of_this_guest() -> &'static ImageProcess {
    static IMAGE: OnceLock<ImageProcess> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let bytes = fs::read(ImageProcess::PATH).unwrap_or_default();
        ImageProcess::from_bytes(&bytes).unwrap_or_default()
    })
}

/// The request, with what it leaves open as the image says it.
pub(super) fn complete(
    mut exec: Exec,
    which: Which,
    image: &ImageProcess,
) -> Result<Exec, Failure> {
    if which == Which::OfImage {
        if exec.argv.is_empty() {
            exec.argv.clone_from(&image.command);
        }
        exec.argv.splice(0..0, image.entrypoint.iter().cloned());
        if exec.argv.is_empty() {
            return Err(invalid("the guest's image names no program to run"));
        }
    }
    exec.env.splice(0..0, image.env.iter().cloned());
    if exec.user.is_none() {
        exec.user.clone_from(&image.user);
    }
    // A folder that the guest has removed is no reason not to start.
    if exec.cwd.is_none()
        && let Some(cwd) = &image.cwd
        && Path::new("/").join(cwd.as_path()).is_dir()
    {
        exec.cwd = Some(cwd.clone());
    }
    Ok(exec)
}

#[cfg(test)]
mod tests {
    use brood_agent_protocol::OsBytes;

    use super::*;

    fn words(words: &[&str]) -> Vec<OsBytes> {
        words.iter().map(|word| OsBytes::from(*word)).collect()
    }

    fn image(entrypoint: &[&str], command: &[&str]) -> ImageProcess {
        ImageProcess {
            env: vec![("A".into(), "image".into()), ("B".into(), "image".into())],
            cwd: Some("/".into()),
            user: Some("0".to_owned()),
            entrypoint: words(entrypoint),
            command: words(command),
        }
    }

    fn argv(which: Which, image: &ImageProcess, given: &[&str]) -> Option<Vec<OsBytes>> {
        let argv = words(given);
        let exec = Exec {
            argv,
            ..Exec::default()
        };
        complete(exec, which, image).ok().map(|exec| exec.argv)
    }

    #[test]
    fn arguments_stand_behind_the_entry_point() {
        let both = image(&["app", "-v"], &["serve"]);
        let run = |image: &ImageProcess, given: &[&str]| argv(Which::OfImage, image, given);
        assert_eq!(run(&both, &[]), Some(words(&["app", "-v", "serve"])));
        assert_eq!(run(&both, &["x"]), Some(words(&["app", "-v", "x"])));
        assert_eq!(run(&image(&[], &["sh"]), &[]), Some(words(&["sh"])));
        assert_eq!(run(&image(&[], &["sh"]), &["ls"]), Some(words(&["ls"])));
        assert_eq!(run(&image(&[], &[]), &[]), None);
        assert_eq!(argv(Which::Given, &both, &["x"]), Some(words(&["x"])));
    }

    #[test]
    fn what_the_request_says_goes_before_the_image() {
        let exec = Exec {
            argv: words(&["x"]),
            env: vec![("B".into(), "request".into())],
            user: Some("7".to_owned()),
            cwd: Some("/tmp".into()),
            ..Exec::default()
        };
        let whole = complete(exec, Which::Given, &image(&[], &[])).unwrap();
        // Of two values of one name the last counts.
        let values: Vec<_> = whole.env.iter().map(|(_, value)| value.clone()).collect();
        assert_eq!(values, words(&["image", "image", "request"]));
        assert_eq!(whole.user.as_deref(), Some("7"));
        assert_eq!(whole.cwd, Some("/tmp".into()));
        let none = complete(Exec::default(), Which::Given, &image(&[], &[])).unwrap();
        assert_eq!(
            (none.user.as_deref(), none.cwd),
            (Some("0"), Some("/".into()))
        );
    }
}
