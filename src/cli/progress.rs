//! Lines on a terminal that tell how far something is, drawn over as it goes on.

use std::io::Write;

/// Decimal units, three digits and a bit, as docker and crictl write sizes.
pub fn human(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 1000.0 {
            let decimals = if unit == "B" || size >= 100.0 { 0 } else { 1 + usize::from(size < 10.0) };
            return format!("{size:.decimals$}{unit}");
        }
        size /= 1000.0;
    }
    format!("{size:.1}TB")
}

/// What was drawn, to be drawn over.
#[derive(Default)]
pub struct Screen {
    lines: usize,
}

impl Screen {
    /// Draws these lines in the place of those before.
    pub fn draw(&mut self, lines: &[String]) -> std::io::Result<()> {
        let mut out = std::io::stderr().lock();
        if self.lines > 0 {
            write!(out, "\x1b[{}A", self.lines)?;
        }
        for line in lines {
            writeln!(out, "\x1b[2K{line}")?;
        }
        self.lines = lines.len();
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_crictl_does() {
        let of = |n| human(n);
        assert_eq!([of(999), of(4_261_574), of(74_500_000), of(683_000)], ["999B", "4.26MB", "74.5MB", "683kB"]);
    }
}
