//! Process of a guest: [`life`] has what guests of all kinds do, [`serve`] is the life of one with a
//! [`port`], and [`control`] the client of its socket.

pub(crate) mod control;
pub(crate) mod life;
pub(crate) mod plan;
pub(crate) mod port;
pub(crate) mod serve;
