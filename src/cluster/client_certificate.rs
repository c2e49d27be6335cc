//! The certificate this node shows to the API server, by the cluster's signer: kept with its key in one file, as the
//! kubelet keeps it, so that the two always belong together.

use std::fs;
use std::path::{Path, PathBuf};

use kube::Client;
use rcgen::KeyPair;

use super::csr::{self, CsrError, Wanted};
use crate::pki::{self, Standing, write_secret};

/// The certificate on disk.
pub(super) struct ClientCertificate {
    dir: PathBuf,
}

impl ClientCertificate {
    /// In `dir` (`<root>/pki`).
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Chain and key, in PEM.
    pub fn file(&self) -> PathBuf {
        self.dir.join("kubelet-client-current.pem")
    }

    /// How it stands; `None`: there is none, or none that can be used.
    pub fn standing(&self) -> Option<Standing> {
        pki::standing(&self.file()).ok()
    }

    /// Chain and key, as they are on disk.
    pub fn read(&self) -> Result<String, String> {
        fs::read_to_string(self.file()).map_err(|e| format!("reading {}: {e}", self.file().display()))
    }

    /// Keeps a chain with its key.
    pub fn keep(&self, chain: &str, key: &str) -> Result<(), String> {
        let text = format!("{}\n{key}", chain.trim_end());
        write_secret(&self.file(), &text).map_err(|e| format!("writing {}: {e}", self.file().display()))
    }

    /// Asks the cluster's signer for a new one by `client`, and keeps it. The key of a request that is still undecided is
    /// kept beside, so that an agent that was restarted waits for the same request.
    pub async fn obtain(&self, client: Client, node: &str) -> Result<(), CsrError> {
        let pending = self.dir.join("kubelet-client.key.tmp");
        let kept = fs::read_to_string(&pending).ok().and_then(|text| KeyPair::from_pem(&text).ok());
        let key = kept.map_or_else(|| new_key(&pending), Ok).map_err(CsrError::Other)?;
        let wanted = Wanted { signer: csr::CLIENT, node, ips: &[] };
        let answer = csr::request(client, &wanted, &key).await;
        let kept = match &answer {
            Ok(chain) => self.keep(chain, &key.serialize_pem()).map_err(CsrError::Other),
            Err(_) => Ok(()),
        };
        if matches!(answer, Ok(_) | Err(CsrError::Refused { .. } | CsrError::Late(_))) {
            // no longer of use; the next request is another one
            let _ = fs::remove_file(&pending);
        }
        answer.and(kept)
    }
}

fn new_key(file: &Path) -> Result<KeyPair, String> {
    let key = KeyPair::generate().map_err(|e| format!("making a key: {e}"))?;
    write_secret(file, &key.serialize_pem()).map_err(|e| format!("writing {}: {e}", file.display()))?;
    Ok(key)
}
