//! Process of a guest: [`serve`] is its life after the fork, [`control`] the client of its socket.

pub(crate) mod control;
pub(crate) mod serve;
