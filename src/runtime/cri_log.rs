//! The CRI log format: one line per output line, stamped, named and marked full (`F`) or partial (`P`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Longest text of one log line; longer output lines are split.
pub const MAX_LINE: usize = 16 * 1024;

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output (and a terminal's output).
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As the log names it.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Turns one stream's bytes into CRI log lines; keeps at most [`MAX_LINE`] bytes of an unfinished line.
#[derive(Debug)]
pub struct LineSplitter {
    stream: Stream,
    pending: Vec<u8>,
    split: bool,
}

impl LineSplitter {
    /// For the bytes of `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new(), split: false }
    }

    /// Whose bytes it splits.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Appends the log lines finished by `data` to `out`.
    pub fn push(&mut self, mut data: &[u8], stamp: &str, out: &mut Vec<u8>) {
        while !data.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let window = &data[..data.len().min(room + 1)];
            if let Some(end) = window.iter().position(|&b| b == b'\n') {
                self.pending.extend_from_slice(&data[..end]);
                self.emit(b"F", stamp, out);
                data = &data[end + 1..];
            } else {
                let taken = data.len().min(room);
                self.pending.extend_from_slice(&data[..taken]);
                data = &data[taken..];
                if self.pending.len() == MAX_LINE && !data.is_empty() {
                    self.emit(b"P", stamp, out);
                }
            }
        }
    }

    /// The stream ended: an unfinished line becomes a full one.
    pub fn finish(&mut self, stamp: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() || self.split {
            self.emit(b"F", stamp, out);
        }
    }

    fn emit(&mut self, tag: &[u8], stamp: &str, out: &mut Vec<u8>) {
        for part in [stamp.as_bytes(), self.stream.name(), tag] {
            out.extend_from_slice(part);
            out.push(b' ');
        }
        out.append(&mut self.pending);
        out.push(b'\n');
        self.split = tag == b"P";
    }
}

/// A container's log file.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    failed: bool,
}

impl LogFile {
    /// Opens `path` for appending; creates it and its directories.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, failed: false })
    }

    /// Appends finished lines. Output must go on when the disk is full: only the first error of a row is returned.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let result = self.file.write_all(lines);
        let before = std::mem::replace(&mut self.failed, result.is_err());
        if before { Ok(()) } else { result }
    }
}

/// The present time as the log writes it (RFC 3339 with nanoseconds).
pub fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> String {
        let (mut splitter, mut out) = (LineSplitter::new(Stream::Stdout), Vec::new());
        for chunk in chunks {
            splitter.push(chunk, "T", &mut out);
        }
        splitter.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_joined_across_reads() {
        assert_eq!(lines(&[b"he", b"llo\nyou", b"\n\n"]), "T stdout F hello\nT stdout F you\nT stdout F \n");
    }

    #[test]
    fn an_unfinished_last_line_is_kept() {
        assert_eq!(lines(&[b"a\nb"]), "T stdout F a\nT stdout F b\n");
        assert_eq!(lines(&[]), "");
    }

    #[test]
    fn long_lines_are_split() {
        let long = vec![b'x'; MAX_LINE + 3];
        let text = lines(&[&long, b"\n"]);
        let x = "x".repeat(MAX_LINE);
        assert_eq!(text, format!("T stdout P {x}\nT stdout F xxx\n"));
        let exact = lines(&[&long[..MAX_LINE], b"\n"]);
        assert_eq!(exact, format!("T stdout F {x}\n"));
    }

    #[test]
    fn stamps_have_nanoseconds() {
        let stamp = timestamp();
        assert_eq!(stamp.len(), "2026-01-02T03:04:05.123456789Z".len(), "{stamp}");
    }
}
