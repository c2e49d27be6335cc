//! Where an upgrade's image is from: a file, or a URL with the sha256 of what is there.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ring::digest::{Context, SHA256};

use crate::errors::causes;
use crate::hex::hex;
use crate::init::{Failure, image};

/// How long a server may be silent.
const SILENCE: Duration = Duration::from_mins(1);
/// Largest image that is fetched, in bytes.
const MAX: u64 = 1 << 30;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// An image of the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    location: String,
    sha256: Option<String>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location)
    }
}

impl FromStr for Source {
    type Err = String;

    /// `PATH`, `PATH#sha256:HEX` or `https://...#sha256:HEX`. What is fetched is believed for its digest only, so a URL has
    /// to have one.
    fn from_str(text: &str) -> Result<Self, String> {
        let (location, digest) = text.trim().split_once("#sha256:").map_or((text.trim(), None), |(l, d)| (l, Some(d)));
        let sha256 = digest.map(str::to_lowercase);
        if sha256.as_ref().is_some_and(|d| d.len() != 64 || !d.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(format!("image {text:?}: a sha256 has 64 hexadecimal digits"));
        }
        let source = Self { location: location.to_owned(), sha256 };
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

    /// The image as a file, fetched to `to` if it is not one yet, and its sha256, which was compared.
    pub fn get(&self, to: &Path) -> Result<(PathBuf, String), Failure> {
        let (file, found) = if self.is_url() {
            (to.to_owned(), fetch(&self.location, to)?)
        } else {
            let path = PathBuf::from(&self.location);
            let found = File::open(&path).and_then(|mut file| digest(&mut file));
            let found = found.map_err(|e| format!("image {}: {e}", path.display()))?;
            (path, found)
        };
        match &self.sha256 {
            Some(wanted) if *wanted != found => {
                Err(format!("image {self}: its sha256 is {found}, not {wanted}: it is another image, or damaged")
                    .into())
            }
            _ => Ok((file, found)),
        }
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

/// Fetches a file; its sha256.
fn fetch(url: &str, to: &Path) -> Result<String, Failure> {
    crate::crypto::install();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let failed = |e: reqwest::Error| format!("fetching {url}: {}", causes(&e));
        let client =
            reqwest::Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE).build().map_err(failed)?;
        let answer = client.get(url).send().await.map_err(failed)?;
        let mut answer = answer.error_for_status().map_err(failed)?;
        let mut file = File::create(to).map_err(|e| format!("creating {}: {e}", to.display()))?;
        let (mut digest, mut size) = (Context::new(&SHA256), 0);
        while let Some(part) = answer.chunk().await.map_err(failed)? {
            size += part.len() as u64;
            if size > MAX {
                return Err(format!("fetching {url}: an image has at most {MAX} bytes").into());
            }
            digest.update(&part);
            file.write_all(&part).map_err(|e| format!("writing {}: {e}", to.display()))?;
        }
        Ok(hex(digest.finish().as_ref()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_file_of_another_digest_is_refused() {
        let dir = std::env::temp_dir().join(format!("pikelet-source-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("x");
        std::fs::write(&file, "abc").unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let named = |digest: &str| format!("{}#sha256:{digest}", file.display()).parse::<Source>().unwrap();
        assert_eq!(named(digest).get(Path::new("/none")).unwrap(), (file.clone(), digest.to_owned()));
        assert!(named(&"0".repeat(64)).get(Path::new("/none")).unwrap_err().to_string().contains("another image"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
