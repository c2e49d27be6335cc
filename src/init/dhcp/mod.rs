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
/// How long servers are asked for the address of before, once the cable is in again.
const CONFIRM: Duration = Duration::from_mins(1);
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

/// Servers that can be asked.
trait Network {
    /// Asks `to` in a conversation that is some seconds old; the first answer that `takes` says is one, if there is one in
    /// time.
    async fn ask(&self, talk: &Talk, question: Question, to: Ipv4Addr, wait: Duration, takes: Takes) -> Option<Answer>;
}

/// Whether an answer is one to the question.
type Takes = fn(&Answer) -> bool;

/// One conversation with servers.
struct Talk {
    transaction: u32,
    since: Instant,
}

impl Talk {
    fn new() -> Self {
        Self { transaction: rand::random(), since: Instant::now() }
    }
}

/// The real ones.
struct Wire {
    client: Client,
    socket: UdpSocket,
}

impl Network for Wire {
    async fn ask(&self, talk: &Talk, question: Question, to: Ipv4Addr, wait: Duration, takes: Takes) -> Option<Answer> {
        let until = Instant::now() + wait;
        let seconds = u16::try_from(talk.since.elapsed().as_secs()).unwrap_or(u16::MAX);
        let bytes = self.client.ask(question, talk.transaction, seconds)?;
        if let Err(error) = self.socket.send_to(&bytes, SocketAddr::from((to, SERVER))).await {
            super::log::line(&format!("dhcp: asking {to}: {error}"));
        }
        let mut buffer = [0; message::MAX];
        loop {
            match timeout_at(until, self.socket.recv_from(&mut buffer)).await {
                Err(_) => return None,
                Ok(Ok((size, from))) if from.port() == SERVER => {
                    let heard = buffer.get(..size).and_then(|b| self.client.hear(b, talk.transaction));
                    if let Some(answer) = heard.filter(takes) {
                        return Some(answer);
                    }
                }
                Ok(Ok(_)) => {}
                // the interface may be down for a while
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

fn is_offer(answer: &Answer) -> bool {
    matches!(answer, Answer::Offer(_))
}

fn settles(answer: &Answer) -> bool {
    !is_offer(answer)
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    /// The address is ours.
    Given(Lease),
    /// It is not, or no longer.
    Lost,
    /// The cable was put in again meanwhile.
    Moved,
}

fn settled(answer: Answer) -> Settled {
    match answer {
        Answer::Ack(lease) => Settled::Given(lease),
        Answer::Nak | Answer::Offer(_) => Settled::Lost,
    }
}

fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(0.8 + 0.4 * f64::from(rand::random::<u8>()) / 255.0)
}

/// Tries until a server gives an address; `silent` is called when none has answered.
async fn acquire(network: &impl Network, before: Option<Ipv4Addr>, link: &Notify, silent: &impl Fn()) -> Lease {
    let mut wait = FIRST_WAIT;
    loop {
        let talk = Talk::new();
        let everybody = Ipv4Addr::BROADCAST;
        let discovered = network.ask(&talk, Question::Discover(before), everybody, jitter(wait), is_offer);
        // a cable that was put in is a reason to be quick again
        let discovered = tokio::select! {
            answer = discovered => answer,
            () = link.notified() => {
                wait = FIRST_WAIT;
                continue;
            }
        };
        if let Some(Answer::Offer(offer)) = discovered {
            let question = Question::Take(offer.address.addr(), offer.server);
            if let Some(Answer::Ack(lease)) = network.ask(&talk, question, everybody, FIRST_WAIT, settles).await {
                return lease;
            }
        }
        silent();
        wait = (wait * 2).min(LAST_WAIT);
    }
}

/// Asks for the same address again until it is given, refused or over, or the cable was put in again.
async fn extend(network: &impl Network, lease: &Lease, since: Instant, link: &Notify) -> Settled {
    let talk = Talk::new();
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
        let once = async {
            let asked = Instant::now();
            let question = Question::Keep(address);
            let answer = network.ask(&talk, question, to, wait.min(Duration::from_secs(10)), settles).await;
            if answer.is_none() {
                tokio::time::sleep_until(asked + wait).await;
            }
            answer
        };
        tokio::select! {
            answer = once => if let Some(answer) = answer { return settled(answer) },
            () = link.notified() => return Settled::Moved,
        }
    }
}

/// The cable was put in again, maybe into another network: all servers are asked whether the address is one of it and still
/// ours, for a minute, as a switch may pass nothing on at first; then for any address. While nobody answers the address is
/// kept, to the end of its time (RFC 2131 3.2).
async fn confirm(network: &impl Network, lease: &Lease, since: Instant, link: &Notify, silent: &impl Fn()) -> Settled {
    let end = since + lease.expire;
    let ask = async {
        let talk = Talk::new();
        let mut wait = FIRST_WAIT;
        while talk.since.elapsed() < CONFIRM {
            let question = Question::Again(lease.address.addr());
            if let Some(answer) = network.ask(&talk, question, Ipv4Addr::BROADCAST, jitter(wait), settles).await {
                return settled(answer);
            }
            wait = (wait * 2).min(CONFIRM / 4);
        }
        Settled::Given(acquire(network, Some(lease.address.addr()), link, silent).await)
    };
    timeout_at(end, ask).await.unwrap_or(Settled::Lost)
}

/// Keeps an address on `interface` for ever and tells of each change. `link` is notified when the cable is put in again.
pub async fn keep(
    client: Client,
    interface: &str,
    link: &Notify,
    lease: &watch::Sender<Option<Lease>>,
    silent: impl Fn(),
) -> io::Result<()> {
    let network = Wire { client, socket: open(interface)? };
    let mut before = None;
    loop {
        before = Some(hold(&network, before, link, lease, &silent).await);
    }
}

/// Takes an address and holds it until it is lost; which one it was.
async fn hold(
    network: &impl Network,
    before: Option<Ipv4Addr>,
    link: &Notify,
    lease: &watch::Sender<Option<Lease>>,
    silent: &impl Fn(),
) -> Ipv4Addr {
    let mut own = acquire(network, before, link, silent).await;
    loop {
        let since = Instant::now();
        lease.send_replace(Some(own.clone()));
        let mut ended = match timeout(own.renew, link.notified()).await {
            Ok(()) => Settled::Moved,
            Err(_) => extend(network, &own, since, link).await,
        };
        if ended == Settled::Moved {
            ended = confirm(network, &own, since, link, silent).await;
        }
        match ended {
            Settled::Given(given) => own = given,
            Settled::Lost | Settled::Moved => break,
        }
    }
    lease.send_replace(None);
    own.address.addr()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Servers that answer by a rule, and what they were asked.
    struct Servers<F>(F, Mutex<Vec<(Question, Ipv4Addr)>>);

    impl<F: Fn(Question) -> Option<Answer>> Network for Servers<F> {
        async fn ask(
            &self,
            _: &Talk,
            question: Question,
            to: Ipv4Addr,
            wait: Duration,
            takes: Takes,
        ) -> Option<Answer> {
            self.1.lock().unwrap().push((question, to));
            let answer = self.0(question).filter(takes);
            tokio::time::sleep(if answer.is_some() { Duration::from_millis(10) } else { wait }).await;
            answer
        }
    }

    fn lease(address: &str) -> Lease {
        let hours = |n: u64| Duration::from_hours(n);
        Lease {
            address: address.parse().unwrap(),
            router: None,
            name_servers: Vec::new(),
            time_servers: Vec::new(),
            server: Ipv4Addr::new(10, 0, 0, 1),
            renew: hours(12),
            rebind: hours(21),
            expire: hours(24),
        }
    }

    /// What is asked for and what is held in `time`, when the cable is put in again after `moved`.
    async fn held(
        answer: impl Fn(Question) -> Option<Answer>,
        moved: Duration,
        time: Duration,
    ) -> (Vec<Question>, Option<Lease>) {
        let servers = Servers(answer, Mutex::default());
        let (link, (sender, receiver)) = (Notify::new(), watch::channel(None));
        let cable = async {
            tokio::time::sleep(moved).await;
            link.notify_one();
            std::future::pending::<()>().await;
        };
        let life = async { tokio::join!(hold(&servers, None, &link, &sender, &|| ()), cable) };
        let _ = timeout(time, life).await;
        let asked = servers.1.lock().unwrap().iter().map(|(question, _)| *question).collect();
        (asked, receiver.borrow().clone())
    }

    const HOME: &str = "10.0.0.2/24";

    fn at_home(question: Question) -> Option<Answer> {
        Some(if matches!(question, Question::Discover(_)) {
            Answer::Offer(lease(HOME))
        } else {
            Answer::Ack(lease(HOME))
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_cable_in_another_network_gets_another_address_at_once() {
        let elsewhere = |question| match question {
            Question::Discover(None) | Question::Take(..) => at_home(question),
            Question::Again(_) => Some(Answer::Nak),
            _ => None,
        };
        let hour = Duration::from_hours(1);
        let (asked, held) = held(elsewhere, hour, hour + Duration::from_secs(1)).await;
        assert_eq!(asked.last(), Some(&Question::Again("10.0.0.2".parse().unwrap())));
        assert_eq!(held, None, "the address of the other network is given up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cable_in_the_same_network_keeps_the_address() {
        let hour = Duration::from_hours(1);
        let (asked, held) = held(at_home, hour, hour + Duration::from_secs(1)).await;
        assert!(matches!(asked[..], [Question::Discover(None), Question::Take(..), Question::Again(_)]), "{asked:?}");
        assert_eq!(held, Some(lease(HOME)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_switch_that_is_slow_is_waited_for() {
        let began = Instant::now();
        let slow = move |question| match question {
            Question::Again(_) if began.elapsed() < Duration::from_hours(1) + Duration::from_secs(35) => None,
            other => at_home(other),
        };
        let hour = Duration::from_hours(1);
        let (asked, held) = held(slow, hour, hour + Duration::from_mins(1)).await;
        assert!(asked.iter().filter(|q| matches!(q, Question::Again(_))).count() > 3, "{asked:?}");
        assert_eq!(held, Some(lease(HOME)));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_who_knows_the_address_means_another_one_is_asked_for() {
        let other = lease("10.9.0.2/24");
        let given = other.clone();
        let elsewhere = move |question| match question {
            Question::Discover(Some(_)) => Some(Answer::Offer(given.clone())),
            Question::Take(address, _) if address == given.address.addr() => Some(Answer::Ack(given.clone())),
            Question::Discover(None) | Question::Take(..) => at_home(question),
            Question::Again(_) | Question::Keep(_) => None,
        };
        let hour = Duration::from_hours(1);
        let (_, held) = held(elsewhere, hour, hour + Duration::from_mins(2)).await;
        assert_eq!(held, Some(other));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_kept_while_nobody_answers_and_not_longer() {
        let silent = |question| match question {
            Question::Discover(None) | Question::Take(..) => at_home(question),
            _ => None,
        };
        let hour = Duration::from_hours(1);
        assert_eq!(held(silent, hour, hour * 23).await.1, Some(lease(HOME)));
        assert_eq!(held(silent, hour, hour * 25).await.1, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_nobody_answers_hears_of_the_cable() {
        let deaf = |question| if matches!(question, Question::Keep(_)) { None } else { at_home(question) };
        let moved = Duration::from_hours(13);
        let (asked, held) = held(deaf, moved, moved + Duration::from_secs(1)).await;
        assert!(matches!(asked.last(), Some(Question::Again(_))), "{asked:?}");
        assert_eq!(held, Some(lease(HOME)));
    }
}
