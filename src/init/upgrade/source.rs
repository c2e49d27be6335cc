//! Where an upgrade's image is from: a file, or a URL with the sha256 of what is there; and what else is said of it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::libc;
use ring::digest::{Context, SHA256};

use super::Unfit;
use crate::errors::{bare_of, causes};
use crate::files;
use crate::hex::hex;
use crate::init::{BOOT, Failure, image};

/// How long a server may be silent.
const SILENCE: Duration = Duration::from_mins(1);
/// How long all of an image may take: its largest at 50 kB/s.
const WHOLE: Duration = Duration::from_hours(6);
/// Largest image that is fetched, in bytes.
const MAX: u64 = 1 << 30;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// An image of the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    location: String,
    sha256: Option<String>,
    older: bool,
    signature: Option<Vec<u8>>,
    said: String,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location)
    }
}

impl FromStr for Source {
    type Err = String;

    /// `PATH`, `PATH#sha256:HEX` or `https://...#sha256:HEX`, and behind that `,older` and `,ed25519:BASE64`. What is fetched
    /// is believed for its digest only, so a URL has to have one. A signature is one of all between `#` and its own comma.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (location, rest) = match text.find("#sha256:") {
            Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default()),
            None => (text, ""),
        };
        let (said, signature) = match rest.split_once(",ed25519:") {
            Some((said, signature)) => {
                let read = STANDARD.decode(signature).ok().filter(|bytes| bytes.len() == 64);
                (said, Some(read.ok_or("ed25519: a signature has 64 bytes, in Base64")?))
            }
            None => (rest, None),
        };
        let (digest, older) = said.strip_suffix(",older").map_or((said, false), |digest| (digest, true));
        let sha256 = digest.strip_prefix("sha256:").map(str::to_lowercase);
        if sha256.as_ref().is_some_and(|d| d.len() != 64 || !d.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(format!("image {text:?}: a sha256 has 64 hexadecimal digits"));
        }
        let source = Self { location: location.to_owned(), sha256, older, signature, said: said.to_owned() };
        if source.is_url() && source.sha256.is_none() {
            return Err(format!(
                "image {text:?}: a URL is written URL#sha256:HEX, so that nobody can put another image there"
            ));
        }
        if location.is_empty() { Err("no image is named".to_owned()) } else { Ok(source) }
    }
}

impl Source {
    /// The sha256 that was asked for.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// True when it is fetched from a server.
    pub fn is_url(&self) -> bool {
        ["https://", "http://"].iter().any(|scheme| self.location.starts_with(scheme))
    }

    /// Whether it may be older than the system that runs.
    pub fn may_be_older(&self) -> bool {
        self.older
    }

    /// The signature that came with it, if any.
    pub fn signature(&self) -> Option<&[u8]> {
        self.signature.as_deref()
    }

    /// What a signature is one of: digest and conditions.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// The image, fetched to `to` if it is not a file yet. What is read of it is hashed. With `asked` only files that root
    /// put onto the card's first partition are opened.
    pub fn open(&self, to: &Path, asked: bool) -> Result<Hashed, Failure> {
        let path = if self.is_url() { to } else { Path::new(&self.location) };
        let failed = |e: String| format!("image {}: {e}", path.display());
        if self.is_url() {
            fetch(&self.location, to)?;
        } else if asked {
            let real = path.canonicalize().map_err(|e| failed(e.to_string()))?;
            if !real.starts_with(BOOT) {
                return Err(
                    Unfit(failed(format!("by the annotation only files below {BOOT} are taken, and URLs"))).into()
                );
            }
        }
        // one that is no file would not end, or wait for ever
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        let file = file.map_err(|e| failed(e.to_string()))?;
        if !file.metadata().map_err(|e| failed(e.to_string()))?.is_file() {
            return Err(Unfit(failed("it is no regular file".to_owned())).into());
        }
        Ok(Hashed { file, digest: Context::new(&SHA256) })
    }

    /// Whether this is the digest that was asked for. What it is instead is told nobody: it may be that of any file.
    pub fn check(&self, found: &str) -> Result<(), Unfit> {
        match &self.sha256 {
            Some(wanted) if wanted != found => {
                Err(Unfit(format!("image {self}: its sha256 is another one: it is another image, or damaged")))
            }
            _ => Ok(()),
        }
    }
}

/// A file, and the digest of what was read of it.
pub struct Hashed {
    file: File,
    digest: Context,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.file.read(buffer)?;
        self.digest.update(buffer.get(..size).unwrap_or_default());
        Ok(size)
    }
}

impl Hashed {
    /// The sha256 of all of it, what was not read yet as well.
    pub fn finish(mut self) -> io::Result<String> {
        let mut buffer = vec![0; CHUNK];
        while image::fill(&mut self, &mut buffer)? > 0 {}
        Ok(hex(self.digest.finish().as_ref()))
    }
}

/// The sha256 of all there is to read.
pub fn digest(from: &mut dyn Read) -> io::Result<String> {
    let (mut digest, mut buffer) = (Context::new(&SHA256), vec![0; CHUNK]);
    loop {
        match image::fill(from, &mut buffer)? {
            0 => return Ok(hex(digest.finish().as_ref())),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// Fetches a file.
fn fetch(url: &str, to: &Path) -> Result<(), Failure> {
    crate::crypto::install();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shown = bare_of(url);
        let failed = |e: reqwest::Error| format!("fetching {shown}: {}", causes(&e));
        let client = reqwest::Client::builder()
            .connect_timeout(SILENCE)
            .read_timeout(SILENCE)
            .timeout(WHOLE)
            .build()
            .map_err(failed)?;
        let answer = client.get(url).send().await.map_err(failed)?;
        let mut answer = answer.error_for_status().map_err(failed)?;
        let mut file = files::create(to, 0o600).map_err(|e| format!("creating {}: {e}", to.display()))?;
        let mut size = 0;
        while let Some(part) = answer.chunk().await.map_err(failed)? {
            size += part.len() as u64;
            if size > MAX {
                return Err(format!("fetching {shown}: an image has at most {MAX} bytes").into());
            }
            file.write_all(&part).map_err(|e| format!("writing {}: {e}", to.display()))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn a_url_has_a_digest() {
        let hex = "0123456789abcdef".repeat(4);
        let good: Source = format!("https://s/x.img.zst#sha256:{}", hex.to_uppercase()).parse().unwrap();
        assert_eq!((good.to_string().as_str(), good.sha256()), ("https://s/x.img.zst", Some(hex.as_str())));
        assert!("https://s/x.img".parse::<Source>().unwrap_err().contains("#sha256:HEX"));
        assert!("https://s/x.img#sha256:12".parse::<Source>().unwrap_err().contains("64"));
        assert_eq!("/mnt/x.img".parse::<Source>().unwrap().sha256(), None);
        assert!("".parse::<Source>().is_err());
    }

    #[test]
    fn conditions_and_a_signature_may_follow() {
        let hex = "0123456789abcdef".repeat(4);
        let signature = STANDARD.encode([7; 64]);
        let all: Source = format!("/boot/x#sha256:{hex},older,ed25519:{signature}").parse().unwrap();
        assert_eq!((all.to_string().as_str(), all.sha256(), all.may_be_older()), ("/boot/x", Some(hex.as_str()), true));
        assert_eq!((all.said(), all.signature()), (format!("sha256:{hex},older").as_str(), Some([7; 64].as_slice())));
        for wrong in [",newer", ",ed25519:AAAA", ",ed25519:?", &format!(",ed25519:{signature},older")] {
            assert!(format!("/boot/x#sha256:{hex}{wrong}").parse::<Source>().is_err(), "{wrong}");
        }
    }

    fn opened(location: &str, asked: bool) -> Result<String, String> {
        let source: Source = location.parse().unwrap();
        let found = source.open(Path::new("/none"), asked).map_err(|e| e.to_string())?.finish().unwrap();
        source.check(&found).map(|()| found.clone()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_of_another_digest_is_refused_and_nobody_learns_which() {
        let folder = Folder::new();
        let file = folder.path().join("x");
        std::fs::write(&file, "abc").unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let named = |digest: &str| opened(&format!("{}#sha256:{digest}", file.display()), false);
        assert_eq!(named(digest).unwrap(), digest);
        let error = named(&"0".repeat(64)).unwrap_err();
        assert!(error.contains("another image") && !error.contains(digest), "{error}");
    }

    #[test]
    fn the_annotation_opens_no_other_files() {
        let folder = Folder::new();
        let file = folder.path().join("x");
        std::fs::write(&file, "abc").unwrap();
        assert!(opened(&file.display().to_string(), true).unwrap_err().contains("only files below /boot"));
        for endless in ["/dev/zero", "/dev"] {
            assert!(opened(endless, false).unwrap_err().contains("no regular file"), "{endless}");
        }
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(opened(&fifo.display().to_string(), false).unwrap_err().contains("no regular file"));
    }
}
