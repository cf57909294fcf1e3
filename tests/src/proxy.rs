//! A TCP proxy that a test can cut: the network between an agent and the server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Connections at once; more are refused.
const CONNECTIONS_MAX: usize = 64;

/// Forwards connections while the link is up.
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    up: AtomicBool,
    target: Mutex<SocketAddr>,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens on an ephemeral port of 127.0.0.1 and forwards to `target`.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port can be had");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            up: AtomicBool::new(true),
            target: Mutex::new(target),
            open: Mutex::new(Vec::new()),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                accepting.forward(stream);
            }
        });
        Self { addr, shared }
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Cuts every connection, and refuses new ones until [`Self::restore`].
    pub fn cut(&self) {
        self.shared.up.store(false, Ordering::SeqCst);
        for stream in self.shared.open.lock().expect("no thread panics with the lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub fn restore(&self) {
        self.shared.up.store(true, Ordering::SeqCst);
    }

    /// Forwards new connections to another address: the server came back on another port.
    pub fn retarget(&self, target: SocketAddr) {
        *self.shared.target.lock().expect("no thread panics with the lock") = target;
    }
}

impl Shared {
    fn forward(&self, client: TcpStream) {
        let mut open = self.open.lock().expect("no thread panics with the lock");
        open.retain(|stream| stream.peer_addr().is_ok());
        let target = *self.target.lock().expect("no thread panics with the lock");
        if !self.up.load(Ordering::SeqCst) || open.len() >= CONNECTIONS_MAX * 2 {
            return;
        }
        let Ok(server) = TcpStream::connect(target) else { return };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
            std::thread::spawn(move || copy(from, to));
        }
        open.push(client);
        open.push(server);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
