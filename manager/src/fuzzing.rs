//! What fuzz targets call, in builds with `--cfg fuzzing` alone. A function returns whether its input
//! was taken, and panics where it was taken wrongly.

pub use crate::{api::fuzzing::Daemon, config::fuzzing::configuration, image::fuzzing::layers};
