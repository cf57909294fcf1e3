//! Decides on a PUBLISH and on a SUBSCRIBE's filters: pure, no IO, no clock.
//!
//! Called by `connection` for each packet. The envelope is decoded, its body never, but for the request for credit,
//! which is for the gateway itself. A device may use its
//! own `up/` to publish and its own `dn/` to subscribe; an integration client may subscribe within its
//! tenant's `up/` and publish nothing.

use super::codec::Publish;
use super::reason::Refusal;
use crate::platform::event_log::{Kind, NewRecord, Origin};
use muster_wire::{CreditRequest, DeviceId, DownClass, Envelope, Leg, TenantId, Topic, UpClass, WireError};

/// The largest SenML pack, in bytes; as much as one telemetry body.
pub(crate) const SENML_BYTES_MAX: usize = muster_wire::TELEMETRY_BYTES_MAX;

/// Bytes of a refused message that its record keeps.
const REJECTED_BYTES_MAX: usize = 4 * 1024;

/// The SUBACK code for a filter that is not the client's to use.
pub(crate) const SUBACK_NOT_AUTHORIZED: u8 = 0x87;
/// The SUBACK code for a filter that does not parse.
pub(crate) const SUBACK_BAD_FILTER: u8 = 0x8F;
/// The SUBACK code for more filters than a client may have.
pub(crate) const SUBACK_QUOTA: u8 = 0x97;
/// The SUBACK code for `$share/`.
pub(crate) const SUBACK_NO_SHARE: u8 = 0x9E;

/// A PUBLISH on a device's own topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted<'a> {
    /// It may go into the log.
    Message(Sealed<'a>),
    /// For `credit`, whatever it is: never into the log.
    Credit(Result<CreditRequest, Refusal>),
}

/// A message whose body nobody looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed<'a> {
    class: UpClass,
    origin: Origin,
    measured_at_us: i64,
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Its topic's class.
    pub(crate) fn class(&self) -> UpClass {
        self.class
    }

    /// Bytes that count against the tenant's quotas: those that the log keeps of it.
    pub(crate) fn bytes(&self) -> u64 {
        self.body.len() as u64
    }

    /// The log's record of it.
    pub(crate) fn record(&self, tenant: &'a TenantId, device: &'a DeviceId, qos: u8) -> NewRecord<'a> {
        NewRecord {
            kind: Kind::Message,
            tenant: tenant.as_str(),
            device: device.as_str(),
            class: self.class.number(),
            qos,
            origin: self.origin,
            measured_at_us: self.measured_at_us,
            body: self.body,
        }
    }
}

/// The log's record of a refused PUBLISH of class number `class`, 0 where its topic has none.
pub(crate) fn rejected<'a>(
    tenant: &'a TenantId,
    device: &'a DeviceId,
    class: u8,
    publish: &'a Publish,
    refusal: Refusal,
) -> NewRecord<'a> {
    NewRecord {
        kind: Kind::Rejected { reason: refusal.code() },
        tenant: tenant.as_str(),
        device: device.as_str(),
        class,
        qos: publish.qos,
        origin: Origin::Direct,
        measured_at_us: 0,
        body: &publish.payload[..publish.payload.len().min(REJECTED_BYTES_MAX)],
    }
}

/// The class of a device's own `up/` topic. The usual case takes two comparisons, no parse.
pub(crate) fn own_class(name: &str, topic: &[u8]) -> Result<UpClass, Refusal> {
    let own = topic
        .strip_prefix(b"muster/")
        .and_then(|rest| rest.strip_prefix(name.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b"/up/"))
        .and_then(|class| UpClass::ALL.into_iter().find(|known| known.as_str().as_bytes() == class));
    if let Some(class) = own {
        return Ok(class);
    }
    let text = std::str::from_utf8(topic).map_err(|_| Refusal::BadTopic)?;
    Topic::parse(text).map_err(|_| Refusal::BadTopic)?;
    Err(Refusal::ForeignTopic)
}

/// Checks a device's PUBLISH. `name` is `tenant/device`.
///
/// # Errors
/// Why it may not go into the log.
pub(crate) fn admit<'a>(name: &str, topic: &[u8], payload: &'a [u8]) -> Result<Admitted<'a>, Refusal> {
    let class = own_class(name, topic)?;
    if class == UpClass::Senml {
        if payload.len() > SENML_BYTES_MAX {
            return Err(Refusal::BadPayload);
        }
        let sealed = Sealed { class, origin: Origin::Direct, measured_at_us: 0, body: payload };
        return Ok(Admitted::Message(sealed));
    }
    let envelope = opened(class, payload);
    if class == UpClass::Credit {
        return Ok(Admitted::Credit(envelope.and_then(|envelope| credit_request(&envelope))));
    }
    let envelope = envelope?;
    let origin = origin(&envelope)?;
    let Envelope { measured_at_us, body, .. } = envelope;
    Ok(Admitted::Message(Sealed { class, origin, measured_at_us, body }))
}

/// The envelope, where it is one and of the topic's class.
fn opened(class: UpClass, payload: &[u8]) -> Result<Envelope<'_>, Refusal> {
    let envelope = Envelope::decode(payload).map_err(|error| match error {
        WireError::Version(_) => Refusal::UnknownVersion,
        WireError::TooLarge { .. } | WireError::Malformed { .. } | WireError::Rule { .. } => {
            Refusal::BadPayload
        }
    })?;
    if envelope.class == class { Ok(envelope) } else { Err(Refusal::BadPayload) }
}

fn credit_request(envelope: &Envelope<'_>) -> Result<CreditRequest, Refusal> {
    origin(envelope)?;
    CreditRequest::decode(envelope.body).map_err(|_| Refusal::BadPayload)
}

/// Telemetry and events are records of a queue; birth, state and death are not; the rest may be either.
fn origin(envelope: &Envelope<'_>) -> Result<Origin, Refusal> {
    let (queue_id, seq) = (envelope.queue_id.0, envelope.seq);
    let (may_queue, may_direct) = match envelope.class {
        UpClass::Telemetry | UpClass::Event => (true, false),
        UpClass::Birth | UpClass::State | UpClass::Death | UpClass::Credit => (false, true),
        UpClass::Result | UpClass::Ota | UpClass::Log | UpClass::Senml => (true, true),
    };
    match (queue_id != 0, seq != 0) {
        (true, true) if may_queue => Ok(Origin::Queue { queue_id, seq }),
        (false, false) if may_direct => Ok(Origin::Direct),
        _ => Err(Refusal::BadPayload),
    }
}

/// What an integration client follows: `None` stands for `+` or, as the class, for `#`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpFilter {
    device: Option<DeviceId>,
    class: Option<UpClass>,
    path: Box<str>,
}

impl UpFilter {
    /// Parses `muster/{tenant}/{device|+}/up/{class|+|#}` for the client's own tenant.
    ///
    /// # Errors
    /// The SUBACK code.
    pub(crate) fn parse(tenant: &TenantId, path: &str) -> Result<Self, u8> {
        check_filter(path)?;
        let levels: Vec<&str> = path.split('/').collect();
        let ["muster", of_tenant, device, "up", class] = levels[..] else {
            return Err(SUBACK_NOT_AUTHORIZED);
        };
        if of_tenant != tenant.as_str() {
            return Err(SUBACK_NOT_AUTHORIZED);
        }
        let device = match device {
            "+" => None,
            id => Some(DeviceId::parse(id).map_err(|_| SUBACK_BAD_FILTER)?),
        };
        let class = match class {
            "+" | "#" => None,
            text => {
                let known = UpClass::ALL.into_iter().find(|known| known.as_str() == text);
                // Requests for credit end at the gateway: who follows them would wait for ever.
                Some(known.filter(|class| *class != UpClass::Credit).ok_or(SUBACK_NOT_AUTHORIZED)?)
            }
        };
        Ok(Self { device, class, path: path.into() })
    }

    /// Whether a message of the client's tenant is followed.
    pub(crate) fn matches(&self, device: &str, class: UpClass) -> bool {
        self.device.as_ref().is_none_or(|id| id.as_str() == device)
            && self.class.is_none_or(|known| known == class)
    }

    /// Whether it was asked for with this text.
    pub(crate) fn is(&self, path: &str) -> bool {
        &*self.path == path
    }
}

/// The classes of a device's own `dn/` that a filter covers, as bits in the order of `DownClass::ALL`.
///
/// # Errors
/// The SUBACK code.
pub(crate) fn down_classes(name: &str, path: &str) -> Result<u8, u8> {
    check_filter(path)?;
    let own = path
        .strip_prefix("muster/")
        .and_then(|rest| rest.strip_prefix(name))
        .and_then(|rest| rest.strip_prefix("/dn/"));
    let Some(class) = own else { return Err(SUBACK_NOT_AUTHORIZED) };
    if class == "+" || class == "#" {
        return Ok((1 << DownClass::ALL.len()) - 1);
    }
    let known = DownClass::ALL.iter().position(|known| known.as_str() == class);
    known.map(|at| 1 << at).ok_or(SUBACK_NOT_AUTHORIZED)
}

/// The bit of a class in [`down_classes`].
pub(crate) fn down_bit(class: DownClass) -> u8 {
    let at = DownClass::ALL.iter().position(|known| *known == class);
    1 << at.expect("ALL holds every class")
}

/// The protocol's rules for any filter, and ours: no shares.
fn check_filter(path: &str) -> Result<(), u8> {
    if path.starts_with("$share/") || path == "$share" {
        return Err(SUBACK_NO_SHARE);
    }
    if path.is_empty() || path.contains('\0') {
        return Err(SUBACK_BAD_FILTER);
    }
    let last = path.split('/').count() - 1;
    for (at, level) in path.split('/').enumerate() {
        let wildcard = level.contains(['+', '#']);
        if wildcard && (level.len() != 1 || (level == "#" && at != last)) {
            return Err(SUBACK_BAD_FILTER);
        }
    }
    Ok(())
}

/// Whether a topic is a device's own topic for wills.
pub(crate) fn is_own_death(name: &str, topic: &[u8]) -> bool {
    own_class(name, topic) == Ok(UpClass::Death)
}

/// The down topic's text.
pub(crate) fn down_topic(name: &str, class: DownClass) -> String {
    format!("muster/{name}/dn/{}", class.as_str())
}

/// The up topic's text.
pub(crate) fn up_topic(tenant: &str, device: &str, class: UpClass) -> Option<String> {
    let (tenant, device) = (TenantId::parse(tenant).ok()?, DeviceId::parse(device).ok()?);
    let topic = Topic::up(&tenant, &device, class);
    debug_assert_eq!(topic.leg(), Leg::Up(class));
    Some(topic.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_wire::QueueId;

    fn envelope(class: UpClass, queue_id: u64, seq: u64) -> Vec<u8> {
        Envelope { class, queue_id: QueueId(queue_id), seq, measured_at_us: 5, body: b"sealed" }.encode()
    }

    fn check(topic: &str, payload: &[u8], expect: Result<UpClass, Refusal>) {
        let admitted = admit("acme/pump", topic.as_bytes(), payload);
        let class = admitted.map(|admitted| match admitted {
            Admitted::Message(sealed) => sealed.class,
            Admitted::Credit(_) => UpClass::Credit,
        });
        assert_eq!(class, expect, "{topic}");
    }

    #[test]
    fn a_device_publishes_below_its_own_up_only() {
        for class in UpClass::ALL {
            let queued = matches!(class, UpClass::Telemetry | UpClass::Event);
            let payload = envelope(class, u64::from(queued), u64::from(queued));
            check(&format!("muster/acme/pump/up/{}", class.as_str()), &payload, Ok(class));
            check(&format!("muster/acme/pump2/up/{}", class.as_str()), &payload, Err(Refusal::ForeignTopic));
            check(&format!("muster/acm/pump/up/{}", class.as_str()), &payload, Err(Refusal::ForeignTopic));
        }
        let payload = envelope(UpClass::Telemetry, 1, 1);
        for class in DownClass::ALL {
            check(&format!("muster/acme/pump/dn/{}", class.as_str()), &payload, Err(Refusal::ForeignTopic));
        }
        for bad in [
            "",
            "muster",
            "muster/acme/pump/up",
            "muster/acme/pump/up/nothing",
            "muster/acme/pump/up/telemetry/x",
            "muster/acme/+/up/telemetry",
            "muster/acme/pump/up/#",
            "$share/g/muster/acme/pump/up/telemetry",
            "$SYS/broker",
            "/muster/acme/pump/up/telemetry",
            "éclair",
            "muster/acme/é/up/telemetry",
        ] {
            check(bad, &payload, Err(Refusal::BadTopic));
        }
        assert_eq!(admit("acme/pump", &[0xFF, 0xFE], &payload), Err(Refusal::BadTopic));
    }

    #[test]
    fn an_envelope_must_fit_its_topic_and_be_of_a_queue_where_its_class_is() {
        let telemetry = "muster/acme/pump/up/telemetry";
        check(telemetry, &envelope(UpClass::Event, 1, 1), Err(Refusal::BadPayload));
        check(telemetry, &envelope(UpClass::Telemetry, 0, 0), Err(Refusal::BadPayload));
        check(telemetry, &envelope(UpClass::Telemetry, 1, 0), Err(Refusal::BadPayload));
        check(telemetry, &envelope(UpClass::Telemetry, 0, 1), Err(Refusal::BadPayload));
        check("muster/acme/pump/up/state", &envelope(UpClass::State, 1, 1), Err(Refusal::BadPayload));
        check(telemetry, b"not cbor", Err(Refusal::BadPayload));
        check(telemetry, &[], Err(Refusal::BadPayload));
        let mut newer = envelope(UpClass::Telemetry, 1, 1);
        newer[1] = 2;
        check(telemetry, &newer, Err(Refusal::UnknownVersion));
        check("muster/acme/pump/up/senml", b"[]", Ok(UpClass::Senml));
        check("muster/acme/pump/up/senml", &vec![b' '; SENML_BYTES_MAX], Ok(UpClass::Senml));
        check("muster/acme/pump/up/senml", &vec![b' '; SENML_BYTES_MAX + 1], Err(Refusal::BadPayload));
    }

    #[test]
    fn a_request_for_credit_is_opened_and_never_admitted_to_the_log() {
        let request = CreditRequest { backlog: 60 };
        let payload = |class, queue_id: u64, body: &[u8]| {
            let (queue_id, seq) = (QueueId(queue_id), u64::from(queue_id != 0));
            Envelope { class, queue_id, seq, measured_at_us: 5, body }.encode()
        };
        let mut newer = payload(UpClass::Credit, 0, &request.encode());
        newer[1] = 2;
        for (payload, expect) in [
            (payload(UpClass::Credit, 0, &request.encode()), Ok(request)),
            (payload(UpClass::Credit, 1, &request.encode()), Err(Refusal::BadPayload)),
            (payload(UpClass::State, 0, &request.encode()), Err(Refusal::BadPayload)),
            (payload(UpClass::Credit, 0, &CreditRequest { backlog: 0 }.encode()), Err(Refusal::BadPayload)),
            (payload(UpClass::Credit, 0, &[0xA1; 100]), Err(Refusal::BadPayload)),
            (request.encode(), Err(Refusal::BadPayload)),
            (Vec::new(), Err(Refusal::BadPayload)),
            (newer, Err(Refusal::UnknownVersion)),
        ] {
            let admitted = admit("acme/pump", b"muster/acme/pump/up/credit", &payload);
            assert_eq!(admitted, Ok(Admitted::Credit(expect)));
        }
        let payload = payload(UpClass::Credit, 0, &request.encode());
        check("muster/acme/fan/up/credit", &payload, Err(Refusal::ForeignTopic));
    }

    #[test]
    fn a_device_subscribes_to_its_own_dn_only() {
        for (path, expect) in [
            ("muster/acme/pump/dn/#", Ok(0b1111)),
            ("muster/acme/pump/dn/+", Ok(0b1111)),
            ("muster/acme/pump/dn/twin", Ok(0b0001)),
            ("muster/acme/pump/dn/credit", Ok(0b1000)),
            ("muster/acme/pump/dn/unknown", Err(SUBACK_NOT_AUTHORIZED)),
            ("muster/acme/pump/up/telemetry", Err(SUBACK_NOT_AUTHORIZED)),
            ("muster/acme/other/dn/#", Err(SUBACK_NOT_AUTHORIZED)),
            ("muster/acme/+/dn/twin", Err(SUBACK_NOT_AUTHORIZED)),
            ("#", Err(SUBACK_NOT_AUTHORIZED)),
            ("$share/g/muster/acme/pump/dn/#", Err(SUBACK_NO_SHARE)),
            ("muster/acme/pump/dn/#/x", Err(SUBACK_BAD_FILTER)),
            ("muster/acme/pump/dn/tw+", Err(SUBACK_BAD_FILTER)),
            ("", Err(SUBACK_BAD_FILTER)),
        ] {
            assert_eq!(down_classes("acme/pump", path), expect, "{path}");
        }
    }

    #[test]
    fn an_integration_subscribes_within_its_tenants_up_only() {
        let tenant = TenantId::parse("acme").unwrap();
        for path in ["muster/acme/+/up/#", "muster/acme/+/up/+", "muster/acme/pump/up/telemetry"] {
            let filter = UpFilter::parse(&tenant, path).unwrap();
            assert!(filter.matches("pump", UpClass::Telemetry), "{path}");
        }
        let narrow = UpFilter::parse(&tenant, "muster/acme/pump/up/event").unwrap();
        assert!(!narrow.matches("pump", UpClass::Telemetry) && !narrow.matches("other", UpClass::Event));
        for (path, code) in [
            ("muster/other/+/up/#", SUBACK_NOT_AUTHORIZED),
            ("muster/+/+/up/#", SUBACK_NOT_AUTHORIZED),
            ("muster/acme/+/dn/#", SUBACK_NOT_AUTHORIZED),
            ("muster/acme/#", SUBACK_NOT_AUTHORIZED),
            ("#", SUBACK_NOT_AUTHORIZED),
            ("muster/acme/+/up/nothing", SUBACK_NOT_AUTHORIZED),
            ("muster/acme/+/up/credit", SUBACK_NOT_AUTHORIZED),
            ("$share/g/muster/acme/+/up/#", SUBACK_NO_SHARE),
            ("muster/acme/é/up/#", SUBACK_BAD_FILTER),
        ] {
            assert_eq!(UpFilter::parse(&tenant, path), Err(code), "{path}");
        }
    }
}
