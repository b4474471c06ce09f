//! A guest's process: [`serve`] is its life after the fork, [`control`] the socket that it is asked by, and
//! [`exit_record`] how it says why it ended.

pub(crate) mod control;
pub(crate) mod exit_record;
pub(crate) mod serve;
