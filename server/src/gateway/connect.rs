//! From a fresh byte stream to a connection: the CONNECT, the checks, the CONNACK.
//!
//! Called by `listener` in a task of its own, which ends when the connection's task begins. Every refusal
//! gets a CONNACK with its code; bytes that are no CONNECT get a closed socket. Limits:
//! `codec::CONNECT_BYTES_MAX`, [`CLIENT_ID_BYTES_MAX`], and the caller's time-out.

use super::Core;
use super::codec::{self, Connect, ConnectError, FrameError, Version, WillAsked};
use super::connection::{Connection, Opened};
use super::encode::{self, Limits};
use super::identity::{self, Identity};
use super::link::{Link, Will};
use super::live::connection_name;
use super::publish::is_own_death;
use super::reason::{ConnectRefusal, EarlyEnd};
use super::stream::{Stream, close_with};
use super::tls::PeerCertificate;
use super::{Config, TICKS_PER_S};
use bytes::BytesMut;
use muster_wire::{Death, Envelope, UpClass};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::AsyncReadExt;

/// The longest client id; only integration clients are told apart by it.
pub(crate) const CLIENT_ID_BYTES_MAX: usize = 128;
/// Bytes read at once before the CONNECT is whole.
const READ_BYTES: usize = 1_024;
/// Bytes of a foreign device's will that are kept as its reason; the wire type's limit.
const REASON_BYTES_MAX: usize = 128;

/// Reads until the CONNECT is whole. `Ok(None)`: answered and closed, since the version is foreign.
async fn read_connect(stream: &mut Stream, buffer: &mut BytesMut) -> Result<Connect, ReadEnd> {
    loop {
        match codec::first_packet(buffer) {
            Ok(Some(connect)) => return Ok(connect),
            Ok(None) => {}
            Err(ConnectError::Version) => return Err(ReadEnd::Version),
            Err(ConnectError::Frame(FrameError::TooLarge)) => {
                return Err(ReadEnd::Early(EarlyEnd::ConnectTooLarge));
            }
            Err(ConnectError::Frame(_)) => return Err(ReadEnd::Early(EarlyEnd::NotConnect)),
        }
        buffer.reserve(READ_BYTES);
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(ReadEnd::Early(EarlyEnd::Lost)),
            Ok(_) => {}
        }
    }
}

enum ReadEnd {
    Early(EarlyEnd),
    Version,
}

/// Takes a client from its first byte to a running connection.
pub(crate) async fn serve(core: Arc<Core>, mut stream: Stream, certificate: Option<PeerCertificate>) {
    let mut buffer = BytesMut::new();
    let read =
        tokio::time::timeout(core.config.connect_timeout, read_connect(&mut stream, &mut buffer)).await;
    let connect = match read {
        Ok(Ok(connect)) => connect,
        Ok(Err(ReadEnd::Early(end))) => return core.metrics.early_end(end),
        Ok(Err(ReadEnd::Version)) => return refuse(&core, stream, None, ConnectRefusal::Version),
        Err(_) => return core.metrics.early_end(EarlyEnd::ConnectTimeout),
    };
    let version = connect.version;
    match admit(&core, &connect, certificate) {
        Ok((link, out)) => {
            let opened = Opened {
                link,
                stream,
                version,
                receive_maximum: connect.receive_maximum,
                packet_bytes_max: connect.packet_bytes_max,
                tail: if buffer.is_empty() { BytesMut::new() } else { buffer },
                out,
            };
            tokio::spawn(Connection::new(core, opened));
        }
        Err(refusal) => refuse(&core, stream, Some(version), refusal),
    }
}

fn refuse(core: &Core, stream: Stream, version: Option<Version>, refusal: ConnectRefusal) {
    core.metrics.connect_refused(refusal);
    let mut out = Vec::new();
    encode::connack_refused(&mut out, version, refusal);
    close_with(stream, out);
}

/// Checks a CONNECT and makes its client the one of its name. Gives the CONNACK.
fn admit(
    core: &Arc<Core>,
    connect: &Connect,
    certificate: Option<PeerCertificate>,
) -> Result<(Arc<Link>, Vec<u8>), ConnectRefusal> {
    if core.stopping.load(Ordering::Acquire) {
        return Err(ConnectRefusal::Unavailable);
    }
    if connect.asks_authentication_method {
        return Err(ConnectRefusal::AuthenticationMethod);
    }
    let no_id = connect.client_id.is_empty();
    if connect.client_id.len() > CLIENT_ID_BYTES_MAX
        || (no_id && connect.version == Version::Three && !connect.clean)
    {
        return Err(ConnectRefusal::ClientId);
    }
    let now_us = core.clock.now_us();
    let identity = identity::identify(&core.directory, now_us, certificate, connect.login.as_ref())?;
    let assigned = no_id.then(|| assigned_client_id(core, &identity));
    let name = connection_name(&identity, assigned.as_deref().unwrap_or(&connect.client_id));
    let will = match &connect.will {
        Some(will) => Some(take_will(&identity, &name, will)?),
        None => None,
    };
    let keep_alive_s = keep_alive_s(&core.config, connect);
    // 1.5 keep-alives, rounded up.
    let silence_ticks_max = (u32::from(keep_alive_s) * TICKS_PER_S * 3).div_ceil(2);
    let link = Arc::new(Link::new(name, identity, will, silence_ticks_max, core.tick()));
    core.live.admit(core, &link)?;
    let mut out = Vec::new();
    let limits = Limits {
        receive_maximum: core.config.receive_maximum,
        packet_bytes_max: u32::try_from(core.config.packet_bytes_max).unwrap_or(u32::MAX),
        keep_alive_s,
        assigned_client_id: assigned.as_deref(),
        asks_session: connect.asks_session,
    };
    encode::connack(&mut out, connect.version, &limits);
    Ok((link, out))
}

/// The keep-alive that holds. An MQTT 5 client is told, so it may be shortened; a 3.1.1 client is not.
fn keep_alive_s(config: &Config, connect: &Connect) -> u16 {
    match (connect.version, connect.keep_alive_s) {
        (Version::Three, asked) => asked,
        (Version::Five, 0) => config.keep_alive_s_max,
        (Version::Five, asked) => asked.min(config.keep_alive_s_max),
    }
}

fn assigned_client_id(core: &Core, identity: &Identity) -> String {
    match identity {
        Identity::Device { tenant, device, .. } => format!("{tenant}/{device}"),
        Identity::Integration { .. } => {
            format!("muster-{}", core.next_client_number.fetch_add(1, Ordering::Relaxed))
        }
    }
}

/// A device's will goes to its own `up/death`. A payload that is no envelope (foreign devices) is taken as
/// the reason's text.
fn take_will(identity: &Identity, name: &str, will: &WillAsked) -> Result<Will, ConnectRefusal> {
    if will.qos == 2 {
        return Err(ConnectRefusal::WillQos);
    }
    if will.retain {
        return Err(ConnectRefusal::WillRetain);
    }
    if matches!(identity, Identity::Integration { .. }) || !is_own_death(name, &will.topic) {
        return Err(ConnectRefusal::WillTopic);
    }
    let envelope = Envelope::decode(&will.payload).ok().filter(|each| each.class == UpClass::Death);
    Ok(match envelope {
        Some(envelope) => Will { measured_at_us: envelope.measured_at_us, body: envelope.body.to_vec() },
        None => {
            let mut reason = String::from_utf8_lossy(&will.payload).into_owned();
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            Will { measured_at_us: 0, body: Death { reason }.encode() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_mqtt_5_client_has_its_keep_alive_shortened_since_it_is_told() {
        let check = |version, asked, expect| {
            let connect = Connect {
                version,
                keep_alive_s: asked,
                client_id: String::new(),
                clean: true,
                login: None,
                will: None,
                asks_session: false,
                asks_authentication_method: false,
                receive_maximum: u16::MAX,
                packet_bytes_max: None,
            };
            let config = Config { keep_alive_s_max: 100, ..Config::default() };
            assert_eq!(keep_alive_s(&config, &connect), expect, "{version:?} {asked}");
        };
        check(Version::Five, 100, 100);
        check(Version::Five, 101, 100);
        check(Version::Five, 0, 100);
        check(Version::Three, 101, 101);
        check(Version::Three, 0, 0);
    }
}
