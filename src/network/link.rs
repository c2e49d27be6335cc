//! Links by netlink: the bridge, and a veth pair into each pod's network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{
    Error, Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::types::NetworkError;

/// Name of a pod's link inside its namespace.
const INSIDE: &str = "eth0";
/// Exchanges with the kernel at the same time. It does one after the other in any case; on a busy machine the answers to
/// hundreds of questions do not fit into the socket's buffer, and one that is dropped is never given again.
static TURNS: Semaphore = Semaphore::const_new(16);
/// Longest wait for the kernel in one turn.
const ANSWER: Duration = Duration::from_secs(30);

/// Does `work` once it is its turn.
async fn in_turn<T>(what: &str, work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    // it is never closed
    let _turn = TURNS.acquire().await.ok();
    timeout(ANSWER, work).await.unwrap_or_else(|_| {
        let message = format!("no answer of the kernel within {} s", ANSWER.as_secs());
        Err(NetworkError::Kernel { what: what.to_owned(), message })
    })
}

fn kernel(what: impl Into<String>) -> impl FnOnce(Error) -> NetworkError {
    let what = what.into();
    move |error| NetworkError::Kernel { what, message: error.to_string() }
}

/// True for "it exists already", which a repeated step takes as done.
fn exists(error: &Error) -> bool {
    matches!(error, Error::NetlinkError(message) if message.raw_code() == -nix::libc::EEXIST)
}

fn done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if exists(&error) => Ok(()),
        other => other,
    }
}

/// A netlink connection in the present network namespace.
pub fn connect() -> Result<Handle, NetworkError> {
    let opened = rtnetlink::new_connection();
    let (connection, handle, _) =
        opened.map_err(|source| NetworkError::Io { what: "opening a netlink socket".to_owned(), source })?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Index of a link, if there is one of that name.
pub async fn index(handle: &Handle, name: &str) -> Option<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    links.try_next().await.ok().flatten().map(|l| l.header.index)
}

/// Hardware address of a link; empty when it has none.
pub async fn hardware_address(handle: &Handle, index: u32) -> Vec<u8> {
    let mut links = handle.link().get().match_index(index).execute();
    let attributes = links.try_next().await.ok().flatten().map(|l| l.attributes).unwrap_or_default();
    let address =
        attributes.into_iter().find_map(|a| if let LinkAttribute::Address(bytes) = a { Some(bytes) } else { None });
    address.unwrap_or_default()
}

async fn need(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    index(handle, name).await.ok_or_else(|| NetworkError::Kernel {
        what: format!("looking for link {name}"),
        message: "there is none".to_owned(),
    })
}

/// Makes the bridge with its addresses, and lets this machine forward.
pub async fn bridge(handle: &Handle, name: &str, ranges: &[IpNet]) -> Result<(), NetworkError> {
    let made = handle.link().add(LinkBridge::new(name).build()).execute().await;
    done(made).map_err(kernel(format!("creating bridge {name}")))?;
    let index = need(handle, name).await?;
    for range in ranges {
        if let Some(gateway) = super::ipam::gateway(range) {
            let added = handle.address().add(index, gateway, range.prefix_len()).execute().await;
            done(added).map_err(kernel(format!("adding {gateway} to bridge {name}")))?;
        }
    }
    // One that was set stays. Else it would be the lowest of the ports' own, and pods would go on sending to that of a pod
    // that has ended.
    let address = hardware_address(handle, index).await;
    let up = LinkUnspec::new_with_index(index).address(address).up().build();
    handle.link().set(up).execute().await.map_err(kernel(format!("setting bridge {name} up")))?;
    for file in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        if std::fs::read_to_string(file).is_ok_and(|v| v.trim() == "0")
            && let Err(error) = std::fs::write(file, "1")
        {
            tracing::warn!(file, %error, "forwarding is off: pods reach this node only");
        }
    }
    Ok(())
}

/// Lets packets from 127.0.0.0/8 leave by the bridge, and answers to them come back, or not. Nothing of the machine's other
/// links changes.
pub fn loopback(bridge: &str, allowed: bool) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), if allowed { "1" } else { "0" })
}

/// Addresses of this machine.
pub async fn addresses(handle: &Handle) -> Result<Vec<IpAddr>, NetworkError> {
    let what = "reading this machine's addresses";
    let asked = handle.address().get().execute().try_collect();
    let found: Vec<AddressMessage> = in_turn(what, async { asked.await.map_err(kernel(what)) }).await?;
    let attributes = found.into_iter().flat_map(|message| message.attributes);
    Ok(attributes
        .filter_map(|a| match a {
            AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => Some(ip),
            _ => None,
        })
        .collect())
}

/// Connects a namespace to the bridge. Repeatable.
pub async fn attach(
    handle: &Handle,
    bridge: &str,
    outside: &str,
    netns: &Path,
    addresses: Vec<(IpAddr, u8, Option<IpAddr>)>,
) -> Result<(), NetworkError> {
    let open =
        |what: &str| File::open(what).map_err(|source| NetworkError::Io { what: format!("opening {what}"), source });
    let pod = open(&netns.display().to_string())?;
    in_turn(&format!("connecting link {outside}"), connect_pod(handle, bridge, outside, pod, addresses)).await
}

async fn connect_pod(
    handle: &Handle,
    bridge: &str,
    outside: &str,
    pod: File,
    addresses: Vec<(IpAddr, u8, Option<IpAddr>)>,
) -> Result<(), NetworkError> {
    let bridge_index = need(handle, bridge).await?;
    if index(handle, outside).await.is_none() {
        // the other end is made in the pod: moving it there later takes the kernel ten times as long
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(INSIDE).setns_by_fd(pod.as_raw_fd()).build();
        let pair = LinkVeth::new(outside, INSIDE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        let made = handle.link().add(pair.controller(bridge_index).up().build()).execute().await;
        done(made).map_err(kernel(format!("creating link {outside} on bridge {bridge}")))?;
    }
    let own = need(handle, outside).await?;
    // a pod must reach itself by the address of a Service it is behind
    let hairpin = LinkBridgePort::new(own).hairpin(true).build();
    handle.link().set_port(hairpin).execute().await.map_err(kernel(format!("setting hairpin on link {outside}")))?;
    let inside = std::thread::spawn(move || {
        setns(&pod, CloneFlags::CLONE_NEWNET).map_err(|e| NetworkError::Kernel {
            what: "entering the pod's network namespace".to_owned(),
            message: e.to_string(),
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|source| NetworkError::Io { what: "starting a netlink thread".to_owned(), source })?;
        runtime.block_on(configure(addresses))
    });
    let joined = tokio::task::spawn_blocking(move || inside.join()).await;
    match joined {
        Ok(Ok(result)) => result,
        _ => Err(NetworkError::Kernel {
            what: "configuring the pod's link".to_owned(),
            message: "thread ended".to_owned(),
        }),
    }
}

/// Inside the pod: loopback, addresses, default routes.
async fn configure(addresses: Vec<(IpAddr, u8, Option<IpAddr>)>) -> Result<(), NetworkError> {
    let handle = connect()?;
    let lo = LinkUnspec::new_with_name("lo").up().build();
    handle.link().set(lo).execute().await.map_err(kernel("setting lo up in the pod"))?;
    let index = need(&handle, INSIDE).await?;
    for (ip, prefix, _) in &addresses {
        let added = handle.address().add(index, *ip, *prefix).execute().await;
        done(added).map_err(kernel(format!("adding {ip} in the pod")))?;
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(kernel("setting eth0 up in the pod"))?;
    for (_, _, gateway) in &addresses {
        let added = match gateway {
            Some(IpAddr::V4(gateway)) => {
                handle.route().add(RouteMessageBuilder::<Ipv4Addr>::new().gateway(*gateway).build()).execute().await
            }
            Some(IpAddr::V6(gateway)) => {
                handle.route().add(RouteMessageBuilder::<Ipv6Addr>::new().gateway(*gateway).build()).execute().await
            }
            None => Ok(()),
        };
        done(added).map_err(kernel("adding the default route in the pod"))?;
    }
    Ok(())
}

/// Loopback alone is set up by [`attach`]; this removes a link of ours. Repeatable.
pub async fn remove(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let what = format!("removing link {name}");
    let removing = async {
        let Some(index) = index(handle, name).await else { return Ok(()) };
        match handle.link().del(index).execute().await {
            // it went with the pod's namespace just now
            Err(Error::NetlinkError(message)) if message.raw_code() == -nix::libc::ENODEV => Ok(()),
            other => other.map_err(kernel(what.clone())),
        }
    };
    in_turn(&what, removing).await
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn thousands_at_once_are_all_answered() {
        let handle = connect().unwrap();
        let look = |_| {
            let handle = handle.clone();
            tokio::spawn(async move {
                let looking = async { need(&handle, "lo").await.map(drop) };
                in_turn("looking for lo", looking).await
            })
        };
        let asked = timeout(Duration::from_secs(20), join_all((0..20_000).map(look))).await;
        assert!(asked.expect("some have no answer").iter().all(|r| matches!(r, Ok(Ok(())))));
    }
}
