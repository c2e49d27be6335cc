//! What systemd-logind knows of a shutdown to come (org.freedesktop.login1(5), "Inhibitor Locks").

use std::path::Path;
use std::time::Duration;

use futures::{Stream, StreamExt};
use zbus::proxy::CacheProperties;
use zbus::zvariant::OwnedFd;
use zbus::{Connection, Proxy};

use crate::files::{self, Durability};

/// Where logind is told to wait for longer.
const DROP_IN: &str = "/etc/systemd/logind.conf.d/99-pikelet.conf";
/// How often, and how long at most, one looks whether it has read that.
const PAUSE: Duration = Duration::from_millis(100);
const TRIES: u32 = 20;

/// A connection to logind.
pub struct Logind {
    connection: Connection,
    manager: Proxy<'static>,
}

impl Logind {
    /// By the system bus.
    pub async fn connect() -> Result<Self, String> {
        let connection = Connection::system().await.map_err(|e| format!("the system's D-Bus: {e}"))?;
        let manager: Result<Proxy<'static>, zbus::Error> = async {
            zbus::proxy::Builder::new(&connection)
                .destination("org.freedesktop.login1")?
                .path("/org/freedesktop/login1")?
                .interface("org.freedesktop.login1.Manager")?
                // logind does not tell of changes
                .cache_properties(CacheProperties::No)
                .build()
                .await
        }
        .await;
        let manager = manager.map_err(|e| format!("systemd-logind: {e}"))?;
        Ok(Self { connection, manager })
    }

    /// The longest time a shutdown waits.
    async fn longest(&self) -> Result<Duration, String> {
        let name = "InhibitDelayMaxUSec";
        let value = self.manager.get_property::<u64>(name).await;
        value.map(Duration::from_micros).map_err(|e| format!("systemd-logind: {name}: {e}"))
    }

    /// Lets a shutdown wait for `time` at least, by a setting of logind if need be.
    pub async fn allow(&self, time: Duration) -> Result<(), String> {
        if self.longest().await? >= time {
            return Ok(());
        }
        let text =
            format!("# written by pikelet for shutdownGracePeriod\n[Login]\nInhibitDelayMaxSec={}\n", time.as_secs());
        let dir = Path::new(DROP_IN).parent().unwrap_or(Path::new("/"));
        files::dir_kept(dir, 0o755)
            .and_then(|()| files::write(Path::new(DROP_IN), text.as_bytes(), 0o644, Durability::Volatile))
            .map_err(|e| format!("writing {DROP_IN}: {e}"))?;
        let reload = self.connection.call_method(
            Some("org.freedesktop.systemd1"),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.systemd1.Manager"),
            "KillUnit",
            &("systemd-logind.service", "all", nix::libc::SIGHUP),
        );
        reload.await.map_err(|e| format!("letting systemd-logind read {DROP_IN}: {e}"))?;
        for _ in 0..TRIES {
            if self.longest().await? >= time {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!(
            "systemd-logind lets a shutdown wait for {} s at most, shutdownGracePeriod asks for {} s: a setting overrules {DROP_IN}",
            self.longest().await?.as_secs(),
            time.as_secs()
        ))
    }

    /// Holds up a shutdown as long as the descriptor is open, or until logind's patience ends.
    pub async fn inhibit(&self) -> Result<OwnedFd, String> {
        let why = ("shutdown", "pikelet", "pods end in the time they were given", "delay");
        self.manager.call("Inhibit", &why).await.map_err(|e| format!("systemd-logind: Inhibit: {e}"))
    }

    /// True when a shutdown begins, false when it does not come.
    pub async fn announcements(&self) -> Result<impl Stream<Item = bool> + use<>, String> {
        let signals = self.manager.receive_signal("PrepareForShutdown").await;
        let signals = signals.map_err(|e| format!("systemd-logind: PrepareForShutdown: {e}"))?;
        Ok(signals.filter_map(|message| std::future::ready(message.body().deserialize().ok())))
    }
}
