//! `pikelet flash`: an image to a card, checked, with the settings filled in.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use ring::digest::{Context, Digest, SHA256};

use super::Outcome;
use super::client::Failure;
use super::progress::{Screen, human};
use crate::init::image::{fill, open, variant};
use crate::init::{fat, settings};
use crate::machine::disk::{self, Disk};

/// Most bytes that are read of a token.
const MAX_TOKEN: u64 = 64 << 10;
/// Bytes that are written at once.
const CHUNK: usize = 4 << 20;

/// Arguments of `pikelet flash`.
#[derive(clap::Args)]
pub struct Args {
    /// Image, as it is or compressed by zstd or gzip
    image: PathBuf,
    /// The card: the whole disk, such as /dev/sdb or /dev/mmcblk0; all that is on it is lost
    device: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Settings file to put on the card instead of the image's; the flags below are added
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Server to join
    #[arg(short, long, value_name = "URL")]
    server: Option<String>,
    /// Token to join with; others may see it in the shell's history: better --token-file, or the variable `K3S_TOKEN`
    #[arg(short, long, value_name = "TOKEN")]
    token: Option<String>,
    /// File the token is in; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Hash of the public key of the cluster's CA
    #[arg(long = "ca-cert-hash", value_delimiter = ',', value_name = "sha256:HEX")]
    ca_cert_hash: Vec<String>,
    /// Name of the Node
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Labels of the Node
    #[arg(long = "node-labels", alias = "node-label", value_delimiter = ',', value_name = "KEY=VALUE")]
    node_labels: Vec<String>,
    /// Taints the Node is registered with
    #[arg(
        long = "register-with-taints",
        alias = "node-taint",
        value_delimiter = ',',
        value_name = "KEY[=VALUE]:EFFECT"
    )]
    register_with_taints: Vec<String>,
    /// Fixed address of the board, such as 192.168.1.20/24, instead of DHCP
    #[arg(long, value_name = "CIDR")]
    address: Option<IpNet>,
    /// Its gateway
    #[arg(long, value_name = "IP", requires = "address")]
    gateway: Option<IpAddr>,
    /// Its name servers
    #[arg(long = "name-servers", value_delimiter = ',', value_name = "IP")]
    name_servers: Vec<IpAddr>,
    /// Its time servers
    #[arg(long = "time-servers", value_delimiter = ',', value_name = "NAME")]
    time_servers: Vec<String>,
}

impl Args {
    /// The token, from wherever it comes; `variable` counts for a board that is to join a server.
    fn token(&self, variable: Option<String>) -> Result<Option<String>, Failure> {
        let text = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(path)) if path == Path::new("-") => io::read_to_string(io::stdin().take(MAX_TOKEN))
                .map_err(|e| format!("reading the token from standard input: {e}"))?,
            (None, Some(path)) => {
                std::fs::read_to_string(path).map_err(|e| format!("token file {}: {e}", path.display()))?
            }
            (None, None) => variable.filter(|_| self.server.is_some()).unwrap_or_default(),
        };
        let token = text.lines().next().unwrap_or_default().trim();
        if token.is_empty() && self.token_file.is_some() {
            return Err("the token file has no token in its first line".into());
        }
        Ok(Some(token.to_owned()).filter(|token| !token.is_empty()))
    }

    /// What the flags set, as the settings file has it.
    fn chosen(&self) -> Result<String, Failure> {
        let mut all = serde_json::Map::new();
        let mut set = |key: &str, value: serde_json::Value| {
            if !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty()) {
                all.insert(key.to_owned(), value);
            }
        };
        set("server", serde_json::json!(self.server));
        set("token", serde_json::json!(self.token(super::arguments::token())?));
        set("caCertHash", serde_json::json!(self.ca_cert_hash));
        set("nodeName", serde_json::json!(self.node_name));
        set("nodeLabels", serde_json::json!(self.node_labels));
        set("registerWithTaints", serde_json::json!(self.register_with_taints));
        set("timeServers", serde_json::json!(self.time_servers));
        let mut network = serde_json::Map::new();
        for (key, value) in [
            ("address", serde_json::json!(self.address)),
            ("gateway", serde_json::json!(self.gateway)),
            ("nameServers", serde_json::json!(self.name_servers)),
        ] {
            if !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty()) {
                network.insert(key.to_owned(), value);
            }
        }
        if !network.is_empty() {
            all.insert("network".to_owned(), network.into());
        }
        Ok(if all.is_empty() { String::new() } else { serde_saphyr::to_string(&all)? })
    }

    /// The settings file to be written; `None`: the image's own stays. Mistakes are told before anything is written.
    fn wanted(&self) -> Result<Option<String>, Failure> {
        let chosen = self.chosen()?;
        let base = match &self.settings {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|e| format!("settings file {}: {e}", path.display()))?
            }
            None if chosen.is_empty() => return Ok(None),
            None => String::new(),
        };
        let text = if chosen.is_empty() { base } else { format!("{base}\n# set by pikelet flash\n{chosen}") };
        let mistakes = settings::mistakes(&text, variant(&self.image)?);
        if mistakes.is_empty() { Ok(Some(text)) } else { Err(mistakes.join("\n").into()) }
    }
}

/// A bar, on a terminal.
struct Bar {
    screen: Option<Screen>,
    what: &'static str,
}

impl Bar {
    fn of(what: &'static str) -> Self {
        Self { screen: io::stderr().is_terminal().then(Screen::default), what }
    }

    fn draw(&mut self, done: u64, all: Option<u64>) -> io::Result<()> {
        let Some(screen) = &mut self.screen else { return Ok(()) };
        let line = match all {
            Some(all) => {
                let cells = usize::try_from(done * 30 / all.max(1)).unwrap_or(30).min(30);
                format!("{:<9} [{:<30}] {} of {}", self.what, "#".repeat(cells), human(done), human(all))
            }
            None => format!("{:<9} {}", self.what, human(done)),
        };
        screen.draw(&[line])
    }
}

/// Writes all of the image; how much that was, and its digest.
fn write(image: &Path, device: &mut File, room: u64) -> Result<(u64, Digest), Failure> {
    let mut from = open(image)?;
    // of a compressed image nobody knows the size
    let plain = image.extension().is_some_and(|e| e == "img");
    let all = if plain { Some(std::fs::metadata(image)?.len()) } else { None };
    let mut bar = Bar::of("writing");
    let (mut buffer, mut digest, mut done) = (vec![0; CHUNK], Context::new(&SHA256), 0);
    let too_small = || format!("the image has more than the {} of the card", human(room));
    if all.is_some_and(|all| all > room) {
        return Err(too_small().into());
    }
    loop {
        let size = fill(&mut from, &mut buffer).map_err(|e| format!("reading {}: {e}", image.display()))?;
        let part = &buffer[..size];
        if size == 0 {
            break;
        }
        if done + size as u64 > room {
            return Err(too_small().into());
        }
        device.write_all(part).map_err(|e| format!("writing at {}: {e}", human(done)))?;
        digest.update(part);
        done += size as u64;
        bar.draw(done, all)?;
    }
    device.sync_all().map_err(|e| format!("writing: {e}"))?;
    Ok((done, digest.finish()))
}

/// Reads back what was written, from the card itself.
fn verify(device: &mut File, size: u64, written: &Digest) -> Result<(), Failure> {
    disk::forget(device)?;
    device.seek(SeekFrom::Start(0))?;
    let mut bar = Bar::of("verifying");
    let (mut buffer, mut digest, mut done) = (vec![0; CHUNK], Context::new(&SHA256), 0);
    while done < size {
        let wanted = CHUNK.min(usize::try_from(size - done)?);
        device.read_exact(&mut buffer[..wanted]).map_err(|e| format!("reading back at {}: {e}", human(done)))?;
        digest.update(&buffer[..wanted]);
        done += wanted as u64;
        bar.draw(done, Some(size))?;
    }
    if digest.finish().as_ref() == written.as_ref() {
        return Ok(());
    }
    Err("the card gives back something else than was written: it is broken, or not of the size it says".into())
}

/// Asks whether this is the right disk.
fn confirm(disk: &Disk) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err("nobody can be asked whether this is the right disk: add --yes".into());
    }
    eprint!("All that is on {disk} is lost. Go on? [yes/no] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err("nothing was written".into()) }
}

/// Opens the disk so that nobody else uses it meanwhile, and says which one it is. What is written goes to what was opened,
/// whatever its name means by then.
fn take_hold(path: &Path) -> Result<(File, Disk), Failure> {
    let found = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let disk = Disk::of(path, &found)?;
    // a disk that somebody uses is not opened so
    let exclusive = if found.file_type().is_block_device() { nix::libc::O_EXCL } else { 0 };
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(exclusive | nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| format!("opening {}: {e} (is it in use, or are you not root?)", path.display()))?;
    if Disk::of(path, &device.metadata()?)? != disk {
        return Err(format!("{} became another disk while it was opened: nothing was written", path.display()).into());
    }
    Ok((device, disk))
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let wanted = args.wanted()?;
    drop(open(&args.image)?);
    let (mut device, disk) = take_hold(&args.device)?;
    if !args.yes {
        confirm(&disk)?;
        // a person takes time: another card may be in the reader by now
        if Disk::of(&args.device, &device.metadata()?)? != disk {
            return Err(format!("{} is another card now: nothing was written", args.device.display()).into());
        }
    }
    let (size, digest) = write(&args.image, &mut device, disk.size)?;
    verify(&mut device, size, &digest)?;
    if let Some(text) = wanted {
        fat::store(&mut device, settings::FILE, &text)
            .map_err(|e| format!("writing {} to the card: {e}", settings::FILE))?;
        device.sync_all()?;
    }
    disk::reread(&device);
    eprintln!("{} written to {} and read back", human(size), args.device.display());
    Ok(())
}
