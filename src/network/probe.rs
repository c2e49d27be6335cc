//! Whether this machine's kernel can make pod networks: each kind of link and rule, tried where nobody sees it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkBridge, LinkVeth, LinkVxlan};

use super::bandwidth::{self, Bucket};
use super::expressions::Action;
use super::table::Table;
use super::types::{HostPort, NetworkError, Protocol};
use super::{link, nft};

/// Name of the bridge, and of the nftables table.
const NAME: &str = "probe0";

/// What one thing came to.
#[derive(Debug)]
pub struct Attempt {
    /// `bridge`, `veth`, `vxlan`, `nftables`, `nftables IPv6`, `nftables netdev`, `hostPort` or `bandwidth`.
    pub what: &'static str,
    /// Why it cannot be made.
    pub result: Result<(), String>,
}

async fn links(handle: &Handle) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for (what, message) in [
        ("bridge", LinkBridge::new(NAME).build()),
        ("veth", LinkVeth::new("probe1", "probe2").build()),
        ("vxlan", LinkVxlan::new("probe3", 1).port(8472).build()),
    ] {
        let result = handle.link().add(message).execute().await.map_err(|e| e.to_string());
        attempts.push(Attempt { what, result });
    }
    attempts
}

fn rules() -> impl Iterator<Item = Attempt> {
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 0), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0));
    let port = HostPort { ip: None, protocol: Protocol::Tcp, port: 1, container_port: 1 };
    let kinds = [
        ("nftables", IpNet::new_assert(v4.into(), 24), Vec::new()),
        ("nftables IPv6", IpNet::new_assert(v6.into(), 64), Vec::new()),
        ("hostPort", IpNet::new_assert(v4.into(), 24), vec![(v4.into(), port)]),
    ];
    kinds.into_iter().map(|(what, range, ports)| {
        let table = Table { name: NAME.to_owned(), ranges: vec![range], ports, ..Table::default() };
        Attempt { what, result: table.install(true).and_then(|()| table.install(false)).map_err(|e| e.to_string()) }
    })
}

/// Tries all of them in a network namespace that goes with the attempt. Only root can.
pub fn probe() -> Result<Vec<Attempt>, NetworkError> {
    let failed = |what: &str, message: String| NetworkError::Kernel { what: what.to_owned(), message };
    let attempt = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("making a network namespace", e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| failed("starting a netlink thread", e.to_string()))?;
        let (mut attempts, shaper) = runtime.block_on(async {
            let handle = link::connect()?;
            Ok::<_, NetworkError>((
                links(&handle).await,
                bandwidth::shape(&handle, "probe4", Bucket::of(1000, 1500)).await,
            ))
        })?;
        attempts.extend(rules());
        let through = shaper.map_err(|e| e.to_string()).and_then(|index| {
            nft::put_guard(NAME, "probe2", &[(Vec::new(), Action::Through(index))]).map_err(|e| e.to_string())
        });
        attempts.push(Attempt { what: "bandwidth", result: through });
        let result = nft::put_guard(NAME, "probe1", &[(Vec::new(), Action::Drop)]).map_err(|e| e.to_string());
        attempts.push(Attempt { what: "nftables netdev", result });
        Ok(attempts)
    });
    attempt.join().unwrap_or_else(|_| Err(failed("trying links", "thread ended".to_owned())))
}
