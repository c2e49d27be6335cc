//! `/logs/`: the files of `/var/log`, to read.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use tokio_util::io::ReaderStream;

use super::api::Kubelet;
use crate::files;

/// Finds `path` below `root`; links lead nowhere else (openat2(2)). It is opened as a place only.
fn open(root: &FilePath, path: &str) -> io::Result<File> {
    let root = File::open(root)?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let path = path.trim_matches('/');
    let opened: OwnedFd = openat2(&root, if path.is_empty() { "." } else { path }, how)?;
    Ok(opened.into())
}

/// Names in a folder, folders with a slash behind.
fn list(root: &FilePath, path: &str) -> io::Result<String> {
    use std::fmt::Write;
    let dir = open(root, path)?;
    let dir = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let mut names: Vec<String> = std::fs::read_dir(dir)?
        .flatten()
        .map(|e| format!("{}{}", e.file_name().to_string_lossy(), if e.path().is_dir() { "/" } else { "" }))
        .collect();
    names.sort();
    let escape = |t: &str| t.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    Ok(names.iter().fold("<pre>\n".to_owned(), |mut text, name| {
        // writing to a String cannot fail
        let _ = writeln!(text, "<a href=\"{0}\">{0}</a>", escape(name));
        text
    }) + "</pre>\n")
}

/// `/logs/`.
pub async fn root(state: State<Kubelet>) -> Response {
    file(state, Path(String::new())).await
}

/// `/logs/{path}`: a file, or the list of a folder.
pub async fn file(State(kubelet): State<Kubelet>, Path(path): Path<String>) -> Response {
    let root = kubelet.system_logs_dir.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let place = open(&root, &path)?;
        if place.metadata()?.is_dir() {
            return list(&root, &path).map(|names| Html(names).into_response());
        }
        let stream = ReaderStream::new(tokio::fs::File::from_std(files::reopen_regular(&place)?));
        Ok(Body::from_stream(stream).into_response())
    });
    match opened.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            (StatusCode::FORBIDDEN, "403 Forbidden").into_response()
        }
        _ => (StatusCode::NOT_FOUND, "404 page not found").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let dir = std::env::temp_dir().join(format!("pikelet-logs-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("pods")).unwrap();
        std::fs::write(dir.join("pods/a"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("out")).unwrap();
        assert!(open(&dir, "pods/a").is_ok());
        assert!(open(&dir, "/pods/../pods/a").is_ok());
        assert!(open(&dir, "out").is_err());
        assert!(open(&dir, "../../etc/hostname").is_err());
        assert_eq!(list(&dir, "").unwrap(), "<pre>\n<a href=\"out\">out</a>\n<a href=\"pods/\">pods/</a>\n</pre>\n");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
