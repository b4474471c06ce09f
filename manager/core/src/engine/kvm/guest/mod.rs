//! Process of a guest: [`serve`] is its life after the fork, [`control`] the client of its socket,
//! and [`exit_record`] the file that says why it ended.

pub(crate) mod control;
pub(crate) mod exit_record;
pub(crate) mod serve;
