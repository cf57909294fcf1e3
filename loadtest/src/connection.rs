//! One device's connection: socket, TLS, unsent and unparsed bytes, unacknowledged publishes.
//!
//! Called by `engine`, which owns all devices and the one read buffer. A slow link passes a few bytes each
//! [`PACE_NS`] in both directions. An idle plain connection owns a socket
//! and no heap memory: buffers exist only while bytes wait in them.

use crate::lanes::Lanes;
use crate::mqtt::{self, Incoming, MqttError, Version};
use crate::record::InFlight;
use mio::net::TcpStream;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// How often a slow link passes some bytes.
pub(crate) const PACE_NS: u64 = 100_000_000;
/// Connections that share one source address: well below the ports of one.
const CONNECTIONS_PER_SOURCE: u32 = 4_000;

/// The way to the server.
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Offline,
    /// The TCP connection is being made.
    Connecting,
    /// CONNECT is on its way (after the TLS handshake, where there is one).
    AwaitConnAck,
    Online,
}

/// What a fault does to a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quirks {
    /// Its clock is off by this much.
    pub(crate) clock_offset_us: i64,
    /// Bytes that pass in each direction in one pace of the slow link; 0: all.
    pub(crate) bytes_per_pace: usize,
    /// Nothing is sent before this time: the server refused for now.
    pub(crate) held_until_ns: u64,
    /// Refusals for now in a row.
    pub(crate) holds: u16,
    /// Numbers of class telemetry whose bodies were broken on purpose.
    pub(crate) poisoned: Vec<u32>,
    /// Numbers of class telemetry and event that the server refused for good.
    pub(crate) refused: Vec<(u8, u32)>,
}

/// One simulated device.
pub(crate) struct Device {
    pub(crate) transport: Option<Transport>,
    pub(crate) phase: Phase,
    pub(crate) queue_id: u64,
    /// The next number of each queue: telemetry, events.
    pub(crate) next_seq: [u32; 2],
    next_packet_id: u16,
    /// The server's Receive Maximum.
    pub(crate) window_max: u16,
    /// Failed attempts since the last success.
    pub(crate) attempts: u16,
    /// Which connection this is; timers of earlier ones are ignored.
    pub(crate) generation: u32,
    pub(crate) in_flight: VecDeque<InFlight>,
    pub(crate) lanes: Lanes,
    /// What is done to it, or special about it; most devices have none.
    pub(crate) quirks: Option<Box<Quirks>>,
    /// When its last connection ended; 0 before the first.
    pub(crate) offline_since_ns: u64,
    /// No new connection before this time.
    pub(crate) stays_away_until_ns: u64,
    /// How the server wants the next reconnect spread.
    pub(crate) reconnect_spread_ms: u32,
    /// When it asked for credit.
    pub(crate) asked_credit_ns: u64,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Device {
    pub(crate) fn new(queue_id: u64) -> Self {
        Self {
            transport: None,
            phase: Phase::Offline,
            queue_id,
            next_seq: [1; 2],
            next_packet_id: 1,
            window_max: u16::MAX,
            attempts: 0,
            generation: 0,
            in_flight: VecDeque::new(),
            lanes: Lanes::default(),
            quirks: None,
            offline_since_ns: 0,
            stays_away_until_ns: 0,
            reconnect_spread_ms: 0,
            asked_credit_ns: 0,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        }
    }

    /// The next packet id: 1 to 65,535 in turn; windows are far smaller.
    pub(crate) fn packet_id(&mut self) -> u16 {
        let id = self.next_packet_id;
        self.next_packet_id = id.checked_add(1).unwrap_or(1);
        id
    }

    /// What is special about it, to be changed.
    pub(crate) fn quirks(&mut self) -> &mut Quirks {
        self.quirks.get_or_insert_default()
    }

    /// Bytes that may pass at once; none: as many as go.
    pub(crate) fn pace_bytes(&self) -> Option<usize> {
        self.quirks.as_ref().map(|quirks| quirks.bytes_per_pace).filter(|bytes| *bytes > 0)
    }

    /// How many publishes may be unacknowledged.
    pub(crate) fn window(&self) -> usize {
        if self.lanes.is_ordered { 1 } else { usize::from(self.window_max) }
    }

    /// All below these numbers, by queue, is acknowledged, refused for good or broken on purpose.
    pub(crate) fn released(&self) -> [u32; 2] {
        let mut released = self.next_seq;
        for message in self.in_flight.iter().chain(self.lanes.again()) {
            if message.what.is_record() {
                let mark = &mut released[usize::from(message.what.class() == muster_wire::UpClass::Event)];
                *mark = (*mark).min(message.seq);
            }
        }
        released
    }

    /// Starts to connect; the socket becomes writable when it is done.
    pub(crate) fn open(
        &mut self,
        number: u32,
        to: SocketAddr,
        tls: Option<(Arc<ClientConfig>, rustls::pki_types::ServerName<'static>)>,
    ) -> io::Result<()> {
        let stream = connect(number, to)?;
        self.transport = Some(match tls {
            None => Transport::Plain(stream),
            Some((config, name)) => {
                let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
                Transport::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        });
        self.phase = Phase::Connecting;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Lets the end of this connection be a reset, as if the network had lost it.
    pub(crate) fn reset_on_close(&mut self) {
        if let Some(stream) = self.stream() {
            // A socket that cannot be set ends politely, which is an end too.
            let _ = socket2::SockRef::from(&*stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    /// Forgets the connection; unacknowledged publishes wait to be sent again.
    pub(crate) fn close(&mut self) {
        self.transport = None;
        self.lanes.disconnected(&mut self.in_flight);
        self.phase = Phase::Offline;
        self.outgoing = Vec::new();
        self.incoming = Vec::new();
    }

    pub(crate) fn stream(&mut self) -> Option<&mut TcpStream> {
        match self.transport.as_mut()? {
            Transport::Plain(stream) => Some(stream),
            Transport::Tls(tls) => Some(&mut tls.sock),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.transport, Some(Transport::Tls(_)))
    }

    /// Reads once: 0 is the end, `WouldBlock` is nothing left. Drives a TLS handshake too.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.transport.as_mut() {
            Some(Transport::Plain(stream)) => stream.read(buffer),
            Some(Transport::Tls(tls)) => tls.read(buffer),
            None => Ok(0),
        }
    }

    /// Sends now what fits, keeps the rest until the socket is writable.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.outgoing.is_empty() || self.pace_bytes().is_some() {
            self.outgoing.extend_from_slice(bytes);
            return Ok(());
        }
        let sent = write_some(self.transport.as_mut(), bytes)?;
        self.outgoing.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Sends what was kept.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.outgoing.is_empty() {
            let now = self.pace_bytes().map_or(self.outgoing.len(), |bytes| bytes.min(self.outgoing.len()));
            let sent = write_some(self.transport.as_mut(), &self.outgoing[..now])?;
            if sent == self.outgoing.len() {
                self.outgoing = Vec::new();
            } else {
                self.outgoing.drain(..sent);
            }
        }
        if let Some(Transport::Tls(tls)) = self.transport.as_mut() {
            match tls.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Hands each whole packet to `packet`, with the device; keeps a cut one for the next read.
    pub(crate) fn consume(
        &mut self,
        version: Version,
        bytes: &[u8],
        mut packet: impl FnMut(&mut Self, Incoming<'_>),
    ) -> Result<(), MqttError> {
        let joined;
        let mut rest = if self.incoming.is_empty() {
            bytes
        } else {
            let mut kept = std::mem::take(&mut self.incoming);
            kept.extend_from_slice(bytes);
            joined = kept;
            &joined[..]
        };
        while let Some((found, taken)) = mqtt::decode(version, rest)? {
            packet(self, found);
            rest = &rest[taken..];
        }
        if !rest.is_empty() {
            self.incoming = rest.to_vec();
        }
        Ok(())
    }
}

/// Writes until all is sent or the socket is full; answers the bytes sent.
fn write_some(transport: Option<&mut Transport>, bytes: &[u8]) -> io::Result<usize> {
    let Some(transport) = transport else { return Err(io::ErrorKind::NotConnected.into()) };
    let mut sent = 0;
    while sent < bytes.len() {
        let written = match transport {
            Transport::Plain(stream) => stream.write(&bytes[sent..]),
            Transport::Tls(tls) => tls.write(&bytes[sent..]),
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Starts a TCP connection. On loopback the source address is one of many, since each has 28,000 ports only,
/// and differs from run to run, since closed connections hold their ports for a minute.
fn connect(number: u32, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let IpAddr::V4(ip) = to.ip()
        && ip.is_loopback()
    {
        let run = (std::process::id() % 250) as u8 + 1;
        let [.., high, low] = (number / CONNECTIONS_PER_SOURCE).to_be_bytes();
        let source = Ipv4Addr::new(127, run, high, low.wrapping_add(1));
        socket.bind(&SockAddr::from(SocketAddr::from((source, 0))))?;
    }
    match socket.connect(&SockAddr::from(to)) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    Ok(TcpStream::from_std(socket.into()))
}
