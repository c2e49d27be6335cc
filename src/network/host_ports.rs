//! Ports of this machine that lead to pods: they are rules of the node's table, made anew whenever one comes or goes.

use std::io;
use std::net::IpAddr;

use tokio::task::spawn_blocking;

use super::conntrack;
use super::table::Table;
use super::types::{HostPort, NetworkError, Protocol};
use super::{Network, link, locked};

fn failed(source: io::Error) -> NetworkError {
    let what = "setting the rules of host ports by nftables (a kernel with nft_nat, nft_ct and nft_fib is needed)";
    NetworkError::Io { what: what.to_owned(), source }
}

/// Puts the table into the kernel. What comes from 127.0.0.1 may leave only while its guard is there.
fn install(table: &Table) -> io::Result<()> {
    let allowed = table.leads_from_loopback();
    let set = || {
        if let Err(error) = link::loopback(&table.name, allowed) {
            tracing::warn!(bridge = table.name, %error, "ports of pods are not reached at 127.0.0.1");
        }
    };
    if !allowed {
        set();
    }
    table.install()?;
    if allowed {
        set();
    }
    Ok(())
}

impl Network {
    /// Makes the kernel's rules what the leases say. Before the node has ranges there is nothing to do. `closing`: until it
    /// succeeds, a port may lead to a pod that is no more.
    pub(super) async fn apply(&self, closing: bool) -> io::Result<()> {
        // one at a time, so that the newest comes last
        let mut stale = self.inner.stale.lock().await;
        let config = &self.inner.config;
        let table = Table {
            name: config.bridge.clone(),
            ranges: locked(&self.inner.ranges).clone(),
            inside: config.cluster_cidrs.clone(),
            ports: locked(&self.inner.leases).ports(),
        };
        if table.ranges.is_empty() {
            return Ok(());
        }
        *stale |= closing;
        spawn_blocking(move || install(&table)).await.map_err(io::Error::other)??;
        *stale = false;
        Ok(())
    }

    /// Lets the ports a sandbox has lead to it; it has none when that fails.
    pub(super) async fn open_ports(&self, sandbox: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        if ports.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.apply(false).await {
            locked(&self.inner.leases).close(sandbox);
            // one family may have them
            let _ = self.apply(false).await;
            return Err(failed(error));
        }
        self.forget_udp(ports).await;
        Ok(())
    }

    /// Takes the ports of a sandbox away. Repeatable.
    pub(super) async fn close_ports(&self, sandbox: &str) -> Result<(), NetworkError> {
        let ports = locked(&self.inner.leases).close(sandbox);
        if !ports.is_empty() || *self.inner.stale.lock().await {
            self.apply(true).await.map_err(failed)?;
            self.forget_udp(&ports).await;
        }
        Ok(())
    }

    /// Clients of a UDP port that go on sending are led where the rules say now, not to the pod that had it before.
    async fn forget_udp(&self, ports: &[HostPort]) {
        let ports: Vec<HostPort> = ports.iter().filter(|p| p.protocol == Protocol::Udp).copied().collect();
        if ports.is_empty() {
            return;
        }
        let forgotten = async {
            let own = link::addresses(&self.inner.handle).await.map_err(|e| e.to_string())?;
            let local = move |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
            let meant = move |ip, port| ports.iter().any(|p| p.port == port) && local(ip);
            let done = spawn_blocking(move || conntrack::forget_udp(meant)).await;
            done.map_err(io::Error::other).flatten().map_err(|e| e.to_string())
        };
        if let Err(error) = forgotten.await {
            tracing::warn!(
                error,
                "clients of a UDP hostPort that sent before may not reach the pod (a kernel with \
                nf_conntrack_netlink is needed)"
            );
        }
    }
}
