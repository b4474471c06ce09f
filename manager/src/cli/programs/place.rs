//! Place of a file: on this host, or in a guest.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    str::FromStr,
};

/// A place, as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On this host.
    Here(PathBuf),
    /// In a guest.
    In {
        /// Its name or id.
        guest: String,
        /// The path there.
        path: PathBuf,
    },
}

impl Place {
    /// `GUEST:PATH`, where no slash stands before the colon; else a path of this host.
    pub(super) fn of(text: OsString) -> Result<Place, String> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let slash = bytes.iter().position(|byte| *byte == b'/');
        let (guest, path) = match colon {
            Some(colon) if slash.is_none_or(|slash| colon < slash) => {
                (&bytes[..colon], &bytes[colon + 1..])
            }
            _ if bytes.is_empty() => return Err("it is empty".to_owned()),
            _ => return Ok(Place::Here(text.into())),
        };
        let guest = std::str::from_utf8(guest).map_err(|e| e.to_string())?;
        if guest.is_empty() || path.is_empty() {
            return Err("it is not GUEST:PATH".to_owned());
        }
        let path = absolute(path);
        let guest = guest.to_owned();
        Ok(Place::In { guest, path })
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        Place::of(text.into())
    }
}

/// Paths in a guest begin at its root.
pub(super) fn absolute(path: &[u8]) -> PathBuf {
    let path = OsStr::from_bytes(path);
    PathBuf::from("/").join(path)
}

/// What is to be in a guest before its program runs: `SRC:DST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Provision {
    /// A file or folder of this host.
    pub(super) from: PathBuf,
    /// Where it is to be in the guest.
    pub(super) to: PathBuf,
}

impl FromStr for Provision {
    type Err = String;

    fn from_str(text: &str) -> Result<Provision, String> {
        match text.rsplit_once(':') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(Provision {
                from: OsString::from_vec(from.as_bytes().to_vec()).into(),
                to: absolute(to.as_bytes()),
            }),
            _ => Err("it is not SRC:DST".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(guest: &str, path: &str) -> Place {
        Place::In {
            guest: guest.to_owned(),
            path: path.into(),
        }
    }

    #[test]
    fn a_colon_before_any_slash_names_a_guest() {
        let place = |text: &str| text.parse::<Place>().unwrap();
        assert_eq!(place("web-1:/srv/x"), guest("web-1", "/srv/x"));
        assert_eq!(place("web-1:x:y"), guest("web-1", "/x:y"));
        assert_eq!(place("./web-1:x"), Place::Here("./web-1:x".into()));
        assert_eq!(place("/a:b"), Place::Here("/a:b".into()));
        assert_eq!(place("plain"), Place::Here("plain".into()));
        for bad in ["", ":/x", "web-1:"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_provision_has_two_ends() {
        let provision: Provision = "./a:b.txt:/srv/b".parse().unwrap();
        assert_eq!(provision.from, PathBuf::from("./a:b.txt"));
        assert_eq!(provision.to, PathBuf::from("/srv/b"));
        for bad in ["", "a", ":/b", "a:"] {
            assert!(bad.parse::<Provision>().is_err(), "{bad}");
        }
    }
}
