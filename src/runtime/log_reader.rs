//! Reading a container's CRI log as `kubectl logs` wants it: tail, since, timestamps, limit, follow across rotation.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::cri_log::{Stream, rotated_files};
use crate::files;

/// Bytes read at a time.
const BLOCK: usize = 32 * 1024;
/// Longest line kept while it is incomplete; the shim writes shorter ones.
const MAX_LINE: usize = 64 * 1024;

/// How often a log is looked at where the kernel does not tell of changes.
const LOOK: Duration = Duration::from_secs(1);

/// What of a log is wanted (Kubernetes' `PodLogOptions`).
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on when the end is reached, until the container ends.
    pub follow: bool,
    /// Only that many last lines.
    pub tail: Option<u64>,
    /// Only lines not older than this.
    pub since: Option<jiff::Timestamp>,
    /// Each line starts with its time.
    pub timestamps: bool,
    /// End after that many bytes.
    pub limit_bytes: Option<u64>,
    /// Only this stream's lines.
    pub stream: Option<Stream>,
}

/// Sends what `options` want of the log at `path` to `out`; ends when that is done, when a followed container has
/// `ended` and all was read, or when nobody listens. Holds no more than one block and one line. Gives what is wanted of
/// the log of the next run; `None`: nothing more, or nobody listens.
pub async fn read_log(
    path: &Path,
    options: LogOptions,
    ended: impl Future<Output = ()>,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> Option<LogOptions> {
    let result = tokio::select! {
        result = copy(path, options, ended, out) => result,
        () = out.closed() => return None,
    };
    match result {
        Ok(next) => next,
        Err(error) => {
            // whoever listened may have gone
            let _ = out.send(Err(error)).await;
            None
        }
    }
}

async fn copy(
    path: &Path,
    options: LogOptions,
    ended: impl Future<Output = ()>,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<Option<LogOptions>> {
    let mut changes = if options.follow { Changes::of(path) } else { Changes::None };
    let (found, tail) = (path.to_owned(), options.tail);
    let opened = tokio::task::spawn_blocking(move || {
        let mut file = files::open_regular(&found)?;
        if let Some(lines) = tail {
            let start = tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok::<_, io::Error>(file)
    });
    let mut file = tokio::fs::File::from_std(opened.await.map_err(io::Error::other)??);
    let mut lines = Lines::new(&options);
    let mut block = vec![0; BLOCK];
    let mut last = !options.follow;
    let mut newer = None;
    tokio::pin!(ended);
    loop {
        let count = file.read(&mut block).await?;
        if count > 0 {
            let text = lines.take(&block[..count]);
            if !text.is_empty() && out.send(Ok(text.into())).await.is_err() || lines.full() {
                return Ok(None);
            }
            continue;
        }
        // nothing is written to a file once it has another name: what was written before is read by now
        if let Some(newer) = newer.take() {
            file = newer;
            continue;
        }
        newer = if options.follow { next_file(path, &file).await } else { None };
        if newer.is_some() {
            continue;
        }
        if last {
            return Ok(options.follow.then_some(LogOptions { tail: None, limit_bytes: lines.left, ..options }));
        }
        tokio::select! {
            () = &mut ended => last = true,
            () = changes.next() => {}
        }
    }
}

/// When a log may have grown.
enum Changes {
    /// It does not matter.
    None,
    /// The kernel tells.
    Told(inotify::EventStream<[u8; 1024]>),
    /// The kernel does not: a user has few inotify instances (`fs.inotify.max_user_instances`), and containers whose user
    /// is the agent's take all of them if they like.
    Looked,
}

impl Changes {
    fn of(path: &Path) -> Self {
        let told = || {
            let inotify = Inotify::init()?;
            let dir = path.parent().unwrap_or(Path::new("/"));
            inotify.watches().add(dir, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
            inotify.into_event_stream([0; 1024])
        };
        told().map_or_else(|_: io::Error| Self::Looked, Self::Told)
    }

    async fn next(&mut self) {
        match self {
            Self::None => std::future::pending().await,
            Self::Told(changes) => drop(changes.next().await),
            Self::Looked => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The file that follows `file` in the log at `path`; `None` while `file` is the newest.
async fn next_file(path: &Path, file: &tokio::fs::File) -> Option<tokio::fs::File> {
    let (now, then) = (tokio::fs::metadata(path).await.ok()?, file.metadata().await.ok()?);
    if now.ino() == then.ino() {
        return None;
    }
    let own = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    // one that was removed meanwhile comes before all that are left
    let older = rotated_files(path);
    let next = if older.contains(&own) { older.into_iter().find(|f| *f > own) } else { older.into_iter().next() };
    let next = next.unwrap_or_else(|| path.to_owned());
    let opened = tokio::task::spawn_blocking(move || files::open_regular(&next)).await.ok()?;
    opened.ok().map(tokio::fs::File::from_std)
}

/// The end of a log, without times: at most so many lines and bytes.
pub fn last_lines(path: &Path, lines: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = files::open_regular(path)?;
    let start = tail_start(&mut file, lines)?;
    file.seek(SeekFrom::Start(start))?;
    let (mut wanted, mut block, mut last) = (Lines::new(&LogOptions::default()), vec![0; BLOCK], Vec::new());
    loop {
        match file.read(&mut block)? {
            0 => return Ok(last),
            count => last.extend(wanted.take(&block[..count])),
        }
        last.drain(..last.len().saturating_sub(bytes));
    }
}

/// Where the last `lines` lines begin.
fn tail_start(file: &mut std::fs::File, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    let mut block = vec![0; BLOCK];
    let (mut position, mut found) = (end, 0);
    while position > 0 {
        let size = position.min(BLOCK as u64);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let part = &mut block[..size as usize];
        file.read_exact(part)?;
        for (i, _) in part.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            // the newline that ends the last line begins none
            if found == lines {
                return Ok(position + i as u64 + 1);
            }
            found += 1;
        }
    }
    Ok(0)
}

/// Turns CRI lines into what is wanted of them.
struct Lines {
    since: Option<String>,
    timestamps: bool,
    left: Option<u64>,
    stream: Option<&'static [u8]>,
    pending: Vec<u8>,
    /// The last line went on: the next piece gets no time.
    partial: bool,
}

impl Lines {
    fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since.map(|t| format!("{t:.9}")),
            timestamps: options.timestamps,
            left: options.limit_bytes,
            stream: options.stream.map(Stream::name),
            pending: Vec::new(),
            partial: false,
        }
    }

    /// The limit is reached.
    fn full(&self) -> bool {
        self.left == Some(0)
    }

    fn take(&mut self, mut data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len());
        while let Some(end) = data.iter().position(|&b| b == b'\n') {
            if self.pending.is_empty() {
                self.line(&data[..end], &mut out);
            } else {
                self.pending.extend_from_slice(&data[..end]);
                let line = std::mem::take(&mut self.pending);
                self.line(&line, &mut out);
            }
            data = &data[end + 1..];
        }
        if self.pending.len() + data.len() <= MAX_LINE {
            self.pending.extend_from_slice(data);
        }
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out
    }

    /// `<time> <stream> <tag> <text>`; anything else is no line of ours and left out.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut fields = line.splitn(4, |&b| b == b' ');
        let (Some(time), Some(stream), Some(tag), Some(text)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return;
        };
        // times are all in UTC and of one length: their order is that of their bytes
        if self.since.as_ref().is_some_and(|s| time < s.as_bytes()) || self.stream.is_some_and(|s| s != stream) {
            return;
        }
        if self.timestamps && !self.partial {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        self.partial = tag == b"P";
        if !self.partial {
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n2026-01-01T00:00:02.000000000Z stderr P tw\n\
                       2026-01-01T00:00:03.000000000Z stderr F o\n2026-01-01T00:00:04.000000000Z stdout F three\n";

    fn wanted(options: &LogOptions) -> String {
        let mut lines = Lines::new(options);
        let mut out = Vec::new();
        for piece in LOG.as_bytes().chunks(7) {
            out.extend(lines.take(piece));
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn options_select_and_decorate() {
        assert_eq!(wanted(&LogOptions::default()), "one\ntwo\nthree\n");
        let stamped = wanted(&LogOptions { timestamps: true, ..LogOptions::default() });
        assert!(stamped.contains("00:00:02.000000000Z two\n"), "{stamped}");
        let since = Some("2026-01-01T00:00:03.5Z".parse().unwrap());
        assert_eq!(wanted(&LogOptions { since, ..LogOptions::default() }), "three\n");
        assert_eq!(wanted(&LogOptions { limit_bytes: Some(6), ..LogOptions::default() }), "one\ntw");
        assert_eq!(wanted(&LogOptions { stream: Some(Stream::Stderr), ..LogOptions::default() }), "two\n");
    }

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("pikelet-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn the_tail_is_found() {
        let dir = folder("tail");
        let path = dir.join("0.log");
        std::fs::write(&path, "a\nbb\nccc\n".repeat(20_000)).unwrap();
        let start = |lines| tail_start(&mut std::fs::File::open(&path).unwrap(), lines).unwrap();
        assert_eq!([start(0), start(1), start(2)], [180_000, 179_996, 179_993]);
        assert_eq!(start(59_999), 2);
        assert_eq!(start(60_000), 0);
        assert_eq!(start(1_000_000), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn following_goes_across_a_rotation_until_the_end() {
        let dir = folder("follow");
        let path = dir.join("0.log");
        std::fs::write(&path, "T stdout F one\n").unwrap();
        let (tx, mut rx) = mpsc::channel(4);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let reading = {
            let path = path.clone();
            tokio::spawn(async move { read_log(&path, options, async { drop(ended.await) }, &tx).await })
        };
        assert_eq!(rx.recv().await.unwrap().unwrap(), "one\n");
        std::fs::rename(&path, dir.join("0.log.old")).unwrap();
        std::fs::write(dir.join("new"), "T stdout F two\n").unwrap();
        std::fs::rename(dir.join("new"), &path).unwrap();
        assert_eq!(rx.recv().await.unwrap().unwrap(), "two\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"T stdout F three\n").unwrap();
        end.send(()).unwrap();
        assert_eq!(rx.recv().await.unwrap().unwrap(), "three\n");
        assert!(rx.recv().await.is_none());
        assert!(reading.await.unwrap().is_some_and(|next| next.follow));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
