//! The certificate and client CA of the kubelet API over time: made, asked for, renewed, without a restart.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::tls::{self, TlsSettings};
use crate::cluster;
use crate::pki::{self, LOOK_AGAIN, Standing};

/// Pause after a request for a certificate that came to nothing.
const PAUSE: Duration = Duration::from_mins(1);

/// What the kubelet API shows and trusts.
pub struct Identity {
    settings: TlsSettings,
    client: Option<Client>,
    acceptor: watch::Sender<TlsAcceptor>,
}

impl Identity {
    /// Begins with what is there: files, or a self-signed certificate.
    pub fn new(settings: TlsSettings, client: Option<Client>) -> Result<(Self, watch::Receiver<TlsAcceptor>), String> {
        let (acceptor, receiver) = watch::channel(tls::acceptor(&settings)?);
        Ok((Self { settings, client, acceptor }, receiver))
    }

    /// Finds the cluster's client CA when none is set, and keeps a certificate of the cluster's signer when `bootstrap`
    /// asks for it; else looks at its files again at each of `changes`. Runs as long as the agent.
    pub async fn keep(mut self, bootstrap: bool, changes: Option<watch::Receiver<()>>) {
        let Some(client) = self.client.clone() else { return };
        if self.settings.client_ca_file.is_none() {
            self.find_client_ca(client.clone()).await;
        }
        if bootstrap {
            self.keep_certificate(client).await;
        } else if let Some(mut changes) = changes {
            while changes.changed().await.is_ok() {
                self.rebuild();
            }
        }
    }

    fn rebuild(&self) {
        match tls::acceptor(&self.settings) {
            Ok(acceptor) => drop(self.acceptor.send_replace(acceptor)),
            Err(error) => warn!(error, "kubelet API: the certificate stays as it was"),
        }
    }

    async fn find_client_ca(&mut self, client: Client) {
        let ca = match cluster::client_ca(client).await {
            Ok(Some(ca)) => ca,
            // who may not read which CA the clients have assumes, as kubeadm does, that there is one CA
            answer => {
                // who may not read which CA the clients have assumes, as kubeadm does, that there is one CA
                if let Some(Ok(ca)) = self.settings.cluster_ca.as_ref().map(std::fs::read_to_string) {
                    ca
                } else {
                    let error = answer.err().map_or_else(|| "there is none".to_owned(), |e| e.to_string());
                    warn!(
                        error,
                        "clients can log in by token only: set clientCAFile, or bind the role \
                        extension-apiserver-authentication-reader in kube-system to system:nodes"
                    );
                    return;
                }
            }
        };
        let file = self.settings.pki_dir.join("client-ca.crt");
        match pki::write_secret(&file, &ca) {
            Ok(()) => {
                self.settings.client_ca_file = Some(file);
                self.rebuild();
            }
            Err(error) => warn!(%error, file = %file.display(), "the cluster's client CA was not kept"),
        }
    }

    async fn keep_certificate(mut self, client: Client) {
        let dir = self.settings.pki_dir.clone();
        let files = (dir.join("kubelet-server.crt"), dir.join("kubelet-server.key"));
        let node = self.settings.names.first().cloned().unwrap_or_default();
        let mut received = false;
        loop {
            match pki::standing(&files.0) {
                Ok(Standing::Valid { renew_in }) => {
                    if self.settings.certificate.is_none() || received {
                        self.settings.certificate = Some(files.clone());
                        self.rebuild();
                        received = false;
                    }
                    tokio::time::sleep(renew_in.min(LOOK_AGAIN)).await;
                    if !renew_in.is_zero() {
                        continue;
                    }
                }
                _ => self.settings.certificate = None,
            }
            if let Err(error) = fetch(client.clone(), &node, &self.settings.ips, &files).await {
                warn!(error, "no serving certificate of the cluster's signer yet");
                tokio::time::sleep(PAUSE).await;
            } else {
                received = true;
                info!("serving certificate of the cluster's signer received");
            }
        }
    }
}

async fn fetch(client: Client, node: &str, ips: &[IpAddr], files: &(PathBuf, PathBuf)) -> Result<(), String> {
    let certificate = cluster::request_serving_certificate(client, node, ips).await?;
    let write = |file: &Path, text: &str| pki::write_secret(file, text).map_err(|e| format!("{}: {e}", file.display()));
    // the key first: a certificate without its key would be taken for whole
    write(&files.1, &certificate.key)?;
    write(&files.0, &certificate.chain)
}
