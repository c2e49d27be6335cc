//! Whether this machine's kernel can make pod networks: each kind of link and rule, tried where nobody sees it.

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkBridge, LinkVeth, LinkVxlan};

use super::types::NetworkError;
use super::{link, nft};

/// Name of the bridge, and of the nftables table.
const NAME: &str = "probe0";

/// What one thing came to.
#[derive(Debug)]
pub struct Attempt {
    /// `bridge`, `veth`, `vxlan`, `nftables` or `nftables IPv6`.
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
    let kinds = [("nftables", "192.0.2.0/24"), ("nftables IPv6", "2001:db8::/64")];
    kinds.into_iter().map(|(what, range)| {
        let range = range.parse::<IpNet>().map_err(|e| e.to_string());
        let result = range.and_then(|r| nft::masquerade(NAME, &[r], &[]).map_err(|e| e.to_string()));
        Attempt { what, result }
    })
}

/// Tries all of them in a network namespace that goes with the attempt. Only root can.
pub fn probe() -> Result<Vec<Attempt>, NetworkError> {
    let failed = |what: &str, message: String| NetworkError::Kernel { what: what.to_owned(), message };
    let attempt = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("making a network namespace", e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| failed("starting a netlink thread", e.to_string()))?;
        let mut attempts = runtime.block_on(async { Ok(links(&link::connect()?).await) })?;
        attempts.extend(rules());
        Ok(attempts)
    });
    attempt.join().unwrap_or_else(|_| Err(failed("trying links", "thread ended".to_owned())))
}
