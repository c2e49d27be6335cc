//! The board's own network: an interface with a cable, an address for it, the way out, name servers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::settings::Fixed;
use super::{Failure, dhcp, log};

use crate::files::{self, Durability};

const LINKS: &str = "/sys/class/net";
/// After so long without a cable or an address a person hears of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the board is reached by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addressing {
    /// Interface.
    pub interface: String,
    /// Own address.
    pub address: Option<IpNet>,
    /// Way out.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub name_servers: Vec<IpAddr>,
    /// Time servers that the network names.
    pub time_servers: Vec<String>,
}

fn attribute(interface: &str, name: &str) -> String {
    fs::read_to_string(Path::new(LINKS).join(interface).join(name)).unwrap_or_default().trim().to_owned()
}

/// Interfaces of real hardware, in the order of their names.
fn interfaces() -> Vec<String> {
    let entries = fs::read_dir(LINKS).into_iter().flatten().flatten().filter(|e| e.path().join("device").exists());
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn mac(interface: &str) -> Option<[u8; 6]> {
    let text = attribute(interface, "address");
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes?.try_into().ok()
}

async fn index(handle: &Handle, interface: &str) -> Result<u32, Failure> {
    let mut links = handle.link().get().match_name(interface.to_owned()).execute();
    let link = links.try_next().await?.ok_or_else(|| format!("interface {interface} is gone"))?;
    Ok(link.header.index)
}

async fn up(handle: &Handle, interface: &str) -> Result<(), Failure> {
    // so that routers are heard although the board forwards for its pods
    let _ = files::set(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"), "2");
    let up = LinkUnspec::new_with_name(interface).up().build();
    Ok(handle.link().set(up).execute().await.map_err(|e| format!("setting {interface} up: {e}"))?)
}

/// Gives the interface this address instead of the one before, and the machine this way out and these name servers.
async fn apply(handle: &Handle, before: &Addressing, now: &Addressing) -> Result<(), Failure> {
    let index = index(handle, &now.interface).await?;
    if let Some(old) = before.address.filter(|old| now.address != Some(*old)) {
        let mut present = handle.address().get().set_link_index_filter(index).execute();
        while let Some(address) = present.try_next().await? {
            if address.attributes.contains(&AddressAttribute::Address(old.addr())) {
                handle.address().del(address).execute().await?;
            }
        }
    }
    if let Some(address) = now.address {
        let add = handle.address().add(index, address.addr(), address.prefix_len()).replace();
        add.execute().await.map_err(|e| format!("giving {} the address {address}: {e}", now.interface))?;
    }
    let route = match now.gateway {
        Some(IpAddr::V4(gateway)) => {
            Some(RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build())
        }
        Some(IpAddr::V6(gateway)) => {
            Some(RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(index).build())
        }
        None => None,
    };
    if let Some(route) = route {
        handle.route().add(route).replace().execute().await.map_err(|e| format!("setting the default route: {e}"))?;
    }
    let servers: Vec<String> = now.name_servers.iter().map(|s| format!("nameserver {s}\n")).collect();
    let servers = servers.concat();
    Ok(files::write(Path::new("/etc/resolv.conf"), servers.as_bytes(), 0o644, Durability::Volatile)?)
}

/// Waits for an interface with a cable, the named one if one is named.
async fn choose(
    handle: &Handle,
    events: &mut (impl StreamExt + Unpin),
    wanted: Option<&str>,
    told: &impl Fn(String),
) -> String {
    let mut said = false;
    loop {
        let present = interfaces();
        let fit: Vec<_> = present.iter().filter(|i| wanted.is_none_or(|w| w == *i)).collect();
        for interface in &fit {
            if attribute(interface, "carrier") == "1" {
                return (*interface).clone();
            }
            // one that is down tells nothing of its cable
            if let Err(error) = up(handle, interface).await {
                log::line(&error.to_string());
            }
        }
        if timeout(PATIENCE, events.next()).await.is_err() && !said {
            said = true;
            told(match (wanted, present.is_empty(), fit.is_empty()) {
                (_, true, _) => "this board has no network interface that works with a cable".to_owned(),
                (Some(name), _, true) => format!("there is no interface {name}: there is {}", present.join(", ")),
                _ => format!("no cable at {}", present.join(", ")),
            });
        }
    }
}

/// Keeps the board in its network for ever. `told` hears how it is while there is no address.
pub async fn keep(
    fixed: Fixed,
    name: String,
    addressing: watch::Sender<Addressing>,
    told: impl Fn(String),
) -> Result<(), Failure> {
    let (connection, handle, mut events) = new_multicast_connection(&[MulticastGroup::Link])?;
    tokio::spawn(connection);
    up(&handle, "lo").await?;
    let interface = choose(&handle, &mut events, fixed.interface.as_deref(), &told).await;
    log::line(&format!("network: {interface} has a cable"));
    let link = Arc::new(Notify::new());
    tokio::spawn(tell_of_cable(interface.clone(), events, link.clone()));
    if fixed.address.is_some() {
        let now = Addressing {
            interface,
            address: fixed.address,
            gateway: fixed.gateway,
            name_servers: fixed.name_servers,
            time_servers: Vec::new(),
        };
        apply(&handle, &Addressing::default(), &now).await?;
        addressing.send_replace(now);
        return std::future::pending().await;
    }
    let mac = mac(&interface).ok_or_else(|| format!("{interface} has no hardware address"))?;
    let (lease_tx, mut lease) = watch::channel(None);
    let client = dhcp::Client { mac, name };
    let silent = || told(format!("no DHCP server answers on {interface}"));
    let follow = async {
        let mut before = Addressing { interface: interface.clone(), ..Addressing::default() };
        while lease.changed().await.is_ok() {
            let now = of(&interface, lease.borrow_and_update().as_ref(), &fixed);
            if let Err(error) = apply(&handle, &before, &now).await {
                log::line(&error.to_string());
                told(error.to_string());
            }
            log::line(&format!("network: {now:?}"));
            before = now.clone();
            addressing.send_if_modified(|old| {
                *old != now && {
                    *old = now;
                    true
                }
            });
        }
    };
    tokio::select! {
        ended = dhcp::keep(client, &interface, &link, &lease_tx, silent) => Ok(ended.map_err(|e| format!("DHCP on {interface}: {e}"))?),
        () = follow => Ok(()),
    }
}

/// What a lease means; what a person set of it goes first.
fn of(interface: &str, lease: Option<&dhcp::Lease>, fixed: &Fixed) -> Addressing {
    let none = Addressing { interface: interface.to_owned(), ..Addressing::default() };
    lease.map_or(none, |lease| Addressing {
        interface: interface.to_owned(),
        address: Some(lease.address.into()),
        gateway: lease.router.map(IpAddr::from),
        name_servers: if fixed.name_servers.is_empty() {
            lease.name_servers.clone()
        } else {
            fixed.name_servers.clone()
        },
        time_servers: lease.time_servers.iter().map(ToString::to_string).collect(),
    })
}

/// Notifies when a cable is put in again.
async fn tell_of_cable(interface: String, mut events: impl StreamExt + Unpin, link: Arc<Notify>) {
    let mut there = true;
    while events.next().await.is_some() {
        let now = attribute(&interface, "carrier") == "1";
        if now && !there {
            link.notify_one();
        }
        there = now;
    }
}
