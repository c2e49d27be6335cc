//! A DHCP client (RFC 2131) for one interface: takes an address, keeps it, gives it up when it must.

mod message;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use message::{Answer, Question};
pub use message::{Client, Lease};

const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// Waits between questions: they double, from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LAST_WAIT: Duration = Duration::from_secs(64);
/// Shortest wait between two questions of a renewal.
const RENEWAL_WAIT: Duration = Duration::from_mins(1);

/// A socket for `interface` only, which needs no address.
fn open(interface: &str) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::Broadcast, &true)?;
    setsockopt(&fd, sockopt::BindToDevice, &interface.into())?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, CLIENT))?;
    UdpSocket::from_std(StdSocket::from(fd))
}

/// One conversation with servers.
struct Talk<'a> {
    client: &'a Client,
    socket: &'a UdpSocket,
    transaction: u32,
    since: Instant,
}

impl<'a> Talk<'a> {
    fn new(client: &'a Client, socket: &'a UdpSocket) -> Self {
        Self { client, socket, transaction: rand::random(), since: Instant::now() }
    }

    /// Asks, and gives the first answer that is taken, if there is one in time.
    async fn ask<T>(
        &self,
        question: Question,
        to: Ipv4Addr,
        wait: Duration,
        take: impl Fn(Answer) -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + wait;
        let seconds = u16::try_from(self.since.elapsed().as_secs()).unwrap_or(u16::MAX);
        let bytes = self.client.ask(question, self.transaction, seconds)?;
        if let Err(error) = self.socket.send_to(&bytes, SocketAddr::from((to, SERVER))).await {
            super::log::line(&format!("dhcp: asking {to}: {error}"));
        }
        let mut buffer = [0; message::MAX];
        loop {
            match timeout_at(until, self.socket.recv_from(&mut buffer)).await {
                Err(_) => return None,
                Ok(Ok((size, from))) if from.port() == SERVER => {
                    let heard = buffer.get(..size).and_then(|b| self.client.hear(b, self.transaction));
                    if let Some(taken) = heard.and_then(&take) {
                        return Some(taken);
                    }
                }
                Ok(Ok(_)) => {}
                // the interface may be down for a while
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

fn offered(answer: Answer) -> Option<Lease> {
    if let Answer::Offer(lease) = answer { Some(lease) } else { None }
}

/// How a request ended.
enum Settled {
    /// The address is ours.
    Given(Lease),
    /// It is not, or no longer.
    Lost,
}

fn settled(answer: Answer) -> Option<Settled> {
    match answer {
        Answer::Ack(lease) => Some(Settled::Given(lease)),
        Answer::Nak => Some(Settled::Lost),
        Answer::Offer(_) => None,
    }
}

fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(0.8 + 0.4 * f64::from(rand::random::<u8>()) / 255.0)
}

/// Tries until a server gives an address; `silent` is called when none has answered.
async fn acquire(
    client: &Client,
    socket: &UdpSocket,
    before: Option<Ipv4Addr>,
    link: &Notify,
    silent: &impl Fn(),
) -> Lease {
    let mut wait = FIRST_WAIT;
    loop {
        let talk = Talk::new(client, socket);
        let everybody = Ipv4Addr::BROADCAST;
        if let Some(offer) = talk.ask(Question::Discover(before), everybody, jitter(wait), offered).await {
            let question = Question::Take(offer.address.addr(), offer.server);
            if let Some(Settled::Given(lease)) = talk.ask(question, everybody, FIRST_WAIT, settled).await {
                return lease;
            }
        }
        silent();
        // a cable that was put in is a reason to be quick again
        let soon = timeout(Duration::ZERO, link.notified()).await.is_ok();
        wait = if soon { FIRST_WAIT } else { (wait * 2).min(LAST_WAIT) };
    }
}

/// Asks for the same address again until it is given, refused or over.
async fn extend(client: &Client, socket: &UdpSocket, lease: &Lease, since: Instant) -> Settled {
    let talk = Talk::new(client, socket);
    let address = lease.address.addr();
    loop {
        let now = since.elapsed();
        if now >= lease.expire {
            return Settled::Lost;
        }
        let (to, end) =
            if now < lease.rebind { (lease.server, lease.rebind) } else { (Ipv4Addr::BROADCAST, lease.expire) };
        let left = end.saturating_sub(now);
        let wait = (left / 2).max(RENEWAL_WAIT).min(left).max(Duration::from_secs(1));
        // an answer comes at once or not at all
        let asked = Instant::now();
        match talk.ask(Question::Keep(address), to, wait.min(Duration::from_secs(10)), settled).await {
            Some(end) => return end,
            None => tokio::time::sleep_until(asked + wait).await,
        }
    }
}

/// Keeps an address on `interface` for ever and tells of each change. `link` is notified when the cable is put in again.
pub async fn keep(
    client: Client,
    interface: &str,
    link: &Notify,
    lease: &watch::Sender<Option<Lease>>,
    silent: impl Fn(),
) -> io::Result<()> {
    let socket = open(interface)?;
    let mut before = None;
    loop {
        let mut own = acquire(&client, &socket, before, link, &silent).await;
        loop {
            let since = Instant::now();
            before = Some(own.address.addr());
            lease.send_replace(Some(own.clone()));
            // the network behind another cable may be another one
            let _ = timeout(own.renew, link.notified()).await;
            match extend(&client, &socket, &own, since).await {
                Settled::Given(renewed) => own = renewed,
                Settled::Lost => break,
            }
        }
        lease.send_replace(None);
    }
}
