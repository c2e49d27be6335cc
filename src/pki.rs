//! Certificates and keys on disk: how long they hold, and files only root can read that are there whole or not at all.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;

use crate::files::{self, Durability};

/// The longest time slept at once before a certificate is looked at again: the clock may be set meanwhile.
pub const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// Whether a certificate can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can; a new one is due after this time, at 70 to 90 % of its life.
    Valid {
        /// Zero when it is due already.
        renew_in: Duration,
    },
    /// Only from this time on: rather the clock is wrong.
    NotYet(jiff::Timestamp),
    /// Since this time it cannot.
    Expired(jiff::Timestamp),
}

/// The certificates of a PEM file; none is an error.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(format!("{}: no certificate in it", file.display())),
        other => other.map_err(|e| format!("reading certificates of {}: {e}", file.display())),
    }
}

/// How the first certificate of a file stands now.
pub fn standing(file: &Path) -> Result<Standing, String> {
    let chain = certificates(file)?;
    let leaf = chain.first().map(AsRef::as_ref).unwrap_or_default();
    stands(leaf, jiff::Timestamp::now()).map_err(|e| format!("{}: {e}", file.display()))
}

/// How a certificate (DER) stands at `now`. Its moment of renewal is always the same one, and another for each certificate.
pub fn stands(leaf: &[u8], now: jiff::Timestamp) -> Result<Standing, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(leaf).map_err(|e| format!("the certificate is damaged: {e}"))?;
    let validity = parsed.validity();
    let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let at = |second| jiff::Timestamp::from_second(second).unwrap_or_default();
    let now = now.as_second();
    if now < begin {
        return Ok(Standing::NotYet(at(begin)));
    }
    if now >= end {
        return Ok(Standing::Expired(at(end)));
    }
    let chance = leaf.last().copied().map_or(0.5, |b| f64::from(b) / 255.0);
    let renew = begin + ((end - begin) as f64 * (0.7 + 0.2 * chance)) as i64;
    Ok(Standing::Valid { renew_in: Duration::from_secs(u64::try_from(renew - now).unwrap_or(0)) })
}

/// When a certificate (DER) ends, in seconds since the epoch; `None` when it cannot be read.
pub fn ends(leaf: &[u8]) -> Option<i64> {
    x509_parser::parse_x509_certificate(leaf).ok().map(|(_, parsed)| parsed.validity().not_after.timestamp())
}

/// The addresses the first certificate of a file is for.
pub fn addresses(file: &Path) -> Result<Vec<IpAddr>, String> {
    let chain = certificates(file)?;
    let leaf = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|e| failed(&e))?;
    let names = parsed.subject_alternative_name().map_err(|e| failed(&e))?;
    let names = names.iter().flat_map(|n| &n.value.general_names);
    Ok(names.filter_map(|name| if let GeneralName::IPAddress(ip) = name { address(ip) } else { None }).collect())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// What is in `der`, in PEM; `label` says what that is, such as `CERTIFICATE`.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Replaces a file readable by root only.
pub fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        files::dir_kept(dir, 0o700)?;
    }
    files::write(path, text.as_bytes(), 0o600, Durability::Synced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_at_seventy_to_ninety_percent() {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 11);
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let at = |text: &str| stands(made.der(), text.parse().unwrap()).unwrap();
        assert!(matches!(at("1970-01-02T00:00:00Z"), Standing::NotYet(_)));
        assert!(matches!(at("2030-01-11T00:00:00Z"), Standing::Expired(_)));
        let Standing::Valid { renew_in } = at("2030-01-01T00:00:00Z") else { panic!() };
        assert!((7.0..=9.0).contains(&(renew_in.as_secs_f64() / 86_400.0)), "{renew_in:?}");
        assert_eq!(at("2030-01-10T12:00:00Z"), Standing::Valid { renew_in: Duration::ZERO });
        let end: jiff::Timestamp = "2030-01-11T00:00:00Z".parse().unwrap();
        assert_eq!((ends(made.der()), ends(b"none")), (Some(end.as_second()), None));
    }
}
