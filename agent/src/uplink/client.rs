//! One MQTT 5 connection: the only file that imports the client library.
//!
//! A [`Link`] lives for one connection and is dropped with it, so nothing of an old session can be sent into a
//! new one; what it had in flight is unanswered and the core sends it again. A task drives the library's event
//! loop. Limits: [`super::core::WINDOW`] publishes, incoming packets of 256 KiB, 16 events waiting.

use super::core::WINDOW;
use crate::supervisor::chain;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnectReturnCode, LastWill, Packet, SubscribeReasonCode};
use rumqttc::{
    AsyncClient, Broker, ConnectionError, Event, EventLoop, MqttOptions, PublishNotice, PublishOptions,
    PublishResult, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The longest that TCP, TLS and CONNACK may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest that a clean disconnect waits for answers.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest packet that the server may send.
const INCOMING_BYTES_MAX: u32 = 256 * 1024;
/// Events that wait for the uplink's task, which takes them at once.
const EVENTS_WAITING_MAX: usize = 16;

/// What stays the same over connections.
#[derive(Clone)]
pub(super) struct LinkOptions {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) client_id: String,
    pub(super) keep_alive_s: u16,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) credentials: Option<(String, String)>,
    pub(super) will_topic: String,
    pub(super) subscription: String,
}

/// What happens on a connection.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// CONNACK; the server's packet limit, if it named one.
    Connected { packet_bytes_max: Option<u32> },
    /// The SUBACK, and whether it grants the subscription.
    Subscribed { granted: bool },
    /// A message from the server.
    Received { topic: String, payload: Vec<u8> },
    /// The connection ended or was never made. `refused`: the server does not take this device's certificate, most likely
    /// because its time is over.
    Lost { reason: String, refused: bool },
}

/// How a publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    /// PUBACK with this reason.
    Reason(u8),
    /// No PUBACK will come.
    Lost,
}

/// The library took no more, which ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("the MQTT client takes no request")]
pub(super) struct LinkClosed;

pub(super) struct Link {
    client: AsyncClient,
    driver: JoinHandle<()>,
    events: mpsc::Receiver<LinkEvent>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn mqtt_options(options: &LinkOptions, will: Vec<u8>) -> MqttOptions {
    let broker = Broker::tcp(options.host.clone(), options.port);
    let mut mqtt = MqttOptions::new(options.client_id.clone(), broker);
    if let Some(tls) = &options.tls {
        mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))));
    }
    if let Some((name, password)) = &options.credentials {
        mqtt.set_credentials(name.clone(), password.clone());
    }
    mqtt.set_keep_alive(options.keep_alive_s)
        .set_clean_start(true)
        .set_connect_timeout(CONNECT_TIMEOUT)
        .set_request_channel_capacity(WINDOW + 4)
        .set_max_packet_size(Some(INCOMING_BYTES_MAX))
        .set_last_will(LastWill::new(options.will_topic.clone(), will, QoS::AtLeastOnce, false, None))
        // The library keeps a slot for each: its default of 65,535 costs 14 MiB.
        .set_outgoing_inflight_upper_limit(u16::try_from(WINDOW).unwrap_or(u16::MAX));
    mqtt
}

impl Link {
    /// Begins to connect.
    pub(super) fn open(options: &LinkOptions, will: Vec<u8>) -> Self {
        let (client, event_loop) = AsyncClient::builder(mqtt_options(options, will)).build();
        let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let subscriber = (client.clone(), options.subscription.clone());
        let driver = tokio::spawn(drive(event_loop, subscriber, sender));
        Self { client, driver, events }
    }

    pub(super) async fn next(&mut self) -> LinkEvent {
        let ended = || LinkEvent::Lost { reason: "the connection's task ended".into(), refused: false };
        self.events.recv().await.unwrap_or_else(ended)
    }

    /// Publishes with QoS 1; the future tells the end.
    pub(super) fn publish(
        &self,
        topic: &str,
        payload: Vec<u8>,
    ) -> Result<impl Future<Output = Ack> + Send + use<>, LinkClosed> {
        let options = PublishOptions::at_least_once();
        let notice = self.client.try_publish_tracked(topic, payload, options).map_err(|_| LinkClosed)?;
        Ok(ack(notice))
    }

    /// Publishes with QoS 0: it may be lost with the connection.
    pub(super) fn tell(&self, topic: &str, payload: Vec<u8>) -> Result<(), LinkClosed> {
        self.client.try_publish(topic, payload, PublishOptions::at_most_once()).map_err(|_| LinkClosed)
    }

    /// Sends DISCONNECT once what is in flight is answered, within [`DISCONNECT_TIMEOUT`].
    pub(super) async fn disconnect(mut self) {
        if self.client.try_disconnect_with_timeout(DISCONNECT_TIMEOUT).is_err() {
            return;
        }
        let gone = async { while !matches!(self.next().await, LinkEvent::Lost { .. }) {} };
        if tokio::time::timeout(DISCONNECT_TIMEOUT * 2, gone).await.is_err() {
            tracing::debug!("no clean disconnect in time");
        }
    }
}

async fn ack(notice: PublishNotice) -> Ack {
    match notice.wait_async().await {
        Ok(PublishResult::Qos1(puback)) => Ack::Reason(puback.reason as u8),
        Ok(_) | Err(_) => Ack::Lost,
    }
}

/// Whether the server refused the certificate: by a TLS alert, which comes with the first read, or by its CONNACK.
fn is_refusal(error: &ConnectionError) -> bool {
    if let ConnectionError::ConnectionRefused(code) = error {
        return *code == ConnectReturnCode::NotAuthorized;
    }
    let text = chain(error);
    ["CertificateExpired", "CertificateUnknown", "UnknownCA", "BadCertificate"]
        .iter()
        .any(|alert| text.contains(alert))
        && text.contains("fatal alert")
}

async fn drive(
    mut event_loop: EventLoop,
    (client, subscription): (AsyncClient, String),
    events: mpsc::Sender<LinkEvent>,
) {
    loop {
        let event = match event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                // The server keeps no session: subscribe on every CONNACK.
                if client.try_subscribe(subscription.clone(), QoS::AtLeastOnce).is_err() {
                    tracing::warn!("the subscription could not be sent");
                }
                LinkEvent::Connected { packet_bytes_max: connack.properties.and_then(|p| p.max_packet_size) }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                LinkEvent::Received { topic, payload: publish.payload.to_vec() }
            }
            Ok(Event::Incoming(Packet::SubAck(suback))) => {
                let codes = &suback.return_codes;
                let granted = codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_)));
                if !granted {
                    tracing::warn!(?codes, "the server refused the subscription");
                }
                LinkEvent::Subscribed { granted }
            }
            Ok(Event::Incoming(Packet::Disconnect(disconnect))) => {
                tracing::warn!(reason = ?disconnect.reason_code, "the server disconnects");
                continue;
            }
            Ok(_) => continue,
            Err(ConnectionError::RequestsDone) => {
                LinkEvent::Lost { reason: "disconnected".into(), refused: false }
            }
            Err(error) => LinkEvent::Lost { reason: chain(&error), refused: is_refusal(&error) },
        };
        let lost = matches!(event, LinkEvent::Lost { .. });
        if events.send(event).await.is_err() || lost {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn messages_wait_at_the_socket_while_the_uplink_takes_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = LinkOptions {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
            client_id: "acme/press-7".into(),
            keep_alive_s: 60,
            tls: None,
            credentials: None,
            will_topic: "w".into(),
            subscription: "s".into(),
        };
        let mut link = Link::open(&options, Vec::new());
        let (mut server, _) = listener.accept().await.unwrap();
        // CONNACK, then messages of QoS 0 on the topic `t`, without a body.
        let messages = 5 * EVENTS_WAITING_MAX;
        let bytes = [vec![0x20, 3, 0, 0, 0], [0x30, 4, 0, 1, b't', 0].repeat(messages)].concat();
        server.write_all(&bytes).await.unwrap();
        while link.events.len() < EVENTS_WAITING_MAX {
            tokio::task::yield_now().await;
        }
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(link.events.len(), 16, "the others wait");
        assert!(matches!(link.next().await, LinkEvent::Connected { .. }));
        for _ in 0..messages {
            let event = link.next().await;
            assert!(
                matches!(&event, LinkEvent::Received { topic, payload } if topic == "t" && payload.is_empty()),
                "{event:?}"
            );
        }
    }
}
