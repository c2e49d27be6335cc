//! The certificate and client CA of the kubelet API over time: made, asked for, renewed, without a restart.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tracing::{info, warn};

use super::tls::{Tls, TlsSettings};
use crate::pki::{self, LOOK_AGAIN, Standing};
use crate::{cluster, metrics};

/// Pause after a request for a certificate that came to nothing.
const PAUSE: Duration = Duration::from_mins(1);

/// How long a client CA is believed before the cluster is asked again.
const BELIEVED: Duration = Duration::from_mins(1);

/// What the kubelet API shows and trusts.
pub struct Identity {
    tls: Arc<Tls>,
    pki_dir: PathBuf,
    cluster_ca: Option<PathBuf>,
    node: String,
    ips: watch::Receiver<Vec<IpAddr>>,
    /// A client CA of the settings goes before the cluster's.
    ask_for_ca: bool,
    client: Option<Client>,
}

impl Identity {
    /// Begins with what is there: files, or a self-signed certificate. `ips` are the Node's addresses over time.
    pub fn new(
        settings: TlsSettings,
        ips: watch::Receiver<Vec<IpAddr>>,
        client: Option<Client>,
    ) -> Result<(Self, Arc<Tls>), String> {
        let (pki_dir, cluster_ca) = (settings.pki_dir.clone(), settings.cluster_ca.clone());
        let node = settings.names.first().cloned().unwrap_or_default();
        let ask_for_ca = settings.client_ca_file.is_none();
        let tls = Arc::new(Tls::new(settings)?);
        Ok((Self { tls: tls.clone(), pki_dir, cluster_ca, node, ips, ask_for_ca, client }, tls))
    }

    /// Follows the cluster's client CA when none is set, and keeps a certificate of the cluster's signer when `bootstrap`
    /// asks for it; else looks at its files at each of `changes` at once. Runs as long as the agent.
    pub async fn keep(self, bootstrap: bool, changes: Option<watch::Receiver<()>>) {
        let Some(client) = self.client.clone() else { return };
        let certificate = async {
            if bootstrap {
                self.keep_certificate(client.clone()).await;
            } else if let Some(mut changes) = changes {
                while changes.changed().await.is_ok() {
                    self.tls.look();
                }
            }
        };
        tokio::join!(certificate, self.follow_addresses(), self.follow_client_ca(client.clone()));
    }

    /// A certificate of our own is for the addresses the Node has now.
    async fn follow_addresses(&self) {
        let mut ips = self.ips.clone();
        while ips.changed().await.is_ok() {
            let now = ips.borrow_and_update().clone();
            self.tls.change(|settings| settings.ips = now);
        }
    }

    /// Asks which CA the cluster's clients have, and again whenever that is doubted.
    async fn follow_client_ca(&self, client: Client) {
        if !self.ask_for_ca {
            return;
        }
        let (mut said, mut named) = (None, false);
        loop {
            let found = cluster::client_ca(client.clone()).await;
            let found = found.map_err(|e| e.to_string()).and_then(|ca| ca.ok_or_else(|| "it names none".to_owned()));
            let now = match found {
                Ok(ca) => {
                    named = true;
                    self.keep_client_ca(&ca)
                }
                // it may not have its own rules yet, as it has just been started
                Err(error) if named => Err(format!("the client CA that the cluster has named stays: {error}")),
                Err(error) => self.do_without(&error),
            };
            if said.as_ref() != Some(&now) {
                match &now {
                    Ok(text) => info!("{text}"),
                    Err(text) => warn!("{text}"),
                }
                said = Some(now);
            }
            tokio::time::sleep(BELIEVED).await;
            self.tls.doubted().await;
        }
    }

    /// What is said of it.
    fn keep_client_ca(&self, ca: &str) -> Result<String, String> {
        let file = self.pki_dir.join("client-ca.crt");
        if std::fs::read_to_string(&file).ok().as_deref() != Some(ca) {
            pki::write_secret(&file, ca)
                .map_err(|e| format!("the cluster's client CA was not kept in {}: {e}", file.display()))?;
        }
        let text = format!("client certificates of {} are accepted: the cluster names this CA", file.display());
        self.tls.change(|settings| settings.client_ca_file = Some(file));
        Ok(text)
    }

    /// The cluster does not tell which CA its clients have. In one that was joined as kubeadm does it is the cluster's own.
    fn do_without(&self, error: &str) -> Result<String, String> {
        let Some(file) = self.cluster_ca.clone() else {
            self.tls.change(|settings| settings.client_ca_file = None);
            return Err(format!(
                "clients can log in by token only: set clientCAFile, or bind the role \
                extension-apiserver-authentication-reader in kube-system to system:nodes ({error})"
            ));
        };
        let text = format!(
            "client certificates of {} are accepted: the cluster was joined as kubeadm does, which has one CA for all; the \
            cluster itself did not tell ({error})",
            file.display()
        );
        self.tls.change(|settings| settings.client_ca_file = Some(file));
        Ok(text)
    }

    async fn keep_certificate(&self, client: Client) {
        let files = (self.pki_dir.join("kubelet-server.crt"), self.pki_dir.join("kubelet-server.key"));
        let (mut shown, mut ips, mut asked) = (false, self.ips.clone(), None);
        loop {
            let wanted = ips.borrow_and_update().clone();
            if let Ok(Standing::Valid { renew_in }) = pki::standing(&files.0) {
                if !shown {
                    self.tls.change(|settings| settings.certificate = Some(files.clone()));
                    shown = true;
                }
                // a signer that leaves one out is not asked again for the same ones
                let lacking = asked.as_ref() != Some(&wanted) && lacks(&files.0, &wanted);
                if !renew_in.is_zero() && !lacking {
                    tokio::select! {
                        () = tokio::time::sleep(renew_in.min(LOOK_AGAIN)) => {}
                        Ok(()) = ips.changed() => {}
                    }
                    continue;
                }
            } else {
                self.tls.change(|settings| settings.certificate = None);
                shown = false;
            }
            if let Err(error) = fetch(client.clone(), &self.node, &wanted, &files).await {
                metrics::SERVING_NOT_RENEWED.add([]);
                warn!(error, "no serving certificate of the cluster's signer yet");
                tokio::time::sleep(PAUSE).await;
            } else {
                shown = false;
                asked = Some(wanted);
                info!("serving certificate of the cluster's signer received");
            }
        }
    }
}

/// Whether a certificate is not for one of these addresses.
fn lacks(file: &Path, wanted: &[IpAddr]) -> bool {
    pki::addresses(file).is_ok_and(|named| wanted.iter().any(|ip| !named.contains(ip)))
}

async fn fetch(client: Client, node: &str, ips: &[IpAddr], files: &(PathBuf, PathBuf)) -> Result<(), String> {
    let certificate = cluster::request_serving_certificate(client, node, ips).await?;
    let write = |file: &Path, text: &str| pki::write_secret(file, text).map_err(|e| format!("{}: {e}", file.display()));
    // the key first: a certificate without its key would be taken for whole
    write(&files.1, &certificate.key)?;
    write(&files.0, &certificate.chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_of_all_addresses_or_lacks_some() {
        let file = std::env::temp_dir().join(format!("pikelet-addresses-{}.crt", std::process::id()));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["pi".to_owned()]).unwrap();
        let of = ["10.0.0.1", "fd00::1"].map(|text| rcgen::SanType::IpAddress(ip(text)));
        params.subject_alt_names.extend(of);
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        pki::write_secret(&file, &made.pem()).unwrap();
        assert!(!lacks(&file, &[ip("fd00::1"), ip("10.0.0.1")]));
        assert!(!lacks(&file, &[]));
        assert!(lacks(&file, &[ip("10.0.0.1"), ip("10.0.0.2")]));
        std::fs::remove_file(file).unwrap();
    }

    #[tokio::test]
    async fn the_client_ca_is_never_guessed_in_silence() {
        let dir = std::env::temp_dir().join(format!("pikelet-client-ca-{}", std::process::id()));
        let settings = |cluster_ca| TlsSettings {
            certificate: None,
            pki_dir: dir.clone(),
            client_ca_file: None,
            cluster_ca,
            names: vec!["pi".into()],
            ips: Vec::new(),
        };
        let of = |cluster_ca| Identity::new(settings(cluster_ca), watch::channel(Vec::new()).1, None).unwrap().0;
        let error = of(None).do_without("forbidden").unwrap_err();
        assert!(error.contains("by token only") && error.contains("(forbidden)"), "{error}");
        let said = of(Some(dir.join("ca.crt"))).do_without("forbidden").unwrap();
        assert!(said.contains("ca.crt"), "{said}");
        assert!(said.contains("as kubeadm does") && said.contains("(forbidden)"), "{said}");
        // what the cluster names goes before
        let named = of(Some(dir.join("ca.crt")));
        let said = named.keep_client_ca("a CA").unwrap();
        assert!(said.contains("client-ca.crt") && said.contains("the cluster names this CA"), "{said}");
        assert_eq!(std::fs::read_to_string(dir.join("client-ca.crt")).unwrap(), "a CA");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
