//! Density: measurements and the reports made of them.
