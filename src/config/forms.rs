//! The forms in which settings are written: lists and single values, maps and `key=value`, as kubelet and k3s take them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A list, or one value, or values with commas between them (k3s writes each of these).
pub(super) mod one_or_many {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Written {
        One(String),
        Many(Vec<String>),
    }

    pub fn serialize<S: Serializer>(list: &[impl Display], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(ToString::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<Vec<T>, D::Error> {
        let written = match Written::deserialize(from)? {
            Written::One(text) => text.split(',').map(str::to_owned).collect(),
            Written::Many(list) => list,
        };
        let parse = |text: &String| text.trim().parse().map_err(|e| D::Error::custom(format!("{text:?}: {e}")));
        written.iter().filter(|t| !t.trim().is_empty()).map(parse).collect()
    }
}

/// `{key: value}` as a map, or `key=value` as a list.
pub(super) fn labels<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Map(BTreeMap<String, String>),
        List(Vec<String>),
    }
    Ok(match Written::deserialize(from)? {
        Written::Map(map) => map.into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
        Written::List(list) => list,
    })
}

/// One text, or a list of such.
pub(super) fn texts<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Written::deserialize(from)? {
        Written::One(text) => vec![text],
        Written::Many(list) => list,
    })
}

/// `{name: [value]}`, or as flags write it.
pub(super) fn headers<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Map(BTreeMap<String, Vec<String>>),
        List(Vec<String>),
    }
    let each = |(name, values): (String, Vec<String>)| values.into_iter().map(move |v| format!("{name}:{v}"));
    Ok(match Written::deserialize(from)? {
        Written::Map(map) => map.into_iter().flat_map(each).collect(),
        Written::List(list) => list,
    })
}

fn pairs<'de, D: serde::Deserializer<'de>>(from: D, sign: char) -> Result<Option<Vec<String>>, D::Error> {
    let map = Option::<BTreeMap<String, String>>::deserialize(from)?;
    Ok(map.map(|map| map.into_iter().map(|(k, v)| format!("{k}{sign}{v}")).collect()))
}

/// `{signal: amount}` as flags write it.
pub(super) fn below<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    pairs(from, '<')
}

/// `{signal: value}` as flags write it.
pub(super) fn equal<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    pairs(from, '=')
}

/// `{key, value, effect}` objects as the kubelet's file has them, or `key=value:effect`.
pub(super) fn taints<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Object {
            key: String,
            #[serde(default)]
            value: String,
            effect: String,
        },
    }
    let list = Vec::<Written>::deserialize(from)?;
    let text = |taint| match taint {
        Written::Text(text) => text,
        Written::Object { key, value, effect } => format!("{key}={value}:{effect}"),
    };
    Ok(list.into_iter().map(text).collect())
}
