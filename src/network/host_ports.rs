//! Ports of this machine that lead to pods: they are rules of the node's table, made anew whenever one comes or goes.

use std::io;
use std::net::IpAddr;

use tokio::task::spawn_blocking;

use super::conntrack;
use super::table::Table;
use super::types::{HostPort, NetworkError, Protocol};
use super::{Network, link, listeners, locked};

/// The rules of one family as this process put them into the kernel, for IPv4 and IPv6; `None`: not yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Installed {
    v4: Option<Table>,
    v6: Option<Table>,
}

impl Installed {
    fn of(&mut self, v4: bool) -> &mut Option<Table> {
        if v4 { &mut self.v4 } else { &mut self.v6 }
    }

    /// True when ports lead elsewhere than `wanted` says.
    fn misleads(&self, wanted: &Table) -> bool {
        let led = self.v4.iter().chain(&self.v6).flat_map(|t| &t.ports);
        led.into_iter().any(|port| !wanted.ports.contains(port))
    }
}

/// What failed, in which family (true: IPv4).
type Failures = Vec<(bool, io::Error)>;

fn failed(source: io::Error) -> NetworkError {
    let what = "setting the rules of host ports by nftables (a kernel with nft_nat, nft_ct and nft_fib is needed)";
    NetworkError::Io { what: what.to_owned(), source }
}

fn let_loopback_out(table: &Table, allowed: bool) {
    if let Err(error) = link::loopback(&table.name, allowed) {
        tracing::warn!(bridge = table.name, %error, "ports of pods are not reached at 127.0.0.1");
    }
}

/// Puts one family's rules into the kernel. What comes from 127.0.0.1 may leave only while its guard is there.
fn install(table: &Table, v4: bool) -> io::Result<()> {
    let allowed = v4 && table.leads_from_loopback();
    if v4 && !allowed {
        let_loopback_out(table, false);
    }
    table.install(v4)?;
    if allowed {
        let_loopback_out(table, true);
    }
    Ok(())
}

/// Makes one family's rules so if they are not; true when somebody else had changed them.
fn mend(table: &Table, installed: &mut Option<Table>, v4: bool) -> io::Result<bool> {
    let loopback = !v4 || link::is_loopback_let_out(&table.name) == table.leads_from_loopback();
    // rules that cannot be read are set again
    let stands = table.stands(v4).unwrap_or(false);
    let same = installed.as_ref() == Some(table);
    if same && stands && loopback {
        return Ok(false);
    }
    if v4 && !stands {
        // whoever took the rules away took the guard as well
        let_loopback_out(table, false);
    }
    if let Err(error) = install(table, v4) {
        let bare = table.without_ports(v4);
        if !stands && bare != *table && install(&bare, v4).is_ok() {
            *installed = Some(bare);
        }
        return Err(error);
    }
    *installed = Some(table.clone());
    Ok(same)
}

impl Network {
    fn table(&self) -> Table {
        let config = &self.inner.config;
        let ranges = locked(&self.inner.ranges).clone();
        Table {
            name: config.bridge.clone(),
            ranges: ranges.given.into_iter().chain(ranges.left).collect(),
            inside: config.cluster_cidrs.clone(),
            ports: locked(&self.inner.leases).ports(),
        }
    }

    /// Makes the kernel's rules what the leases say. Before the node has ranges there is nothing to do.
    async fn apply(&self) -> Failures {
        // one at a time, so that the newest comes last
        let mut installed = self.inner.rules.lock().await;
        let table = self.table();
        if table.ranges.is_empty() {
            return Vec::new();
        }
        let (results, table) = match spawn_blocking(move || ([true, false].map(|v4| install(&table, v4)), table)).await
        {
            Ok(done) => done,
            Err(error) => return vec![(true, io::Error::other(error.to_string())), (false, io::Error::other(error))],
        };
        let mut failures = Vec::new();
        for (v4, result) in [true, false].into_iter().zip(results) {
            match result {
                Ok(()) => *installed.of(v4) = Some(table.clone()),
                Err(error) => failures.push((v4, error)),
            }
        }
        failures
    }

    /// Sets rules that are not there, or that others changed, again. What could not be set is in the answer.
    pub(super) async fn mend_rules(&self) -> Vec<String> {
        let mut installed = self.inner.rules.lock().await;
        let table = self.table();
        if table.ranges.is_empty() {
            return Vec::new();
        }
        let mut now = installed.clone();
        let mended = spawn_blocking(move || {
            let results = [true, false].map(|v4| mend(&table, now.of(v4), v4));
            (results, now)
        });
        let results = match mended.await {
            Ok((results, now)) => {
                *installed = now;
                results
            }
            Err(error) => return vec![format!("rules not set: {error}")],
        };
        let mut problems = Vec::new();
        for (family, result) in ["IPv4", "IPv6"].into_iter().zip(results) {
            match result {
                Ok(false) => {}
                Ok(true) => tracing::warn!(family, "somebody removed or changed the rules of pods: they are set again"),
                Err(error) => problems.push(format!(
                    "{family} rules of pods not set: {error}: they do not reach networks outside the cluster, and host ports \
                     do not reach them (a kernel with nf_tables, nft_chain_nat, nft_masq, and nft_fib for ports is needed)"
                )),
            }
        }
        problems
    }

    /// Refuses ports the machine needs itself; whom others are taken from is in the answer.
    pub(super) async fn check_ports(&self, ports: &[HostPort]) -> Result<Vec<String>, NetworkError> {
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        let (ports, kept) = (ports.to_vec(), self.inner.config.kept_ports.clone());
        let checked = spawn_blocking(move || listeners::check(&ports, &kept)).await;
        checked.unwrap_or_else(|error| {
            let what = "looking who listens at host ports".to_owned();
            Err(NetworkError::Io { what, source: io::Error::other(error) })
        })
    }

    /// Lets the ports a sandbox has lead to it. Where one family cannot have them, the other has them all the same; it has
    /// none when both fail.
    pub(super) async fn open_ports(&self, sandbox: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut failures = self.apply().await;
        let table = self.table();
        let ips = locked(&self.inner.leases).of(sandbox).cloned().unwrap_or_default();
        let own = Table { ports: table.ports.iter().filter(|(ip, _)| ips.contains(ip)).copied().collect(), ..table };
        failures.retain(|(v4, _)| own.has_ports(*v4));
        let wanted = [true, false].into_iter().filter(|v4| own.has_ports(*v4)).count();
        let all = failures.len() >= wanted;
        match failures.pop() {
            Some((_, error)) if all => {
                locked(&self.inner.leases).close(sandbox);
                self.apply().await;
                return Err(failed(error));
            }
            Some((v4, error)) => {
                let family = if v4 { "IPv4" } else { "IPv6" };
                tracing::warn!(sandbox, family, %error, "host ports lead to the pod in the other family only");
            }
            None => {}
        }
        self.forget_udp(ports).await;
        Ok(())
    }

    /// Takes the ports of a sandbox away. Repeatable.
    pub(super) async fn close_ports(&self, sandbox: &str) -> Result<(), NetworkError> {
        let ports = locked(&self.inner.leases).close(sandbox);
        if ports.is_empty() && !self.inner.rules.lock().await.misleads(&self.table()) {
            return Ok(());
        }
        let failures = self.apply().await;
        // a family that never had these ports leads nowhere
        let misleads = {
            let mut installed = self.inner.rules.lock().await;
            let unknown = failures.iter().any(|(v4, _)| installed.of(*v4).is_none());
            unknown || installed.misleads(&self.table())
        };
        match failures.into_iter().next() {
            Some((_, error)) if misleads => return Err(failed(error)),
            _ => self.forget_udp(&ports).await,
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
