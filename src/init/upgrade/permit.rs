//! Whether the Node's annotation may change this board's system: by a key that the card's settings name, by the annotation
//! alone if they say so, else not.
//!
//! The annotation itself is no right: whoever may patch `nodes/status` can write it, which network plugins may on every node
//! of a cluster, and a system is more than root until the next boot.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::Source;
use crate::init::BOOT;
use crate::init::settings::{self, Variant};

/// What stands before the 32 bytes of an Ed25519 key in DER (RFC 8410), as `openssl pkey -pubout` writes it.
const DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Who may ask for an upgrade by the annotation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Permit {
    /// Nobody: the settings say nothing of it.
    #[default]
    Nobody,
    /// Whoever has the key that belongs to this one.
    Key([u8; 32]),
    /// Whoever may write the annotation.
    Annotation,
}

impl Permit {
    /// What the card's settings say, `upgradeKey` and `allowUpgrades`.
    pub fn of(key: Option<&str>, allow: Option<&str>) -> Result<Self, String> {
        match (key, allow) {
            (Some(_), Some(_)) => Err("upgradeKey and allowUpgrades: one of them is to be set, not both".to_owned()),
            (Some(text), None) => public_key(text).map(Self::Key).ok_or_else(|| {
                "upgradeKey: it is an Ed25519 key in Base64: the line between those with dashes of `openssl pkey -pubout`"
                    .to_owned()
            }),
            (None, Some("annotation")) => Ok(Self::Annotation),
            (None, Some(other)) => Err(format!("allowUpgrades {other:?}: it is annotation, or left out")),
            (None, None) => Ok(Self::Nobody),
        }
    }

    /// What the settings on the card say now. With mistakes in them nobody may.
    pub fn of_card() -> Self {
        settings::read(Path::new(BOOT), "", Variant::Appliance).permit
    }

    /// Whether the annotation may ask for this image; the error says what is missing.
    pub fn allows(self, source: &Source) -> Result<(), String> {
        let Self::Key(key) = self else {
            return if self == Self::Annotation {
                Ok(())
            } else {
                Err("the card's pikelet.yaml allows no upgrades by the annotation: set upgradeKey there, and sign, or \
                     allowUpgrades: annotation"
                    .to_owned())
            };
        };
        let signature = source.signature().ok_or(
            "it is not signed: pikelet.yaml has an upgradeKey, so the annotation is written \
             IMAGE#sha256:HEX,ed25519:SIGNATURE",
        )?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(source.said().as_bytes(), signature)
            .map_err(|_| "its signature is not by the upgradeKey of pikelet.yaml, or for another digest".to_owned())
    }
}

fn public_key(text: &str) -> Option<[u8; 32]> {
    let bytes = STANDARD.decode(text.trim()).ok()?;
    bytes.strip_prefix(&DER).unwrap_or(&bytes).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // made by openssl, as docs/operate/upgrade-and-rollback.md says
    const KEY: &str = "MCowBQYDK2VwAyEAM63aTdsPIiHbeUrhxPZKNqmeVsa4YCY9orenne9aymY=";
    const SIGNED: &str = "65jkzfY3fqVMwAwQo2KgRQcOV1KUiw6a0quuof6aRcHLAyfuEGoNeAFE8X7iAdeKgEvQPi+rE9X5K5rk6aVnBQ==";
    const SIGNED_OLDER: &str =
        "+1sfbXHRc9NncjaGyBpgOLXRK0TCtZbq5W+AE+JUNLPYPOSTLIe8m6Fds5R+mzZxCMdLPHv7i/tvEfctCJNXAQ==";

    fn source(said: &str) -> Source {
        format!("https://s/x.img#{said}").parse().unwrap()
    }

    #[test]
    fn a_key_lets_in_what_it_signed_and_nothing_else() {
        let permit = Permit::of(Some(KEY), None).unwrap();
        assert_eq!(Permit::of(Some(&STANDARD.encode(public_key(KEY).unwrap())), None).unwrap(), permit);
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let refused = |said: &str| permit.allows(&source(said)).unwrap_err();
        assert_eq!(permit.allows(&source(&format!("{digest},ed25519:{SIGNED}"))), Ok(()));
        assert_eq!(permit.allows(&source(&format!("{digest},older,ed25519:{SIGNED_OLDER}"))), Ok(()));
        assert!(refused(&digest).contains("not signed"));
        // what was signed does not allow more than it says
        assert!(refused(&format!("{digest},older,ed25519:{SIGNED}")).contains("not by the upgradeKey"));
        assert!(refused(&format!("{},ed25519:{SIGNED}", digest.replace('f', "e"))).contains("not by the upgradeKey"));
    }

    #[test]
    fn without_a_setting_the_annotation_is_no_right() {
        let any = source(&format!("sha256:{}", "0".repeat(64)));
        assert!(Permit::default().allows(&any).unwrap_err().contains("allowUpgrades: annotation"));
        assert_eq!(Permit::of(None, Some("annotation")).unwrap().allows(&any), Ok(()));
        for (key, allow) in
            [(Some(KEY), Some("annotation")), (Some("AAAA"), None), (Some("?"), None), (None, Some("all"))]
        {
            assert!(Permit::of(key, allow).is_err());
        }
    }
}
