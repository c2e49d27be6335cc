//! Container output as CRI log files: `<RFC3339Nano> stdout|stderr F|P <text>` (Kubernetes CRI log format).

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest text of one line; a longer one is split with the tag `P`.
pub const MAX_LINE: usize = 16 << 10;

/// Which of a container's outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Turns the bytes of one stream into lines of the log file, which both streams share.
pub struct LineWriter {
    file: Arc<Mutex<File>>,
    stream: Stream,
    pending: Vec<u8>,
}

impl LineWriter {
    /// A writer for one stream.
    pub fn new(file: Arc<Mutex<File>>, stream: Stream) -> Self {
        Self { file, stream, pending: Vec::new() }
    }

    /// Takes output; whole lines are written at once.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        let time = jiff::Timestamp::now();
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.take(&bytes[..end], time, &mut out);
            let rest = std::mem::take(&mut self.pending);
            self.line(&rest, 'F', time, &mut out);
            bytes = &bytes[end + 1..];
        }
        self.take(bytes, time, &mut out);
        self.write(&out)
    }

    /// Writes what has no newline yet: the stream has ended.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.pending);
        self.line(&rest, 'P', jiff::Timestamp::now(), &mut out);
        self.write(&out)
    }

    /// Adds text without a newline to the pending line; full pieces go out as partial lines.
    fn take(&mut self, mut bytes: &[u8], time: jiff::Timestamp, out: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > MAX_LINE {
            let (head, tail) = bytes.split_at(MAX_LINE - self.pending.len());
            let mut piece = std::mem::take(&mut self.pending);
            piece.extend_from_slice(head);
            self.line(&piece, 'P', time, out);
            bytes = tail;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn line(&self, text: &[u8], tag: char, time: jiff::Timestamp, out: &mut Vec<u8>) {
        // writing to a Vec cannot fail
        let _ = write!(out, "{time:.9} {} {tag} ", self.stream.name());
        out.extend_from_slice(text);
        out.push(b'\n');
    }

    fn write(&self, out: &[u8]) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(pieces: &[&[u8]]) -> Vec<String> {
        let path =
            std::env::temp_dir().join(format!("pikelet-cri-{}-{:?}", std::process::id(), std::thread::current().id()));
        let file = Arc::new(Mutex::new(File::create(&path).unwrap()));
        let mut writer = LineWriter::new(file, Stream::Stdout);
        pieces.iter().for_each(|p| writer.push(p).unwrap());
        writer.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_whole_or_partial() {
        assert_eq!(logged(&[b"a", b"b\n\nc"]), ["stdout F ab", "stdout F ", "stdout P c"]);
        let long = vec![b'x'; MAX_LINE + 1];
        let lines = logged(&[&long, b"\n"]);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].len(), lines[1].as_str()), ("stdout P ".len() + MAX_LINE, "stdout F x"));
    }
}
