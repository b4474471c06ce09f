//! The rules of README.md, one by one: what is refused, with which words and which exit code, and
//! what is left behind.

mod lab;
mod lives;
