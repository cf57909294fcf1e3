//! A TCP proxy that counts bytes: what an idle agent costs on its line.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One read.
const BUFFER_BYTES: usize = 16 * 1024;

/// Forwards connections of one listener to one address, for the rest of this program's life.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let address = listener.local_addr()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(to) else { continue };
                let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                pump(client, server, counted.clone());
                pump(server_too, client_too, counted.clone());
            }
        });
        Ok(Self { address, bytes })
    }

    /// Bytes of both directions so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Copies one direction until it ends.
fn pump(mut from: TcpStream, mut to: TcpStream, counted: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            counted.fetch_add(count as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_forwarded_and_counted() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(server.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(proxy.address).unwrap();
        client.write_all(b"ping!").unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        let mut got = [0; 5];
        accepted.read_exact(&mut got).unwrap();
        accepted.write_all(b"pong").unwrap();
        client.read_exact(&mut got[..4]).unwrap();
        assert_eq!((&got[..4], proxy.bytes()), (&b"pong"[..], 9));
    }
}
