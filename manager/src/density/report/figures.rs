//! Format of numbers for people.

/// A whole number with its thousands set apart.
pub(super) fn whole(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A measured number with about three digits that mean something.
pub(super) fn measured(x: f64) -> String {
    let size = x.abs();
    if size >= 1000.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded"
        )]
        let n = whole(size.round() as u64);
        return if x < 0.0 { format!("−{n}") } else { n };
    }
    let decimals = match size {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{x:.decimals$}").replace('-', "−")
}

/// An amount of memory given in MiB, in the unit that fits.
pub(super) fn memory(mib: f64) -> String {
    match mib.abs() {
        1_048_576.0.. => format!("{} TiB", measured(mib / 1_048_576.0)),
        1024.0.. => format!("{} GiB", measured(mib / 1024.0)),
        _ => format!("{} MiB", measured(mib)),
    }
}

/// Guests as a number to draw with.
#[expect(clippy::cast_precision_loss, reason = "for a plot")]
pub(super) fn count(n: u64) -> f64 {
    n as f64
}

/// A tick of a logarithmic axis: 1, 2 and 5 times a power of ten; the others would crowd.
pub(super) fn log_tick(x: &f64) -> String {
    let leading = x / 10_f64.powf(x.log10().floor());
    let shown = [1.0, 2.0, 5.0]
        .iter()
        .any(|digit| (leading - digit).abs() < 1e-6);
    match (shown, *x) {
        (false, _) => String::new(),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole here"
        )]
        (true, x) if x >= 1.0 => whole(x.round() as u64),
        (true, x) => x.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        assert_eq!(whole(0), "0");
        assert_eq!(whole(1_234_567), "1,234,567");
        assert_eq!(measured(9117.4), "9,117");
        assert_eq!(measured(-1234.0), "−1,234");
        assert_eq!(measured(0.5104), "0.510");
        assert_eq!(measured(-0.02), "−0.020");
        assert_eq!(measured(42.25), "42.2");
        assert_eq!(memory(256_000.0), "250 GiB");
        assert_eq!(log_tick(&2000.0), "2,000");
        assert_eq!(log_tick(&0.5), "0.5");
        assert_eq!(log_tick(&3000.0), "");
    }
}
