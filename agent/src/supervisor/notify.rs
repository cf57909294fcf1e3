//! `sd_notify`: READY, WATCHDOG and STOPPING as datagrams to `NOTIFY_SOCKET`.

use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Speaks to the service manager; silent where there is none.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    #[must_use]
    pub fn from_env() -> Self {
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        Self::new(std::env::var_os("NOTIFY_SOCKET"), watchdog.map(Duration::from_micros))
    }

    /// A notifier of one socket; a leading `@` names an abstract one.
    #[must_use]
    pub fn new(path: Option<OsString>, watchdog: Option<Duration>) -> Self {
        let Some(path) = path.filter(|path| !path.is_empty()) else { return Self::default() };
        match connect(&path) {
            Ok(socket) => Self { socket: Some(socket), watchdog },
            Err(error) => {
                tracing::warn!(%error, "cannot reach the service manager");
                Self::default()
            }
        }
    }

    /// How often to call [`Self::alive`]: half of what the service manager allows.
    #[must_use]
    pub fn alive_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| (limit / 2).max(Duration::from_millis(10)))
    }

    /// Everything is started.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The main loop turns.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The agent goes down.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::debug!(%error, state, "the service manager did not take a notice");
        }
    }
}

fn connect(path: &OsString) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match path.to_str().and_then(|path| path.strip_prefix('@')) {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
        }
        _ => socket.connect(path)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_arrive_at_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into_os_string()), Some(Duration::from_secs(2)));
        assert_eq!(notifier.alive_interval(), Some(Duration::from_secs(1)));
        notifier.ready();
        notifier.alive();
        notifier.stopping();
        let mut buffer = [0; 64];
        let heard: Vec<_> = (0..3)
            .map(|_| {
                let length = manager.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            })
            .collect();
        assert_eq!(heard, ["READY=1", "WATCHDOG=1", "STOPPING=1"]);
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let notifier = Notifier::new(None, None);
        notifier.ready();
        assert_eq!(notifier.alive_interval(), None);
    }
}
