//! Settings written into a settings file, which keeps everything else it has: other keys, comments, their order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Settings, lines, parse};

/// What says which cluster is joined, and by what right.
const MEMBERSHIP: [&str; 7] =
    ["kubeconfig", "bootstrapKubeconfig", "server", "token", "tokenFile", "caCertHash", "unsafeSkipCAVerification"];

/// Lines of a key with its value, or between such.
struct Block<'a> {
    /// The setting's first name; `None`: no key, or one whose value is that of a file without it, or foreign.
    setting: Option<String>,
    lines: Vec<&'a str>,
}

/// Settings by their first names.
pub(super) fn fields(settings: &Settings) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(format!("settings that cannot be written: {error}")),
    }
}

/// What differs from settings where nothing is set, by their first names.
pub(super) fn written(settings: &Settings) -> Result<Map<String, Value>, String> {
    let unset = fields(&Settings::default())?;
    Ok(fields(settings)?.into_iter().filter(|(key, value)| unset.get(key) != Some(value)).collect())
}

fn blocks(text: &str) -> Result<Vec<Block<'_>>, String> {
    let mut all = Vec::new();
    for block in lines::blocks(text) {
        let setting = match block.key {
            Some(_) => written(&parse(&block.lines.join("\n"))?)?.into_iter().next().map(|(name, _)| name),
            None => None,
        };
        all.push(Block { setting, lines: block.lines });
    }
    Ok(all)
}

/// `text` with the settings `given` in the place of those it has of the same name, and without those `dropped`.
pub fn write(text: &str, given: &Settings, dropped: &[&str]) -> Result<String, String> {
    let mut given = written(given)?;
    let mut wanted = written(&parse(text)?)?;
    wanted.retain(|name, _| !dropped.contains(&name.as_str()));
    wanted.extend(given.clone());
    let line = |(name, value): (&String, &Value)| format!("{name}: {value}\n");
    let mut result = String::new();
    for block in blocks(text)? {
        match block.setting.as_ref().map(|name| (name, given.remove(name))) {
            Some((name, Some(value))) => result.push_str(&line((name, &value))),
            Some((name, None)) if dropped.contains(&name.as_str()) => {}
            _ => block.lines.iter().for_each(|l| result.extend([l, "\n"])),
        }
    }
    let rest: String = given.iter().map(line).collect();
    result.push_str(&rest);
    // what a person wrote in a way of their own is not guessed at
    if parse(&result).and_then(|settings| written(&settings)) == Ok(wanted) {
        return Ok(result);
    }
    Err(format!("it is not written one key a line: put these there by hand, in the place of older ones:\n{rest}"))
}

/// The settings a join with `given` takes the place of: all of another membership, or only the older token.
pub fn replaced(given: &Settings) -> Vec<&'static str> {
    if given.server.is_some() || given.bootstrap_kubeconfig.is_some() || given.kubeconfig.is_some() {
        return MEMBERSHIP.to_vec();
    }
    if given.token_file.is_some() { vec!["token", "tokenFile"] } else { vec![] }
}

/// The file that these settings have the token in.
pub fn token_file(text: &str) -> Result<Option<PathBuf>, String> {
    Ok(parse(text)?.token_file)
}

/// The settings of a membership, which go when the node leaves.
pub fn membership() -> &'static [&'static str] {
    &MEMBERSHIP
}

impl Settings {
    /// Every file and folder that is named.
    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [
            &mut self.kubeconfig,
            &mut self.bootstrap_kubeconfig,
            &mut self.token_file,
            &mut self.pod_manifest_path,
            &mut self.root_dir,
            &mut self.state_dir,
            &mut self.pod_logs_dir,
            &mut self.client_ca_file,
            &mut self.tls_cert_file,
            &mut self.tls_private_key_file,
            &mut self.private_registry,
            &mut self.image_import_dir,
            &mut self.image_credential_provider_config,
            &mut self.image_credential_provider_bin_dir,
        ]
        .into_iter()
        .flatten()
    }

    /// The same for a process that works in another folder.
    pub fn absolute(mut self) -> std::io::Result<Self> {
        for path in self.paths().filter(|p| !p.as_os_str().is_empty()) {
            *path = std::path::absolute(&*path)?;
        }
        Ok(self)
    }
}

/// Pairs such as `signal<amount` as a map.
// serde passes a reference to the field
#[allow(clippy::ref_option)]
pub(super) fn map<S: serde::Serializer>(pairs: &Option<Vec<String>>, to: S) -> Result<S::Ok, S::Error> {
    pairs
        .as_ref()
        .map(|list| list.iter().filter_map(|p| p.split_once(['<', '='])).collect::<BTreeMap<_, _>>())
        .serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\nnode-name: pi   # this board\n\nregister-with-taints:\n- a=b:NoSchedule\nserver: https://old:6443\n\
                        token: K10::node:x\nevictionHard:\n  memory.available: 50Mi\n# end\n";

    fn given() -> Settings {
        Settings {
            server: Some("https://new:6443".into()),
            token_file: Some("/etc/pikelet/token".into()),
            eviction_hard: Some(vec!["memory.available<60Mi".into()]),
            node_ip: vec!["10.0.0.1".parse().unwrap()],
            ..Settings::default()
        }
    }

    #[test]
    fn the_rest_of_the_file_stays() {
        let file = FILE.replace("register-with-taints", "registerWithTaints");
        let result = write(&file, &given(), &replaced(&given())).unwrap();
        assert_eq!(
            result,
            "# mine\nnode-name: pi   # this board\n\nregisterWithTaints:\n- a=b:NoSchedule\n\
             server: \"https://new:6443\"\nevictionHard: {\"memory.available\":\"60Mi\"}\n# end\n\
             nodeIP: [\"10.0.0.1\"]\ntokenFile: \"/etc/pikelet/token\"\n"
        );
        assert_eq!(write(&result, &given(), &replaced(&given())).unwrap(), result);
        let left = write(&result, &Settings::default(), membership()).unwrap();
        assert!(!left.contains("server") && !left.contains("token") && left.contains("node-name: pi   # this board"));
        assert_eq!(write("", &Settings::default(), membership()).unwrap(), "");
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let error = write("{server: a, port: 1}\n", &given(), &replaced(&given())).unwrap_err();
        assert!(error.contains("by hand") && error.contains("tokenFile: \"/etc/pikelet/token\""), "{error}");
        assert!(write("sever: a\n", &given(), &[]).unwrap_err().contains("did you mean \"server\""));
    }
}
