//! This machine forwards packets of its pods; routes it learned itself survive that.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::link;
use super::types::NetworkError;
use crate::files;

const V4: &str = "/proc/sys/net/ipv4/ip_forward";
const V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

fn is(file: &str, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|v| v.trim() == value)
}

fn turn_on(file: &str) -> Result<(), String> {
    if !is(file, "0") {
        return Ok(());
    }
    let failed = |error: io::Error| format!("{file} is 0, and cannot be set: {error}: pods reach this node only");
    files::set(file, "1").map_err(failed)
}

/// Interfaces that learn routes from routers' advertisements by the kernel: of the routes it has, and hardware that is told of
/// them later.
fn learning(routes: &[RouteMessage]) -> BTreeSet<u32> {
    let learned = routes.iter().filter(|r| r.header.protocol == RouteProtocol::Ra);
    let oif = |a: &RouteAttribute| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None };
    learned.flat_map(|r| r.attributes.iter().filter_map(oif)).collect()
}

/// A machine that forwards hears routers only where it is told to (`accept_ra`, the kernel's ip-sysctl.rst), and forgets at once
/// the default routes it has of them.
async fn keep_routers(handle: &Handle) -> Result<(), NetworkError> {
    let routes = link::routes(handle, RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()).await?;
    let mut names: BTreeSet<String> = BTreeSet::new();
    for index in learning(&routes) {
        names.extend(link::name(handle, index).await);
    }
    let hardware = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let hardware = hardware.filter(|entry| entry.path().join("device").exists());
    names.extend(hardware.filter_map(|entry| entry.file_name().into_string().ok()));
    for name in names {
        let file = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
        if !is(&file, "1") {
            continue;
        }
        match files::set(&file, "2") {
            Ok(()) => {
                tracing::info!(
                    interface = name,
                    "accept_ra is 2 now: IPv6 routers are heard though this node forwards"
                );
            }
            Err(error) => {
                tracing::warn!(interface = name, %error, "IPv6 routers are not heard any more: accept_ra not set");
            }
        }
    }
    Ok(())
}

/// Lets this machine forward what pods of these families send. What could not be done is in the answer.
pub async fn turn_on_for(handle: &Handle, v4: bool, v6: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if v4 {
        problems.extend(turn_on(V4).err());
    }
    if v6 && Path::new(V6).exists() && is(V6, "0") {
        match keep_routers(handle).await {
            Ok(()) => problems.extend(turn_on(V6).err()),
            Err(error) => problems.push(format!("IPv6 is not forwarded: {error}")),
        }
    }
    problems
}
