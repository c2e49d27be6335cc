//! The shim's log, which is in memory and must not grow for ever.

use std::fs::File;
use std::io::{self, Write};

/// Size in bytes at which it begins anew.
pub const MOST: u64 = 64 << 10;

/// A file opened to append, shared with all that the shim forks.
pub struct BoundedLog(File);

impl BoundedLog {
    /// Bounds `file` from now on.
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl Write for BoundedLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.metadata()?.len() > MOST {
            self.0.set_len(0)?;
            self.0.write_all(b"(earlier lines were dropped)\n")?;
        }
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_there() {
        let path = std::env::temp_dir().join(format!("pikelet-shim-log-{}", std::process::id()));
        let mut log = BoundedLog::new(crate::files::append(&path, 0o600).unwrap());
        for number in 0..10_000 {
            log.write_all(format!("line {number} of many\n").as_bytes()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= MOST + 100 && text.starts_with("(earlier") && text.ends_with("9999 of many\n"));
        std::fs::remove_file(path).unwrap();
    }
}
