//! Values of single settings. The same parser reads a value in the file, in the environment and on
//! the command line.

use std::{
    ffi::OsStr,
    fmt, io,
    marker::PhantomData,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    ops::Deref,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, de};

use brood_core::{
    checkpoint::{Accelerator, BundlePath, Network, manifest::EngineKind},
    engine::{ParkAfter, Publish, bhyve::Rctl},
    state::check_prefix,
    units::Bytes,
};

/// A value that is written as text, and perhaps as a number.
pub(super) trait Value: Sized {
    /// Whether TOML's numbers are understood too, as if they stood in quotes.
    const NUMBERS: bool = false;
    /// Whether it is TOML's `true` or `false`.
    const BOOLEAN: bool = false;

    /// Reads it; the error says what to write.
    fn read(text: &str) -> Result<Self, String>;

    /// Reads it from the environment or the command line.
    fn typed(text: &OsStr) -> Result<Self, String> {
        Self::read(text.to_str().ok_or("it is not UTF-8")?)
    }
}

/// A path that does not depend on the current folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// The path, below the current folder when it is relative.
    ///
    /// # Errors
    /// When it is empty, or the current folder is unknown.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        std::path::absolute(path).map(Self)
    }
}

impl Deref for AbsolutePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Value for AbsolutePath {
    /// A file is read from any folder, so a path in it must not depend on one.
    fn read(text: &str) -> Result<Self, String> {
        if Path::new(text).is_absolute() {
            Ok(Self(text.into()))
        } else {
            Err(format!("{text:?} is no absolute path: begin with a slash"))
        }
    }

    fn typed(text: &OsStr) -> Result<Self, String> {
        Self::new(Path::new(text)).map_err(|e| e.to_string())
    }
}

/// Permissions of the daemon's socket. A user who may write to it commands all guests, so only the
/// owner and the group ever may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketMode(pub u32);

impl Value for SocketMode {
    fn read(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode & 0o600 == 0o600 && mode & !0o660 == 0 => Ok(Self(mode)),
            _ => Err(format!(
                "{text:?} is no mode for the socket: write \"0600\" (owner), or \"0660\" (group too)"
            )),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// How the daemon writes its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much the daemon writes to its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// What failed.
    Error,
    /// And what is odd.
    Warn,
    /// And what was done.
    Info,
    /// And how.
    Debug,
    /// All there is.
    Trace,
}

/// Whether commands use the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UseDaemon {
    /// When one answers.
    Auto,
    /// Never.
    Off,
}

/// The only engine whose checkpoints are restored; none when each is restored by its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EngineChoice(pub Option<EngineKind>);

impl Value for EngineChoice {
    fn read(text: &str) -> Result<Self, String> {
        match (text, EngineKind::named(text)) {
            ("auto", _) => Ok(Self(None)),
            (_, None) => Err(format!(
                "there is no such engine as {text:?}: write \"kvm\", \"qemu\", \"bhyve\" or \"auto\""
            )),
            (_, named) => Ok(Self(named)),
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.map_or("auto", EngineKind::name))
    }
}

/// What executes the instructions of new QEMU guests; none for the best that the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AcceleratorChoice(pub Option<Accelerator>);

impl Value for AcceleratorChoice {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            name => name.parse().map(|named| Self(Some(named))).map_err(|()| {
                format!("{name:?} is no accelerator: write \"kvm\", \"tcg\" or \"auto\"")
            }),
        }
    }
}

impl fmt::Display for AcceleratorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.map_or("auto", Accelerator::name))
    }
}

/// One of a few words.
fn one_of<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let words: Vec<String> = T::value_variants().iter().map(word).collect();
        format!("{text:?} is none of: {}", words.join(", "))
    })
}

fn word<T: ValueEnum>(value: &T) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |v| v.get_name().to_owned())
}

macro_rules! words {
    ($($type:ty),*) => {
        $(impl Value for $type {
            fn read(text: &str) -> Result<Self, String> {
                one_of(text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&word(self))
            }
        })*
    };
}

words!(LogFormat, LogLevel, UseDaemon);

/// The name of a pool, which begins the names of its guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolName(pub(super) String);

impl Value for PoolName {
    fn read(text: &str) -> Result<Self, String> {
        check_prefix(text).map_err(|e| e.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

impl Value for BundlePath {
    fn read(text: &str) -> Result<Self, String> {
        AbsolutePath::read(text)?;
        text.parse()
            .map_err(|e: brood_core::checkpoint::Error| e.to_string())
    }
}

impl Value for SocketAddr {
    fn read(text: &str) -> Result<Self, String> {
        listen_address(text)
    }
}

/// An address to listen on: an IP address and a port, or a port of this machine alone (`7300`,
/// `:7300`, `localhost:7300`).
///
/// # Errors
/// When it is none; the error says what to write.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text
        .strip_prefix("localhost:")
        .or_else(|| text.strip_prefix(':'))
        .unwrap_or(text);
    match port.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => Err(format!(
            "{text:?} is no address: write an IP address and a port, such as \"127.0.0.1:7300\""
        )),
    }
}

impl Value for NonZeroU32 {
    const NUMBERS: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is no whole number above 0"))
    }
}

impl Value for u32 {
    const NUMBERS: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is no whole number from 0 on"))
    }
}

impl Value for bool {
    const BOOLEAN: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is neither \"true\" nor \"false\""))
    }
}

impl Value for Bytes {
    const NUMBERS: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|e: brood_core::units::ParseBytesError| e.to_string())
    }
}

impl Value for ParkAfter {
    const NUMBERS: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|e: brood_core::engine::ParseParkAfterError| e.to_string())
    }
}

impl Value for Network {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Value for Publish {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|e: brood_core::engine::ParsePublishError| e.to_string())
    }
}

impl Value for Rctl {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|e: brood_core::engine::bhyve::ParseRctlError| e.to_string())
    }
}

/// A value as it stands in a TOML file.
#[derive(Clone, Debug)]
pub(super) struct InFile<T>(pub(super) T);

impl<'de, T: Value> Deserialize<'de> for InFile<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor(PhantomData))
    }
}

struct ValueVisitor<T>(PhantomData<T>);

impl<T: Value> ValueVisitor<T> {
    fn number<E: de::Error>(number: &impl ToString) -> Result<InFile<T>, E> {
        if T::NUMBERS {
            T::read(&number.to_string()).map(InFile).map_err(E::custom)
        } else {
            Err(E::custom("this is text: write it in quotes"))
        }
    }
}

impl<T: Value> de::Visitor<'_> for ValueVisitor<T> {
    type Value = InFile<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if T::BOOLEAN {
            "true or false"
        } else if T::NUMBERS {
            "a number, or text in quotes"
        } else {
            "text in quotes"
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        T::read(text).map(InFile).map_err(E::custom)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        if T::BOOLEAN {
            T::read(&value.to_string()).map(InFile).map_err(E::custom)
        } else {
            Err(E::invalid_type(de::Unexpected::Bool(value), &self))
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Self::number(&number)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Self::number(&number)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Self::number(&number)
    }
}
