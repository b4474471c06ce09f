//! brood: restores hundreds to thousands of microVMs from one memory checkpoint.
