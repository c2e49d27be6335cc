//! A bad line to a real registry: it counts, cuts, refuses for a while or is silent.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

/// What is wrong with the line.
#[derive(Clone, Copy)]
pub enum Fault {
    /// Nothing: it only counts.
    None,
    /// Each of the first connections ends after so many bytes of answers.
    Cut { bytes: u64, times: usize },
    /// The first requests are answered with this status and `Retry-After: 1`.
    Busy { status: u16, times: usize },
    /// Each piece of an answer takes so many milliseconds.
    Slow { pause: u64 },
    /// Nothing is ever answered.
    Silent,
}

/// See the module.
pub struct Line {
    /// Where it listens.
    pub address: String,
    /// Bytes of answers it has carried.
    pub bytes: Arc<AtomicU64>,
    /// Times the fault has shown.
    pub faults: Arc<AtomicUsize>,
}

/// A line to `registry`; its threads end with the test's process.
pub fn line(registry: &str, fault: Fault) -> Line {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (bytes, faults) = (Arc::<AtomicU64>::default(), Arc::<AtomicUsize>::default());
    let line = Line { address, bytes: bytes.clone(), faults: faults.clone() };
    let registry = registry.to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (registry, bytes, faults) = (registry.clone(), bytes.clone(), faults.clone());
            thread::spawn(move || connection(client.unwrap(), &registry, fault, &bytes, &faults));
        }
    });
    line
}

fn connection(mut client: TcpStream, registry: &str, fault: Fault, bytes: &AtomicU64, faults: &AtomicUsize) {
    let shows =
        |times: usize| faults.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < times).then_some(n + 1));
    let mut left = u64::MAX;
    match fault {
        Fault::None | Fault::Slow { .. } => {}
        Fault::Silent => {
            faults.fetch_add(1, Ordering::SeqCst);
            let _ = client.read_to_end(&mut Vec::new());
            return;
        }
        Fault::Busy { status, times } => {
            if shows(times).is_ok() {
                let _ = client.read(&mut [0; 4096]);
                let answer = format!(
                    "HTTP/1.1 {status} Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let _ = client.write_all(answer.as_bytes());
                return;
            }
        }
        Fault::Cut { bytes, times } => {
            if faults.load(Ordering::SeqCst) < times {
                left = bytes;
            }
        }
    }
    let mut server = TcpStream::connect(registry).unwrap();
    let (mut requests, mut onward) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut requests, &mut onward);
        let _ = onward.shutdown(Shutdown::Write);
    });
    let mut piece = vec![0; 16 << 10];
    while let Ok(n) = server.read(&mut piece) {
        if n == 0 || client.write_all(&piece[..n.min(left as usize)]).is_err() {
            break;
        }
        if let Fault::Slow { pause } = fault {
            thread::sleep(std::time::Duration::from_millis(pause));
        }
        bytes.fetch_add(n as u64, Ordering::SeqCst);
        left = left.saturating_sub(n as u64);
        if left == 0 {
            faults.fetch_add(1, Ordering::SeqCst);
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
