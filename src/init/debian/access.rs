//! Ways in and out that Debian's system has, and the appliance has not: SSH keys (`authorized_keys`, sshd(8)) and `WiFi`
//! (`wpa_supplicant.conf(5)`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::config::mistake;
use crate::hex::hex;

/// `wifi` of the card.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Wifi {
    /// The network's name.
    ssid: String,
    /// Without one the network is open.
    password: Option<String>,
    /// Two letters, which say what radio is allowed.
    country: Option<String>,
    /// The network does not say its name.
    #[serde(default)]
    hidden: bool,
}

impl Wifi {
    /// What the card says, if it is right.
    pub fn read(value: &Value) -> Result<Self, String> {
        let wifi: Self = serde_json::from_value(value.clone()).map_err(|e| {
            format!(
                "wifi: {}: it is written such as {{ssid: home, password: ..., country: DE}}",
                mistake::explain_value(&e)
            )
        })?;
        if wifi.ssid.is_empty() || wifi.ssid.len() > 32 {
            return Err(format!("wifi: ssid {:?}: it has 1 to 32 bytes", wifi.ssid));
        }
        if let Some(password) = &wifi.password {
            let printable = password.bytes().all(|b| (b' '..=b'~').contains(&b));
            if !printable || !(8..=63).contains(&password.len()) {
                return Err("wifi: the password has 8 to 63 characters of ASCII".to_owned());
            }
        }
        if let Some(country) =
            wifi.country.as_ref().filter(|c| c.len() != 2 || !c.bytes().all(|b| b.is_ascii_uppercase()))
        {
            return Err(format!("wifi: country {country:?}: it has two capital letters, such as DE"));
        }
        Ok(wifi)
    }

    /// The file of `wpa_supplicant`.
    pub fn supplicant(&self) -> String {
        let country = self.country.as_ref().map(|c| format!("country={c}\n")).unwrap_or_default();
        let hidden = if self.hidden { "\n\tscan_ssid=1" } else { "" };
        let key = self
            .password
            .as_ref()
            .map_or_else(|| "key_mgmt=NONE".to_owned(), |password| format!("key_mgmt=WPA-PSK\n\tpsk=\"{password}\""));
        // in hexadecimal no character means anything else
        format!("{country}network={{\n\tssid={}{hidden}\n\t{key}\n}}\n", hex(self.ssid.as_bytes()))
    }
}

/// Kinds of public keys.
const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// `sshKey` of the card: a public key, or a list of them.
pub fn keys(value: &Value) -> Result<Vec<String>, String> {
    let wrong = |what: &str| {
        format!(
            "sshKey: {what}: it is a public key, as in ~/.ssh/id_ed25519.pub (ssh-ed25519 AAAA... NAME), or a list of them"
        )
    };
    let texts = match value {
        Value::String(text) => vec![text.as_str()],
        Value::Array(list) => list
            .iter()
            .map(|v| v.as_str().ok_or_else(|| wrong(&format!("{v} is no text"))))
            .collect::<Result<_, _>>()?,
        other => return Err(wrong(&format!("{other} is no text"))),
    };
    let keys: Vec<&str> = texts.iter().flat_map(|t| t.lines()).map(str::trim).filter(|l| !l.is_empty()).collect();
    if keys.is_empty() {
        return Err(wrong("it is empty"));
    }
    if keys.iter().any(|key| key.contains("PRIVATE KEY")) {
        return Err(wrong("this is a private key, which nobody else should have"));
    }
    match keys.iter().find(|key| !is_key(key)) {
        Some(key) => Err(wrong(&format!("{:?} is no key", key.chars().take(40).collect::<String>()))),
        None => Ok(keys.into_iter().map(str::to_owned).collect()),
    }
}

/// True for a kind and, in base64, a key that begins with that kind's name (RFC 4253, 6.6).
fn is_key(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let (kind, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Ok(bytes) = STANDARD.decode(key) else { return false };
    let name = [&u32::try_from(kind.len()).unwrap_or(0).to_be_bytes(), kind.as_bytes()].concat();
    KINDS.contains(&kind) && bytes.starts_with(&name) && bytes.len() > name.len() + 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_looked_at() {
        let good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me";
        assert_eq!(keys(&json!(good)).unwrap(), [good]);
        assert_eq!(keys(&json!([good, good])).unwrap().len(), 2);
        assert_eq!(keys(&json!(format!("{good}\n{good}\n"))).unwrap().len(), 2);
        for (bad, said) in [
            (json!(7), "sshKey: 7 is no text"),
            (json!([true]), "sshKey: true is no text"),
            (json!({"a": 1}), "is no text"),
            (json!(""), "it is empty"),
            (json!("-----BEGIN OPENSSH PRIVATE KEY-----\nx"), "private key"),
            (json!(good.replace("AAAAC3", "AAAAC4")), "is no key"),
            (json!("id_ed25519.pub"), "is no key"),
        ] {
            let error = keys(&bad).unwrap_err();
            assert!(error.starts_with("sshKey: ") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn wifi_is_what_wpa_supplicant_reads() {
        let wifi =
            Wifi::read(&json!({"ssid": "ab\"", "password": "1234\"678", "country": "DE", "hidden": true})).unwrap();
        let text = "country=DE\nnetwork={\n\tssid=616222\n\tscan_ssid=1\n\tkey_mgmt=WPA-PSK\n\tpsk=\"1234\"678\"\n}\n";
        assert_eq!(wifi.supplicant(), text);
        assert!(Wifi::read(&json!({"ssid": "a"})).unwrap().supplicant().contains("key_mgmt=NONE"));
        for (bad, said) in [
            (json!({"ssid": ""}), "1 to 32"),
            (json!({"ssid": "a", "password": "short"}), "8 to 63"),
            (json!({"ssid": "a", "country": "de"}), "capital"),
            (json!({"sid": "a"}), "unknown field `sid`"),
            (json!("home"), "wifi: "),
        ] {
            assert!(Wifi::read(&bad).unwrap_err().contains(said));
        }
    }
}
