//! The CRI log format: one line per output line, stamped, named and marked full (`F`) or partial (`P`).

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

use crate::files;

/// Longest text of one log line; longer output lines are split.
pub const MAX_LINE: usize = 16 * 1024;

/// How often it is said that a log cannot be written.
const REMINDER: Duration = Duration::from_mins(1);

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
}

impl LineSplitter {
    /// For the bytes of `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
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

    /// The stream ended: an unfinished line stays one, so that readers add no newline the program did not write.
    pub fn finish(&mut self, stamp: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.emit(b"P", stamp, out);
        }
    }

    fn emit(&mut self, tag: &[u8], stamp: &str, out: &mut Vec<u8>) {
        for part in [stamp.as_bytes(), self.stream.name(), tag] {
            out.extend_from_slice(part);
            out.push(b' ');
        }
        out.append(&mut self.pending);
        out.push(b'\n');
    }
}

/// A container's log file.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    /// When an error was told last.
    failed: Option<Instant>,
    path: PathBuf,
    size: u64,
    rotation: Rotation,
}

/// When a log file is put aside, and how many are kept (the kubelet's `containerLogMaxSize` and `containerLogMaxFiles`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Largest file in bytes; the last line may go beyond it.
    pub max_size: u64,
    /// Files of a container, with the one that is written.
    pub max_files: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5 }
    }
}

/// How the time is written in the name of a file that was put aside (UTC).
const TIME: &str = "%Y%m%d-%H%M%S.%9f";

/// When `file`, of the log at `path`, was put aside.
fn time_of(path: &Path, file: &Path) -> Option<DateTime> {
    let time = file.to_str()?.strip_prefix(path.to_str()?)?.strip_prefix('.')?;
    DateTime::strptime(TIME, time).ok()
}

/// Names tell the order of the files, also when the clock was set back since the last one.
fn time_after(now: DateTime, last: Option<DateTime>) -> DateTime {
    let next = last.and_then(|last| last.checked_add(jiff::Span::new().nanoseconds(1)).ok());
    next.map_or(now, |next| next.max(now))
}

/// The files of the log at `path` that were put aside, oldest first: `<path>.<time>`.
pub fn rotated_files(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else { return Vec::new() };
    let aside = |file: &PathBuf| {
        let file = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        file.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(aside).collect();
    files.sort();
    files
}

impl LogFile {
    /// Opens `path` for appending; creates it and its directories.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            files::dir_kept(parent, 0o750)?;
        }
        let file = files::append(path, 0o640)?;
        let size = file.metadata()?.len();
        Ok(Self { file, failed: None, path: path.to_owned(), size, rotation })
    }

    /// Appends finished lines. Output must go on when the disk is full: what went wrong, and what it cost, is returned
    /// once in a while only.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        let written = self.write(lines).map_err(|e| format!("{e}; lines are lost")).and_then(|()| {
            let full = self.size >= self.rotation.max_size;
            let rotated = if full { self.rotate() } else { Ok(()) };
            rotated.map_err(|e| format!("putting the full file aside: {e}; it grows on"))
        });
        match written {
            Err(e) if self.failed.is_none_or(|last| last.elapsed() >= REMINDER) => {
                self.failed = Some(Instant::now());
                Err(e)
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(e) = self.file.write_all(lines) {
            // half a line would spoil the one that is written after it
            if self.file.metadata().is_ok_and(|m| m.len() > self.size) {
                self.file.set_len(self.size)?;
            }
            return Err(e);
        }
        self.size += lines.len() as u64;
        Ok(())
    }

    /// Puts the file aside, begins a new one and removes those beyond the limit.
    fn rotate(&mut self) -> io::Result<()> {
        let now = jiff::tz::Offset::UTC.to_datetime(jiff::Timestamp::now());
        let last = rotated_files(&self.path).iter().rev().find_map(|file| time_of(&self.path, file));
        let mut aside = self.path.clone().into_os_string();
        aside.push(format!(".{}", time_after(now, last).strftime(TIME)));
        match std::fs::rename(&self.path, &aside) {
            // removed by somebody
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        match files::append(&self.path, 0o640) {
            Ok(file) => self.file = file,
            Err(e) => {
                // on a full disk: it goes on where readers look for it
                std::fs::rename(aside, &self.path)?;
                return Err(e);
            }
        }
        self.size = 0;
        let old = rotated_files(&self.path);
        let kept = (self.rotation.max_files.max(2) - 1) as usize;
        for file in &old[..old.len().saturating_sub(kept)] {
            std::fs::remove_file(file)?;
        }
        Ok(())
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
        assert_eq!(lines(&[b"a\nb"]), "T stdout F a\nT stdout P b\n");
        assert_eq!(lines(&[]), "");
    }

    #[test]
    fn full_files_are_put_aside() {
        let dir = std::env::temp_dir().join(format!("pikelet-rotate-{}", std::process::id()));
        let path = dir.join("0.log");
        let mut log = LogFile::open(&path, Rotation { max_size: 10, max_files: 3 }).unwrap();
        for i in 0..10 {
            log.append(format!("line {i}\n").as_bytes()).unwrap();
        }
        let read = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
        let old: Vec<String> = rotated_files(&path).iter().map(read).collect();
        assert_eq!(old, ["line 6\nline 7\n", "line 8\nline 9\n"]);
        assert_eq!(read(&path), "");
        let again = LogFile::open(&path, Rotation::default()).unwrap();
        assert_eq!(again.size, 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_order_of_files_survives_a_clock_that_is_set_back() {
        let folder = crate::machine::folder::Folder::new();
        let path = folder.path().join("0.log");
        // as by a clock that was ahead
        std::fs::write(folder.path().join("0.log.20990101-000000.000000000"), "oldest\n").unwrap();
        let mut log = LogFile::open(&path, Rotation { max_size: 1, max_files: 4 }).unwrap();
        for i in 0..3 {
            log.append(format!("line {i}\n").as_bytes()).unwrap();
        }
        let read = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
        let old: Vec<String> = rotated_files(&path).iter().map(read).collect();
        assert_eq!(old, ["line 0\n", "line 1\n", "line 2\n"]);
        // where no file can be begun, the old one is written on, and that is said
        std::fs::remove_dir_all(folder.path()).unwrap();
        let said = log.append(b"line 3\n").unwrap_err();
        assert!(said.contains("it grows on") && !said.contains("lost"), "{said}");
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
