//! Links by netlink: the bridge, and a veth pair into each pod's network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{
    Error, Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::types::NetworkError;

/// Name of a pod's link inside its namespace.
pub const INSIDE: &str = "eth0";
/// Exchanges with the kernel at the same time. It does one after the other in any case; on a busy machine the answers to
/// hundreds of questions do not fit into the socket's buffer, and one that is dropped is never given again.
static TURNS: Semaphore = Semaphore::const_new(16);
/// Longest wait for the kernel in one turn.
const ANSWER: Duration = Duration::from_secs(30);

/// Does `work` once it is its turn.
pub async fn in_turn<T>(what: &str, work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    // it is never closed
    let _turn = TURNS.acquire().await.ok();
    timeout(ANSWER, work).await.unwrap_or_else(|_| {
        let message = format!("no answer of the kernel within {} s", ANSWER.as_secs());
        Err(NetworkError::Kernel { what: what.to_owned(), message })
    })
}

/// What was tried when the kernel gave an error.
pub fn kernel(what: impl Into<String>) -> impl FnOnce(Error) -> NetworkError {
    let what = what.into();
    move |error| NetworkError::Kernel { what, message: error.to_string() }
}

/// True for "it exists already", which a repeated step takes as done.
fn exists(error: &Error) -> bool {
    matches!(error, Error::NetlinkError(message) if message.raw_code() == -nix::libc::EEXIST)
}

/// What is there already is as good as made.
pub fn done(result: Result<(), Error>) -> Result<(), Error> {
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
    by_name(handle, name).await.map(|link| link.header.index)
}

/// Hardware address of a link; empty when it has none.
pub async fn hardware_address(handle: &Handle, index: u32) -> Vec<u8> {
    let attributes = by_index(handle, index).await.map(|l| l.attributes).unwrap_or_default();
    let address =
        attributes.into_iter().find_map(|a| if let LinkAttribute::Address(bytes) = a { Some(bytes) } else { None });
    address.unwrap_or_default()
}

/// Index of a link that has to be there.
pub async fn need(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    index(handle, name).await.ok_or_else(|| NetworkError::Kernel {
        what: format!("looking for link {name}"),
        message: "there is none".to_owned(),
    })
}

/// The link of that name or index, if there is one.
async fn found(mut links: impl futures::Stream<Item = Result<LinkMessage, Error>> + Unpin) -> Option<LinkMessage> {
    links.try_next().await.ok().flatten()
}

/// Name of a link.
pub async fn name(handle: &Handle, index: u32) -> Option<String> {
    name_of(&by_index(handle, index).await?)
}

/// The link with that index, if there is one.
pub async fn by_index(handle: &Handle, index: u32) -> Option<LinkMessage> {
    found(handle.link().get().match_index(index).execute()).await
}

/// The link of that name, if there is one.
pub async fn by_name(handle: &Handle, name: &str) -> Option<LinkMessage> {
    found(handle.link().get().match_name(name.to_owned()).execute()).await
}

/// What a link is called.
pub fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })
}

/// Router advertisements are not for this interface of the present namespace; without IPv6 there is nothing to be heard.
fn deafen(interface: &str) {
    match crate::files::set(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"), "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(interface, %error, "accept_ra not set: a pod may pose as the IPv6 router of others");
        }
        _ => {}
    }
}

/// Makes the bridge, without addresses, and sets it up. Repeatable: the index, and true when there was none.
pub async fn bridge(handle: &Handle, name: &str) -> Result<(u32, bool), NetworkError> {
    in_turn(&format!("making bridge {name}"), async {
        let mut present = by_name(handle, name).await;
        let made = present.is_none();
        if made {
            let made = handle.link().add(LinkBridge::new(name).build()).execute().await;
            done(made).map_err(kernel(format!("creating bridge {name}")))?;
            present = by_name(handle, name).await;
        }
        let Some(link) = present else {
            return Err(NetworkError::Kernel {
                what: format!("looking for bridge {name}"),
                message: "it is gone".to_owned(),
            });
        };
        deafen(name);
        let index = link.header.index;
        if made || !link.header.flags.contains(LinkFlags::Up) {
            // An address that was set stays. Else it would be the lowest of the ports' own, and pods would go on sending to
            // that of a pod that has ended.
            let address = hardware_address(handle, index).await;
            let up = LinkUnspec::new_with_index(index).address(address).up().build();
            handle.link().set(up).execute().await.map_err(kernel(format!("setting bridge {name} up")))?;
        }
        Ok((index, made))
    })
    .await
}

/// Puts a link that lost its bridge on it again; `pod`: the first address of the pod behind it.
pub async fn join(handle: &Handle, bridge: u32, name: &str, pod: Option<IpAddr>) -> Result<(), NetworkError> {
    let what = format!("putting link {name} on its bridge");
    in_turn(&what, async {
        let Some(index) = index(handle, name).await else { return Ok(()) };
        let joined = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        handle.link().set(joined).execute().await.map_err(kernel(what.clone()))?;
        let Some(pod) = pod else { return Ok(()) };
        set_port(handle, index, name, &hardware_address_of(pod)).await
    })
    .await
}

/// How the bridge treats the link of a pod that is called by `address`. The pod must reach itself by the address of a Service
/// it is behind. What it sends from teaches the bridge nothing: each address it made up would be kept for minutes, in memory
/// that no cgroup counts, and one of another pod would lead that one's packets here. So its own is told; frames for one it
/// gives itself go to all ports.
async fn set_port(handle: &Handle, index: u32, name: &str, address: &[u8]) -> Result<(), NetworkError> {
    let told = handle.neighbours().add_bridge(index, address).flags(NeighbourFlags::Controller);
    let told = told.state(NeighbourState::Noarp).replace();
    told.execute().await.map_err(kernel(format!("telling the bridge who is behind link {name}")))?;
    let port = LinkBridgePort::new(index).hairpin(true).learning(false).build();
    handle.link().set_port(port).execute().await.map_err(kernel(format!("setting hairpin and learning of link {name}")))
}

/// Gives a link an address, at once: nobody else has it, and to look for that would take a second (`IFA_F_NODAD`).
async fn give(handle: &Handle, index: u32, ip: IpAddr, prefix: u8) -> Result<(), Error> {
    let mut request = handle.address().add(index, ip, prefix);
    if ip.is_ipv6() {
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    done(request.execute().await)
}

/// Gives the bridge an address. Repeatable.
pub async fn add_address(handle: &Handle, index: u32, name: &str, ip: IpAddr, prefix: u8) -> Result<(), NetworkError> {
    let what = format!("adding {ip} to bridge {name}");
    in_turn(&what, async { give(handle, index, ip, prefix).await.map_err(kernel(what.clone())) }).await
}

/// Takes an address off its link.
pub async fn remove_address(handle: &Handle, address: AddressMessage) -> Result<(), NetworkError> {
    let what = "removing an address of before from the bridge";
    in_turn(what, async { handle.address().del(address).execute().await.map_err(kernel(what)) }).await
}

/// Routes of one family.
pub async fn routes(handle: &Handle, family: RouteMessage) -> Result<Vec<RouteMessage>, NetworkError> {
    let what = "reading this machine's routes";
    let asked = handle.route().get(family).execute().try_collect();
    in_turn(what, async { asked.await.map_err(kernel(what)) }).await
}

/// Lets packets from 127.0.0.0/8 leave by the bridge, and answers to them come back, or not. Nothing of the machine's other
/// links changes.
pub fn loopback(bridge: &str, allowed: bool) -> io::Result<()> {
    crate::files::set(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), if allowed { "1" } else { "0" })
}

/// What [`loopback`] set; not without the bridge.
pub fn is_loopback_let_out(bridge: &str) -> bool {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet")).is_ok_and(|v| v.trim() == "1")
}

/// Addresses of this machine, as the kernel has them.
pub async fn address_messages(handle: &Handle) -> Result<Vec<AddressMessage>, NetworkError> {
    let what = "reading this machine's addresses";
    let asked = handle.address().get().execute().try_collect();
    in_turn(what, async { asked.await.map_err(kernel(what)) }).await
}

/// Addresses of this machine.
pub async fn addresses(handle: &Handle) -> Result<Vec<IpAddr>, NetworkError> {
    let attributes = address_messages(handle).await?.into_iter().flat_map(|message| message.attributes);
    Ok(attributes
        .filter_map(|a| match a {
            AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => Some(ip),
            _ => None,
        })
        .collect())
}

/// A pod's network namespace.
pub fn open(netns: &Path) -> Result<File, NetworkError> {
    File::open(netns).map_err(|source| NetworkError::Io { what: format!("opening {}", netns.display()), source })
}

/// Connects a namespace to the bridge, with that MTU. Repeatable.
pub async fn attach(
    handle: &Handle,
    (bridge, mtu): (&str, u32),
    outside: &str,
    netns: &Path,
    addresses: Vec<(IpAddr, u8, Option<IpAddr>)>,
) -> Result<(), NetworkError> {
    let pod = open(netns)?;
    in_turn(&format!("connecting link {outside}"), connect_pod(handle, (bridge, mtu), outside, pod, addresses)).await
}

/// The pod's end is called by its address: who spoke with the pod that had the address before, speaks with this one at once.
/// Locally administered, with the prefix that the plugins of CNI use.
pub fn hardware_address_of(first: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match first {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => (ip.to_bits() as u32).to_be_bytes(),
    };
    [0x0a, 0x58, a, b, c, d]
}

/// Does `work` in a pod's network namespace.
pub async fn within<F>(pod: File, work: impl FnOnce(Handle) -> F + Send + 'static) -> Result<(), NetworkError>
where
    F: Future<Output = Result<(), NetworkError>>,
{
    let inside = std::thread::spawn(move || {
        setns(&pod, CloneFlags::CLONE_NEWNET).map_err(|e| NetworkError::Kernel {
            what: "entering the pod's network namespace".to_owned(),
            message: e.to_string(),
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|source| NetworkError::Io { what: "starting a netlink thread".to_owned(), source })?;
        runtime.block_on(async { work(connect()?).await })
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

async fn connect_pod(
    handle: &Handle,
    (bridge, mtu): (&str, u32),
    outside: &str,
    pod: File,
    addresses: Vec<(IpAddr, u8, Option<IpAddr>)>,
) -> Result<(), NetworkError> {
    let bridge_index = need(handle, bridge).await?;
    let Some((first, ..)) = addresses.first() else {
        let message = "the pod has no address".to_owned();
        return Err(NetworkError::Kernel { what: format!("creating link {outside}"), message });
    };
    let address = hardware_address_of(*first).to_vec();
    if index(handle, outside).await.is_none() {
        // the other end is made in the pod: moving it there later takes the kernel ten times as long
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(INSIDE).setns_by_fd(pod.as_raw_fd());
        let peer = peer.address(address.clone()).mtu(mtu).build();
        let pair = LinkVeth::new(outside, INSIDE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        let made = handle.link().add(pair.controller(bridge_index).mtu(mtu).up().build()).execute().await;
        done(made).map_err(kernel(format!("creating link {outside} on bridge {bridge}")))?;
    }
    let own = need(handle, outside).await?;
    set_port(handle, own, outside, &address).await?;
    within(pod, move |handle| configure(handle, addresses)).await
}

/// Inside the pod: loopback, addresses, default routes.
async fn configure(handle: Handle, addresses: Vec<(IpAddr, u8, Option<IpAddr>)>) -> Result<(), NetworkError> {
    let lo = LinkUnspec::new_with_name("lo").up().build();
    handle.link().set(lo).execute().await.map_err(kernel("setting lo up in the pod"))?;
    let index = need(&handle, INSIDE).await?;
    // the way out is the bridge, whatever another pod says
    deafen(INSIDE);
    // its link-local address is the one that `guard` lets in; that is the kernel's way unless the machine has another
    let _ = crate::files::set(format!("/proc/sys/net/ipv6/conf/{INSIDE}/addr_gen_mode"), "0");
    if !addresses.iter().any(|(ip, ..)| ip.is_ipv6()) {
        // `::1` stays; a kernel without IPv6 has nothing to turn off
        let _ = crate::files::set(format!("/proc/sys/net/ipv6/conf/{INSIDE}/disable_ipv6"), "1");
    }
    for (ip, prefix, _) in &addresses {
        give(&handle, index, *ip, *prefix).await.map_err(kernel(format!("adding {ip} in the pod")))?;
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
