//! Tests of checkpoint bundles, as the rest of brood and the user see them.

mod damage;
mod delta;
mod files;
mod meta;
mod round_trip;
mod sample;
mod writers;
