//! Rules of README.md, one by one: what is refused, with which words and which exit code, and what
//! is left behind.

mod configuration;
mod devices;
mod faults;
mod host;
mod lab;
mod lives;
mod many;
mod network;
mod restores;
mod suspends;
mod zfs;
