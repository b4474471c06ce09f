//! The checkpoint bundle: `X.ckp`, `X.ckp.kern`, `X.ckp.meta` as bhyve names them, and brood's
//! manifest `X.ckp.brood`.

pub mod manifest;
