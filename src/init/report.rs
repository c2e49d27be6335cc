//! `pikelet-status.txt` on the FAT partition, for a person without a screen. The card is spared: it is written when what
//! it says has changed and has been so for a while.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::status::Status;
use super::{BOOT, Failure, boot, log};

use crate::files;

const FILE: &str = "pikelet-status.txt";
/// How long the status has to be the same; mistakes of a person are told at once.
const SETTLED: Duration = Duration::from_mins(1);
/// Shortest time between two writes.
const APART: Duration = Duration::from_mins(10);

/// Writes the file, if it says something else. True when it was written.
fn write(text: &str) -> Result<bool, Failure> {
    let path = Path::new(BOOT).join(FILE);
    let text = text.replace('\n', "\r\n");
    if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    boot::writable(|| {
        let written = files::create(&path, 0o600).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map(|()| true).map_err(|e| format!("writing {}: {e}", path.display()).into())
    })
}

/// Keeps the file for ever.
pub async fn keep(mut status: watch::Receiver<Status>) {
    loop {
        let now = status.borrow_and_update().clone();
        let mistaken = !now.mistakes.is_empty();
        if !mistaken {
            let settled = tokio::time::timeout(SETTLED, changed(&mut status, &now)).await;
            match settled {
                Ok(true) => continue,
                Ok(false) => return,
                Err(_) => {}
            }
        }
        match tokio::task::spawn_blocking({
            let text = now.text(false);
            move || write(&text)
        })
        .await
        {
            Ok(Ok(true)) if !mistaken => tokio::time::sleep(APART).await,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => log::line(&error.to_string()),
            Err(error) => log::line(&error.to_string()),
        }
        if !changed(&mut status, &now).await {
            return;
        }
    }
}

/// Waits until the file would say something else; false when nobody tells any more.
async fn changed(status: &mut watch::Receiver<Status>, than: &Status) -> bool {
    let text = than.text(false);
    status.wait_for(|now| now.text(false) != text).await.is_ok()
}
