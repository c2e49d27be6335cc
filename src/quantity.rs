//! Kubernetes quantities (`500m`, `64Mi`, `1e3`): apimachinery's `resource.Quantity`, read exactly.

/// A quantity in thousandths, rounded up (milli CPU for `cpu`). `None` if the text is no quantity.
pub fn milli(text: &str) -> Option<i128> {
    #[cfg(test)]
    READS.set(READS.get() + 1);
    let text = text.trim();
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    // Numerator and denominator of the suffix's factor, in thousandths.
    let (up, down): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs()).filter(|_| power.abs() <= 18)?;
            if power < 0 { (1_000, factor) } else { (1_000 * factor, 1) }
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let down = down.checked_mul(10_i128.checked_pow(fraction.len() as u32)?)?;
    let scaled = digits.checked_mul(up)?;
    Some(scaled.div_euclid(down) + i128::from(scaled.rem_euclid(down) != 0))
}

/// A quantity in whole units (bytes for `memory`), rounded up. `None` if the text is no quantity.
pub fn whole(text: &str) -> Option<i128> {
    let milli = milli(text)?;
    Some(milli.div_euclid(1000) + i128::from(milli.rem_euclid(1000) != 0))
}

/// Bytes with the largest binary suffix that needs no fraction, as `resource.Quantity` writes them.
pub fn binary(bytes: u64) -> String {
    let suffixes = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let fits = |(_, shift): &&(&str, u32)| bytes > 0 && bytes.is_multiple_of(1 << shift);
    suffixes
        .iter()
        .find(fits)
        .map_or_else(|| bytes.to_string(), |(suffix, shift)| format!("{}{suffix}", bytes >> shift))
}

#[cfg(test)]
thread_local!(static READS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });

/// How many quantities this thread has read.
#[cfg(test)]
pub fn reads() -> usize {
    READS.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_and_rounding() {
        for (text, want) in [("100m", 100), ("0.1", 100), ("2", 2000), ("1e3", 1_000_000), ("1E", 10_i128.pow(21))] {
            assert_eq!(milli(text), Some(want), "{text}");
        }
        for (text, want) in [("64Mi", 67_108_864), ("1.5Ki", 1536), ("1n", 1), ("128M", 128_000_000), ("1e-1", 1)] {
            assert_eq!(whole(text), Some(want), "{text}");
        }
        for (bytes, want) in [(0, "0"), (1000, "1000"), (1536, "1536"), (100 << 20, "100Mi"), (3 << 30, "3Gi")] {
            assert_eq!(binary(bytes), want);
        }
        for text in ["1Q", "", "Mi", "e", "1..2", "9999999999999999999999999999999999999999"] {
            assert_eq!(milli(text), None, "{text}");
        }
    }
}
