//! From what a name leads to, to manifest and configuration of the image for this machine: through indexes, nested ones
//! too, whose entries say their platform or leave that to the configuration.

use futures::future::BoxFuture;

use super::manifest::{Descriptor, ImageConfig, Manifest};
use super::platform::{Machine, Platform};

/// Documents that are read on the way; an index of more leads in circles, or nowhere.
const MOST: usize = 50;

/// Who has the documents.
pub trait Documents: Sync {
    /// A manifest or an index, checked.
    fn manifest<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>>;
    /// An image configuration, checked.
    fn config<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>>;
}

/// For what an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// To run its programs.
    Run,
    /// To read its files, which are the same on any machine.
    Read,
}

/// Where the way begins.
pub enum Start {
    /// At a document.
    Text(Vec<u8>),
    /// At the entries of an index.
    Entries(Vec<Descriptor>),
}

/// An image for this machine.
#[derive(Debug)]
pub struct Resolved {
    /// Of the entries it began with, the one that led here.
    pub first: Option<String>,
    /// The manifest as it was sent.
    pub text: Vec<u8>,
    /// Read.
    pub manifest: Manifest,
    /// Digest of the configuration.
    pub config_digest: String,
    /// The configuration as it was sent.
    pub config_text: Vec<u8>,
    /// Read.
    pub image: ImageConfig,
}

/// A document still to be looked at.
struct Next {
    at: Result<Vec<u8>, String>,
    trust: Trust,
    first: Option<String>,
}

/// Who says for which machine an image is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Nobody chose it: its configuration may tell that it is of no use.
    Named,
    /// The index says it, whatever the configuration says.
    Said,
    /// Its configuration alone.
    Unsaid,
}

/// The entries that may be for this machine: those that say so, best first, then those that do not say.
fn candidates(entries: &[Descriptor], machine: &Machine) -> Vec<(String, Trust)> {
    let says = |entry: &Descriptor| entry.platform.clone().filter(|p| !p.architecture.is_empty());
    let mut said: Vec<(u8, &Descriptor)> =
        entries.iter().filter_map(|entry| Some((machine.rank(&says(entry)?)?, entry))).collect();
    // of equals the first
    said.sort_by_key(|(rank, _)| *rank);
    let said = said.into_iter().map(|(_, entry)| (entry.digest.clone(), Trust::Said));
    let unsaid = entries.iter().filter(|e| says(e).is_none() && e.artifact_type.is_none());
    said.chain(unsaid.map(|entry| (entry.digest.clone(), Trust::Unsaid))).collect()
}

/// Finds the image for a machine.
pub async fn resolve(
    start: Start,
    machine: &Machine,
    wanted: Use,
    documents: &impl Documents,
) -> Result<Resolved, String> {
    let mut others: Vec<Platform> = Vec::new();
    let mut next: Vec<Next> = Vec::new();
    let index = |entries: &[Descriptor], first: Option<&String>, next: &mut Vec<Next>, others: &mut Vec<Platform>| {
        let found = candidates(entries, machine);
        others.extend(entries.iter().filter_map(|e| e.platform.clone()).filter(|p| machine.rank(p).is_none()));
        next.extend(found.into_iter().rev().map(|(digest, trust)| Next {
            first: first.cloned().or_else(|| Some(digest.clone())),
            at: Err(digest),
            trust,
        }));
    };
    match start {
        Start::Text(text) => next.push(Next { at: Ok(text), trust: Trust::Named, first: None }),
        Start::Entries(entries) => index(&entries, None, &mut next, &mut others),
    }
    let mut read = 0;
    while let Some(Next { at, trust, first }) = next.pop() {
        read += 1;
        if read > MOST {
            return Err(format!("the index leads to more than {MOST} documents: refused"));
        }
        let text = match at {
            Ok(text) => text,
            Err(digest) => documents.manifest(&digest).await?,
        };
        let manifest = Manifest::parse(&text)?;
        if let Some(entries) = &manifest.manifests {
            index(entries, first.as_ref(), &mut next, &mut others);
            continue;
        }
        let image = configuration(&manifest, documents).await;
        let (config_digest, config_text, image) = match image {
            Ok(found) => found,
            // an attestation or the like beside the images
            Err(_) if trust == Trust::Unsaid && manifest.artifact_type.is_some() => continue,
            Err(error) => return Err(error),
        };
        let platform = &image.platform;
        match trust {
            Trust::Named if wanted == Use::Run => machine.refusal(platform).map_or(Ok(()), Err)?,
            Trust::Unsaid if !machine.runs(platform) => {
                others.push(platform.clone());
                continue;
            }
            _ => {}
        }
        return Ok(Resolved { first, text, manifest, config_digest, config_text, image });
    }
    let mut names: Vec<String> =
        others.iter().map(Platform::to_string).filter(|n| !n.starts_with("unknown/")).collect();
    names.dedup();
    let names = if names.is_empty() { "no images".to_owned() } else { names.join(", ") };
    Err(format!("no match for this machine ({machine}) in the index; it has: {names}"))
}

/// Digest, text and content of a manifest's image configuration.
async fn configuration(
    manifest: &Manifest,
    documents: &impl Documents,
) -> Result<(String, Vec<u8>, ImageConfig), String> {
    let digest = manifest.config.as_ref().map(|config| config.digest.clone()).ok_or_else(|| manifest.kind())?;
    let text = documents.config(&digest).await?;
    match serde_json::from_slice(&text) {
        Ok(image) => Ok((digest, text, image)),
        Err(error) if is_image(manifest) => Err(format!("image configuration: {error}")),
        Err(_) => Err(manifest.kind()),
    }
}

/// True if a manifest says that its configuration is one of an image.
fn is_image(manifest: &Manifest) -> bool {
    let of_image = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
    let kind = manifest.config.as_ref().map_or("", |config| config.media_type.as_str());
    manifest.artifact_type.is_none() && (kind.is_empty() || of_image.contains(&kind))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use futures::FutureExt;
    use serde_json::{Value, json};

    use super::*;

    /// Documents of an archive in memory.
    #[derive(Default)]
    struct Kept(HashMap<String, Value>);

    impl Documents for Kept {
        fn manifest<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
            let text = self.0.get(digest).map(|d| d.to_string().into_bytes()).ok_or_else(|| format!("no {digest}"));
            std::future::ready(text).boxed()
        }
        fn config<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
            self.manifest(digest)
        }
    }

    impl Kept {
        /// An image whose configuration says this platform; its entry in an index.
        fn image(&mut self, name: &str, platform: &str) -> Value {
            let config = format!("config-{name}");
            let mut said = of(platform);
            said["rootfs"] = json!({"diff_ids": null});
            self.0.insert(config.clone(), said);
            self.0.insert(name.to_owned(), json!({"config": {"digest": config}, "layers": null}));
            json!({"digest": name})
        }

        fn index(&mut self, name: &str, entries: &[Value]) -> Value {
            self.0.insert(name.to_owned(), json!({"schemaVersion": 2, "manifests": entries}));
            json!({"digest": name})
        }

        fn from(&self, name: &str, machine: &Machine, wanted: Use) -> Result<String, String> {
            let text = self.0[name].to_string().into_bytes();
            let found = resolve(Start::Text(text), machine, wanted, self).now_or_never().unwrap()?;
            Ok(found.config_digest.trim_start_matches("config-").to_owned())
        }
    }

    fn of(platform: &str) -> Value {
        let mut parts = platform.split('/');
        let mut part = || parts.next().unwrap_or_default();
        json!({"os": part(), "architecture": part(), "variant": part()})
    }

    fn said(mut entry: Value, platform: &str) -> Value {
        entry["platform"] = of(platform);
        entry
    }

    fn machine(arch: &str, level: u8) -> Machine {
        Machine { arch: arch.to_owned(), level, page: 4096, emulated: Vec::new() }
    }

    #[test]
    fn the_best_entry_for_the_processor_is_taken() {
        let mut kept = Kept::default();
        let choose = |kept: &mut Kept, platforms: &[&str], machine: &Machine| {
            let entries: Vec<Value> = platforms.iter().map(|p| said(kept.image(p, p), p)).collect();
            kept.index("index", &entries);
            kept.from("index", machine, Use::Run)
        };
        let debian = ["linux/arm/v5", "linux/arm/v7", "linux/arm64/v8", "linux/amd64", "linux/riscv64"];
        let (amd64, arm64) = (machine("x86_64", 2), machine("aarch64", 8));
        let mut of = |platforms: &[&str], machine: &Machine| choose(&mut kept, platforms, machine).unwrap();
        assert_eq!(of(&debian, &machine("arm", 7)), "linux/arm/v7");
        assert_eq!(of(&debian, &machine("arm", 8)), "linux/arm/v7");
        assert_eq!(of(&debian, &machine("arm", 6)), "linux/arm/v5");
        assert_eq!(of(&debian, &arm64), "linux/arm64/v8");
        assert_eq!(of(&["linux/arm", "linux/amd64"], &machine("arm", 7)), "linux/arm");
        assert_eq!(of(&["linux/amd64", "linux/arm/v6", "linux/arm/v7"], &arm64), "linux/arm/v7");
        assert_eq!(of(&["linux/arm/v7", "linux/arm64"], &arm64), "linux/arm64");
        let levels = ["linux/amd64/v4", "linux/amd64/v3", "linux/386", "linux/amd64", "linux/amd64/v2"];
        assert_eq!(of(&levels, &amd64), "linux/amd64/v2");
        assert_eq!(of(&levels[..4], &amd64), "linux/amd64");
        assert_eq!(of(&["linux/amd64", "linux/amd64/v3"], &machine("x86_64", 3)), "linux/amd64/v3");
        assert_eq!(of(&["windows/amd64", "linux/386"], &amd64), "linux/386");
        assert_eq!(of(&["linux/x86_64"], &amd64), "linux/x86_64");
        assert_eq!(of(&["Linux/amd64"], &amd64), "Linux/amd64");
        // without variant it is v7, which a Raspberry Pi Zero is not
        let error = choose(&mut kept, &["linux/arm", "linux/amd64/v1"], &machine("arm", 6)).unwrap_err();
        assert!(error.contains("linux/arm/v6") && error.contains("it has: linux/arm, linux/amd64/v1"), "{error}");
    }

    #[test]
    fn entries_that_do_not_say_are_judged_by_their_configuration() {
        let mut kept = Kept::default();
        let arm64 = machine("aarch64", 8);
        let (wrong, right) = (kept.image("wrong", "linux/amd64"), kept.image("right", "linux/arm64"));
        kept.0.insert("note".into(), json!({"config": {"digest": "x"}, "artifactType": "application/spdx+json"}));
        kept.0.insert("x".into(), json!({}));
        let note = json!({"digest": "note"});
        kept.index("unsaid", &[wrong.clone(), note.clone(), right.clone()]);
        assert_eq!(kept.from("unsaid", &arm64, Use::Run).unwrap(), "right");
        // an index may know better than an image that was made on another machine
        kept.index("said", &[right.clone(), said(wrong.clone(), "linux/arm64")]);
        assert_eq!(kept.from("said", &arm64, Use::Run).unwrap(), "wrong");
        let attestation = said(note.clone(), "unknown/unknown");
        kept.index("others", &[attestation.clone(), wrong.clone()]);
        let error = kept.from("others", &arm64, Use::Run).unwrap_err();
        assert!(error.ends_with("it has: linux/amd64"), "{error}");
        let inner = kept.index("inner", &[attestation, said(right, "linux/arm64")]);
        kept.index("nested", &[said(wrong, "linux/amd64"), inner.clone()]);
        assert_eq!(kept.from("nested", &arm64, Use::Run).unwrap(), "right");
        kept.index("nested-said", &[said(inner, "linux/arm64")]);
        assert_eq!(kept.from("nested-said", &arm64, Use::Run).unwrap(), "right");
        let circle = json!({"digest": "circle"});
        kept.index("circle", &[circle.clone(), circle]);
        assert!(kept.from("circle", &arm64, Use::Run).unwrap_err().contains("more than 50"));
        kept.0
            .insert("empty".into(), json!({"manifests": null, "mediaType": "application/vnd.oci.image.index.v1+json"}));
        assert!(kept.from("empty", &arm64, Use::Run).unwrap_err().ends_with("no images"));
        assert!(kept.from("note", &arm64, Use::Run).unwrap_err().contains("artifact of type application/spdx+json"));
    }

    #[test]
    fn an_image_of_another_processor_is_refused_unless_it_is_only_read() {
        let mut kept = Kept::default();
        let (amd64, zero) = (machine("x86_64", 1), machine("arm", 6));
        for (name, platform) in
            [("pi", "linux/arm64"), ("v7", "linux/arm/v7"), ("arm", "linux/arm"), ("win", "windows/amd64"), ("any", "")]
        {
            kept.image(name, platform);
        }
        let error = kept.from("pi", &amd64, Use::Run).unwrap_err();
        assert!(error.contains("the image is for linux/arm64, and this machine is linux/amd64"), "{error}");
        assert_eq!(kept.from("pi", &amd64, Use::Read).unwrap(), "pi");
        let handled = Machine { emulated: vec!["arm64"], ..amd64.clone() };
        assert_eq!(kept.from("pi", &handled, Use::Run).unwrap(), "pi");
        assert!(kept.from("win", &handled, Use::Run).unwrap_err().contains("windows/amd64"));
        assert!(kept.from("v7", &zero, Use::Run).unwrap_err().contains("this machine is linux/arm/v6"));
        // of images made before variants were written nobody knows
        assert_eq!(kept.from("arm", &zero, Use::Run).unwrap(), "arm");
        assert_eq!(kept.from("any", &zero, Use::Run).unwrap(), "any");
    }
}
