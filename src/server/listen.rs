//! Ports that somebody else may still hold when the agent starts: another kubelet, or an agent that was killed and whose
//! last threads have not ended.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tracing::{info, warn};

const FIRST: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

/// Listens on `address`, as soon as nobody else does. What keeps it from that is said once, with `advice`.
pub async fn listen(what: &str, address: SocketAddr, advice: &str) -> TcpListener {
    let mut delay = FIRST;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                if delay > FIRST {
                    info!(%address, "{what} is served now");
                }
                return listener;
            }
            Err(error) => {
                if delay == FIRST {
                    warn!(%address, %error, "{what} is not served yet: {advice}");
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_waited_for() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let mut ours = std::pin::pin!(listen("it", address, "nothing to be done"));
        let early = tokio::time::timeout(Duration::from_millis(150), &mut ours).await;
        assert!(early.is_err(), "the address is another one's");
        drop(other);
        assert_eq!(ours.await.local_addr().unwrap(), address);
    }
}
