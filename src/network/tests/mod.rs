//! The pod network, in network namespaces that stand for a machine and its pods. Needs root.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rtnetlink::LinkUnspec;

use super::*;

mod limits;
mod pose;
mod settle;

const TRY: Duration = Duration::from_millis(300);
/// Less than the second after which a lost packet is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);
const BRIDGED_TOO: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// A network namespace.
struct Place(File);

impl Place {
    fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // IPv6 addresses would be looked for on the link for a second before they are used
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Does something there.
    fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                what()
            });
            there.join().unwrap()
        })
    }

    /// Answers TCP with who asked, and UDP with `name`.
    fn serve(&self, tcp: u16, udp: u16, name: &'static str) {
        let any = |port| SocketAddr::from(([0; 16], port));
        let (tcp, udp) = self.within(|| (TcpListener::bind(any(tcp)).unwrap(), UdpSocket::bind(any(udp)).unwrap()));
        thread::spawn(move || {
            while let Ok((mut stream, from)) = tcp.accept() {
                let _ = stream.write_all(from.ip().to_canonical().to_string().as_bytes());
            }
        });
        thread::spawn(move || {
            while let Ok((_, from)) = udp.recv_from(&mut [0; 8]) {
                let _ = udp.send_to(name.as_bytes(), from);
            }
        });
    }

    /// As whom the pod sees this place when it connects to `to`.
    fn seen_at(&self, to: &str) -> io::Result<IpAddr> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(|| {
            let mut answer = String::new();
            let mut stream = TcpStream::connect_timeout(&to, AT_ONCE)?;
            stream.set_read_timeout(Some(AT_ONCE))?;
            stream.read_to_string(&mut answer)?;
            answer.parse().map_err(io::Error::other)
        })
    }
}

fn ask(client: &UdpSocket, to: &str) -> io::Result<String> {
    let mut answer = [0; 8];
    client.send_to(b"who", to)?;
    let length = client.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn port(protocol: Protocol, port: u16, container_port: u16) -> HostPort {
    HostPort { ip: None, protocol, port, container_port }
}

/// A machine with a pod network, and an executor for it.
struct Machine {
    place: Place,
    dir: PathBuf,
    network: Network,
    runtime: tokio::runtime::Runtime,
}

/// Runs `test` on a thread of the machine.
fn on_a_machine(name: &str, test: fn(&Machine)) {
    on_a_machine_with(name, &["10.9.0.0/24", "fd09::/64"], test);
}

/// The same, of a machine whose pods have these ranges.
fn on_a_machine_with(name: &str, ranges: &'static [&'static str], test: fn(&Machine)) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let dir = std::env::temp_dir().join(format!("pikelet-hostports-{}-{name}", std::process::id()));
    let place = Place::new();
    let config = NetworkConfig {
        bridge: "test0".to_owned(),
        state_dir: dir.clone(),
        mtu: None,
        kept_ports: Vec::new(),
        cluster_cidrs: Vec::new(),
    };
    let on_it = thread::spawn(move || {
        setns(&place.0, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let network = runtime.block_on(async {
            let network = Network::open(config).await.unwrap();
            let lo = LinkUnspec::new_with_name("lo").up().build();
            network.inner.handle.link().set(lo).execute().await.unwrap();
            let ranges: Vec<IpNet> = ranges.iter().map(|r| r.parse().unwrap()).collect();
            if !ranges.is_empty() {
                assert_eq!(network.settle(&ranges).await.unwrap(), Settled::default());
            }
            network
        });
        test(&Machine { place, dir, network, runtime });
    });
    let ended = on_it.join();
    let _ = fs::remove_dir_all(std::env::temp_dir().join(format!("pikelet-hostports-{}-{name}", std::process::id())));
    ended.unwrap();
}

impl Machine {
    fn pod(&self, name: &str, ports: &[HostPort]) -> (Place, PodAddresses) {
        self.limited_pod(name, ports, Bandwidth::default())
    }

    fn limited_pod(&self, name: &str, ports: &[HostPort], bandwidth: Bandwidth) -> (Place, PodAddresses) {
        let pod = Place::new();
        let addresses = self.runtime.block_on(self.network.attach(name, &pod.path(), ports, bandwidth)).unwrap();
        (pod, addresses)
    }

    fn remove(&self, name: &str) {
        self.runtime.block_on(self.network.detach(name)).unwrap();
    }

    fn loopback_routed(&self) -> String {
        self.place.within(|| fs::read_to_string("/proc/sys/net/ipv4/conf/test0/route_localnet").unwrap())
    }
}

#[test]
fn ports_are_reached_from_machine_and_pods() {
    on_a_machine("reached", |machine| {
        let (other, _) = machine.pod("other", &[]);
        assert_eq!(machine.loopback_routed(), "0\n");
        let (web, web_ips) = machine.pod("web", &[port(Protocol::Tcp, 8080, 80), port(Protocol::Sctp, 8080, 80)]);
        web.serve(80, 53, "web");
        let refused =
            |place: &Place, to: &str| place.seen_at(to).unwrap_err().kind() == io::ErrorKind::ConnectionRefused;
        for bridged in [true, false] {
            if machine.place.within(|| fs::write(BRIDGED_TOO, if bridged { "1" } else { "0" })).is_err() && bridged {
                continue;
            }
            for gateway in ["10.9.0.1", "fd09::1"] {
                let gateway: IpAddr = gateway.parse().unwrap();
                let to = SocketAddr::new(gateway, 8080).to_string();
                for (who, place) in [("machine", &machine.place), ("other", &other), ("web", &web)] {
                    let seen = place.seen_at(&to);
                    assert!(
                        seen.as_ref().is_ok_and(|s| *s == gateway),
                        "{who} to {to}, bridged packets {bridged}: {seen:?}"
                    );
                }
            }
            let direct = SocketAddr::new(web_ips.ips[0], 80).to_string();
            assert_ne!(other.seen_at(&direct).unwrap(), "10.9.0.1".parse::<IpAddr>().unwrap(), "pods see each other");
            assert_eq!(machine.place.seen_at("127.0.0.1:8080").unwrap(), "10.9.0.1".parse::<IpAddr>().unwrap());
            assert!(refused(&machine.place, "[::1]:8080") && refused(&machine.place, "127.0.0.1:80"));
        }
        assert_eq!(machine.loopback_routed(), "1\n");
        machine.remove("web");
        for to in ["127.0.0.1:8080", "10.9.0.1:8080", "[fd09::1]:8080"] {
            assert!(refused(&machine.place, to), "{to} is closed");
        }
        assert_eq!(machine.loopback_routed(), "0\n");
    });
}

#[test]
fn an_address_of_the_host_limits_a_port() {
    on_a_machine("limited", |machine| {
        let here = HostPort { ip: Some("127.0.0.1".parse().unwrap()), ..port(Protocol::Tcp, 8080, 80) };
        let all = HostPort { ip: Some("0.0.0.0".parse().unwrap()), ..port(Protocol::Tcp, 8081, 80) };
        let (web, _) = machine.pod("web", &[here, all]);
        web.serve(80, 53, "web");
        for (to, open) in [
            ("127.0.0.1:8080", true),
            ("10.9.0.1:8080", false),
            ("127.0.0.1:8081", true),
            ("10.9.0.1:8081", true),
            ("[fd09::1]:8081", false),
        ] {
            assert_eq!(machine.place.seen_at(to).is_ok(), open, "{to}");
        }
    });
}

#[test]
fn what_resolved_answers_leads_to_no_pod() {
    on_a_machine("stub", |machine| {
        let stub = machine.place.within(|| TcpListener::bind("127.0.0.53:53").unwrap());
        thread::spawn(move || stub.accept().unwrap().0.write_all(b"127.0.0.53").unwrap());
        let (names, _) = machine.pod("names", &[port(Protocol::Tcp, 53, 53)]);
        names.serve(53, 53, "names");
        for (asked, answers) in [("127.0.0.53:53", "127.0.0.53"), ("127.0.0.1:53", "10.9.0.1")] {
            assert_eq!(machine.place.seen_at(asked).unwrap(), answers.parse::<IpAddr>().unwrap());
        }
    });
}

#[test]
fn many_ports_are_one_change() {
    on_a_machine("many", |machine| {
        let many: Vec<HostPort> = (1000..2000).map(|number| port(Protocol::Tcp, number, 80)).collect();
        let (web, _) = machine.pod("web", &many);
        web.serve(80, 53, "web");
        for to in ["127.0.0.1:1000", "127.0.0.1:1999", "[fd09::1]:1999"] {
            assert!(machine.place.seen_at(to).is_ok(), "{to}");
        }
        machine.remove("web");
        assert!(machine.place.seen_at("127.0.0.1:1999").is_err());
    });
}

#[test]
fn the_bridge_keeps_its_hardware_address() {
    on_a_machine("address", |machine| {
        let handle = &machine.network.inner.handle;
        let address = || {
            machine.runtime.block_on(async {
                let index = link::index(handle, "test0").await.unwrap();
                link::hardware_address(handle, index).await
            })
        };
        let before = address();
        assert_eq!(before.len(), 6);
        let pods: Vec<_> = (0..8).map(|n| machine.pod(&format!("pod{n}"), &[])).collect();
        assert_eq!(address(), before);
        for n in 0..pods.len() {
            machine.remove(&format!("pod{n}"));
        }
        assert_eq!(address(), before);
    });
}

#[test]
fn a_change_is_not_noticed_by_others() {
    on_a_machine("change", |machine| {
        let (web, _) = machine.pod("web", &[port(Protocol::Tcp, 8080, 80)]);
        web.serve(80, 53, "web");
        let done = AtomicBool::new(false);
        let asked = thread::scope(|scope| {
            let clients = scope.spawn(|| {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    machine.place.seen_at("127.0.0.1:8080").unwrap();
                    asked += 1;
                    // after some thousands the kernel takes a port again whose last connection it still remembers
                    thread::sleep(Duration::from_millis(1));
                }
                asked
            });
            for n in 0..20 {
                let _there = machine.pod("other", &[port(Protocol::Tcp, 9000 + n, 80)]);
                machine.remove("other");
            }
            done.store(true, Ordering::Relaxed);
            clients.join().unwrap()
        });
        assert!(asked > 20, "{asked} is no test");
    });
}

#[test]
fn clients_of_udp_reach_the_pod_there_is_now() {
    on_a_machine("udp", |machine| {
        let ports = [port(Protocol::Udp, 5353, 53)];
        let client = machine.place.within(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        client.set_read_timeout(Some(TRY)).unwrap();
        assert!(ask(&client, "127.0.0.1:5353").is_err());
        // the connection the kernel tracks is that of before
        for name in ["one", "two"] {
            let (pod, _) = machine.pod(name, &ports);
            pod.serve(80, 53, name);
            assert_eq!(ask(&client, "127.0.0.1:5353").unwrap(), name);
            machine.remove(name);
            assert!(ask(&client, "127.0.0.1:5353").is_err());
        }
    });
}

#[test]
fn pods_do_not_reach_the_loopback_of_the_machine() {
    on_a_machine("guard", |machine| {
        let (web, _) = machine.pod("web", &[port(Protocol::Tcp, 8080, 80)]);
        let private = machine.place.within(|| UdpSocket::bind("127.0.0.1:9999").unwrap());
        private.set_read_timeout(Some(TRY)).unwrap();
        let thief = web.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        setsockopt(&thief, BindToDevice, &"eth0".into()).unwrap();
        thief.send_to(b"who", "127.0.0.1:9999").unwrap();
        assert!(private.recv(&mut [0; 8]).is_err());
    });
}

#[test]
fn another_agent_goes_on_with_the_ports() {
    on_a_machine("again", |machine| {
        let (web, _) = machine.pod("web", &[port(Protocol::Tcp, 8080, 80)]);
        web.serve(80, 53, "web");
        machine.runtime.block_on(async {
            let again = Network::open(machine.network.inner.config.clone()).await.unwrap();
            again.retain(&["web".to_owned()]).await;
            let range = ["10.9.0.0/24".parse().unwrap()];
            again.settle(&range).await.unwrap();
            assert!(machine.place.seen_at("127.0.0.1:8080").is_ok());
            let last = Network::open(machine.network.inner.config.clone()).await.unwrap();
            last.retain(&[]).await;
            last.settle(&range).await.unwrap();
        });
        assert!(machine.place.seen_at("127.0.0.1:8080").is_err());
        assert!(fs::read_to_string(machine.dir.join("leases.json")).unwrap().contains(r#""ports":{}"#));
    });
}
