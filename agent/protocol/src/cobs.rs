//! Consistent overhead byte stuffing (Cheshire and Baker, 1999): bytes rewritten so that none is 0.
//!
//! Runs between zeros, and zeros in a row, are copied whole rather than byte by byte: in an emulated
//! guest the difference is seconds for a file of 100 MB.

/// The longest run that one code byte announces.
const RUN: usize = 254;

/// The most bytes that `length` bytes become.
pub(crate) const fn max_stuffed(length: usize) -> usize {
    length + length / RUN + 1
}

/// How many bytes of this value stand at the front.
fn count(bytes: &[u8], value: u8) -> usize {
    let others = bytes.iter().position(|byte| *byte != value);
    others.unwrap_or(bytes.len())
}

/// Appends these bytes to `out`, rewritten without a zero.
pub(crate) fn stuff(mut bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(max_stuffed(bytes.len()));
    loop {
        // Each zero of several is a run of none.
        let zeros = count(bytes, 0);
        out.resize(out.len() + zeros, 1);
        bytes = &bytes[zeros..];
        let window = &bytes[..bytes.len().min(RUN)];
        let zero = memchr::memchr(0, window);
        let run = &window[..zero.unwrap_or(window.len())];
        out.push(u8::try_from(run.len() + 1).expect("a run is at most 254 bytes"));
        out.extend_from_slice(run);
        bytes = match zero {
            // The zero is what ends the run; after one that ends the bytes comes an empty run.
            Some(at) => &bytes[at + 1..],
            None if window.len() == bytes.len() => return,
            None => &bytes[RUN..],
        };
    }
}

/// Appends to `out` what these bytes were before [`stuff`]. Nothing where they cannot have come
/// from it; `out` then holds a part.
pub(crate) fn unstuff(mut bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    loop {
        let zeros = count(bytes, 1);
        if zeros == bytes.len() {
            // The last stands for the end, and not for a zero.
            out.resize(out.len() + zeros.checked_sub(1)?, 0);
            return Some(());
        }
        out.resize(out.len() + zeros, 0);
        let (&code, rest) = bytes[zeros..].split_first()?;
        let run = usize::from(code).checked_sub(1)?;
        if rest.len() < run {
            return None;
        }
        let (run, rest) = rest.split_at(run);
        out.extend_from_slice(run);
        if rest.is_empty() {
            return Some(());
        }
        if run.len() < RUN {
            out.push(0);
        }
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuffed(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        stuff(bytes, &mut out);
        out
    }

    /// The examples of the paper, as they are quoted everywhere.
    #[test]
    fn known_vectors() {
        let up_to_254: Vec<u8> = (1..=254).collect();
        let mut full = vec![255];
        full.extend(&up_to_254);
        for (plain, expected) in [
            (&[][..], &[1][..]),
            (&[0], &[1, 1]),
            (&[0, 0], &[1, 1, 1]),
            (&[0x11, 0x22, 0, 0x33], &[3, 0x11, 0x22, 2, 0x33]),
            (&[0x11, 0, 0, 0], &[2, 0x11, 1, 1, 1]),
            (&[0, 0, 0x11, 0, 1], &[1, 1, 2, 0x11, 2, 1]),
            (&up_to_254, &full),
        ] {
            assert_eq!(stuffed(plain), expected);
            let mut back = Vec::new();
            unstuff(expected, &mut back).unwrap();
            assert_eq!(back, plain);
        }
    }

    proptest::proptest! {
        #[test]
        fn round_trip(bytes in proptest::collection::vec(0..3u8, 0..1200)) {
            let out = stuffed(&bytes);
            assert!(!out.contains(&0));
            assert!(out.len() <= max_stuffed(bytes.len()));
            let mut back = Vec::new();
            unstuff(&out, &mut back).unwrap();
            assert_eq!(back, bytes);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(0..=255u8, 0..600)) {
            let mut out = Vec::new();
            let _ = unstuff(&bytes, &mut out);
            assert!(out.len() <= bytes.len());
        }
    }
}
