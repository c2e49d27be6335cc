//! Upgrades of the appliance: two systems on one card, of which a new one has to show that it works.
//!
//! Each system is a folder on the FAT partition, `a` or `b`, with kernel, initramfs, device trees and command line.
//! `choice.rs` says which one the firmware starts. `install.rs` puts an image's (`source.rs`) into the folder that is not in
//! use, and makes it the next one, on trial. `permit.rs` says who may ask for one by the Node's annotation. `trial.rs` is what the new system does: first of all it takes the choice back,
//! so that whatever happens the old one is started next; once the Node is Ready it makes the choice its own. `record.rs`
//! keeps what came of it, for the Node's Events.

mod choice;
mod install;
mod permit;
mod record;
mod source;
pub(super) mod trial;

use std::fs;
use std::path::Path;

pub use install::install;
pub use permit::Permit;
pub use record::{Record, State};
pub use source::Source;

use super::RUN;

/// Where upgrades are prepared and recorded.
pub const FOLDER: &str = "/var/lib/pikelet/upgrade";
/// The file that says what a system is.
const NOTE: &str = "image.txt";

/// An image that is not the one that was asked for, or cannot be this board's: trying it again is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub(in crate::init) String);

/// How `pikelet upgrade` ends on one.
pub const UNFIT: u8 = 3;

/// True on a board that runs the appliance, for who sees its processes.
pub fn is_possible() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    Path::new(RUN).is_dir() && namespace("1").is_some() && namespace("1") == namespace("self")
}
