//! What this machine can hold: facts read once and passed down as values.
