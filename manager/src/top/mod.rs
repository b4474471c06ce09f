//! `brood top`: the host, pools and guests as they are now, live in a terminal or once as text.
//!
//! [`source`] looks at them, with the daemon or without; [`view`] is what a person has chosen to
//! see; [`draw`] draws it; [`run`] is the terminal.

pub(crate) mod claims;
pub(crate) mod draw;
mod fit;
mod format;
pub(crate) mod picture;
pub(crate) mod run;
pub(crate) mod source;
pub(crate) mod text;
pub(crate) mod view;
