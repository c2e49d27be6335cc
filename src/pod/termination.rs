//! How a container is asked to end (`stopSignal`) and what it says of its end (`terminationMessagePath`,
//! `terminationMessagePolicy`).

use std::io::{Read, Seek, SeekFrom};
use std::str::FromStr;

use k8s_openapi::api::core::v1::Container;
use nix::sys::signal::Signal;
use tracing::warn;

use crate::files;
use crate::image::Image;
use crate::runtime::{ContainerInfo, last_lines};

/// Label of a container that holds the number of its stop signal.
pub const LABEL_STOP_SIGNAL: &str = "stop-signal";
/// Label of a container whose log is its message when it fails without one (`FallbackToLogsOnError`).
pub const LABEL_LOG_IS_MESSAGE: &str = "log-is-message";

/// Most that is read of a termination message file, in bytes from its end, where what went wrong mostly is.
const MESSAGE_MAX: i64 = 4096;
/// Most that is taken from a log instead: lines, and bytes.
const LOG_LINES: u64 = 80;
const LOG_MAX: usize = 2048;

/// The number of a signal: `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`.
fn number(written: &str) -> Option<i32> {
    let name = written.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let (first, last) = (nix::libc::SIGRTMIN(), nix::libc::SIGRTMAX());
    let real_time = if let Some(more) = name.strip_prefix("RTMIN") {
        Some(first + if more.is_empty() { 0 } else { more.strip_prefix('+')?.parse::<i32>().ok()? })
    } else if let Some(less) = name.strip_prefix("RTMAX") {
        Some(last - if less.is_empty() { 0 } else { less.strip_prefix('-')?.parse::<i32>().ok()? })
    } else {
        name.parse().ok()
    };
    match real_time {
        Some(number) => (1..=last).contains(&number).then_some(number),
        None => Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32),
    }
}

/// What asks the container to end: its own `lifecycle.stopSignal`, else the image's, else SIGTERM.
pub fn stop_signal(container: &Container, image: &Image) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_ref());
    let Some(written) = own.or(image.config.stop_signal.as_ref()).filter(|s| !s.is_empty()) else {
        return Signal::SIGTERM as i32;
    };
    number(written).unwrap_or_else(|| {
        warn!(container = container.name, signal = written, "unknown stop signal: SIGTERM is used");
        Signal::SIGTERM as i32
    })
}

/// The stop signal of a container that was made.
pub fn stop_signal_of(info: &ContainerInfo) -> i32 {
    info.spec.labels.get(LABEL_STOP_SIGNAL).and_then(|n| n.parse().ok()).unwrap_or(Signal::SIGTERM as i32)
}

/// What a container that has ended left as its message.
pub fn message(info: &ContainerInfo) -> Option<String> {
    let exit = info.exit.as_ref()?;
    let mut text = Vec::new();
    if let Some(mut file) = info.spec.termination_log.as_ref().and_then(|path| files::open_regular(path).ok()) {
        // a shorter one has no such place, and is read from its beginning; what could be read is told
        let _ = file.seek(SeekFrom::End(-MESSAGE_MAX));
        let _ = file.take(MESSAGE_MAX as u64).read_to_end(&mut text);
    }
    if text.is_empty() && exit.code != 0 && info.spec.labels.contains_key(LABEL_LOG_IS_MESSAGE) {
        text = last_lines(&info.spec.log_path, LOG_LINES, LOG_MAX).unwrap_or_default();
    }
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_told_from_its_end() {
        let file = std::env::temp_dir().join(format!("pikelet-message-{}", std::process::id()));
        let of = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let exit = crate::runtime::ExitRecord { code: 1, signal: None, oom_killed: false, finished_at: 0 };
            let spec = crate::runtime::ContainerSpec { termination_log: Some(file.clone()), ..Default::default() };
            message(&ContainerInfo { spec, pid: 1, started_at: None, created_at: 0, exit: Some(exit) })
        };
        assert_eq!(of("short").as_deref(), Some("short"));
        let long = of(&format!("{}the reason", "x".repeat(5000))).unwrap();
        assert!(long.len() == 4096 && long.ends_with("xthe reason"), "{long}");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn signals_have_many_names() {
        for (written, want) in
            [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", nix::libc::SIGRTMIN() + 3), ("RTMAX", 64)]
        {
            assert_eq!(number(written), Some(want), "{written}");
        }
        for wrong in ["SIGNONSENSE", "0", "65", "RTMIN+40", "RTMIN-1", "RTMIN+x", ""] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
