//! Process of a guest: [`serve`] is its life after the fork, [`port`] the kind of guest that it runs,
//! and [`control`] the client of its socket.

pub(crate) mod control;
pub(crate) mod port;
pub(crate) mod serve;
