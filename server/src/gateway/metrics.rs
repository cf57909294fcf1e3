//! The gateway's counters, by reason from the closed sets of `reason`. No label names a device.

use super::credit::{Asked, Cut};
use super::publish::{SUBACK_BAD_FILTER, SUBACK_NO_SHARE, SUBACK_NOT_AUTHORIZED, SUBACK_QUOTA};
use super::reason::{CloseReason, ConnectRefusal, EarlyEnd, Refusal};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// How a PUBLISH that was not refused ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Taken {
    /// Appended; acknowledged when durable.
    AtLeastOnce,
    /// Appended, QoS 0.
    AtMostOnce,
    /// QoS 0 that found the log full: gone.
    Dropped,
}

/// What became of a message to a subscriber or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sent {
    /// Written to a subscriber's connection.
    Written,
    /// The subscriber's queue was full.
    Overflow,
    /// Larger than the client accepts.
    TooLarge,
}

/// Counters of one gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    /// Connections past their CONNACK.
    pub(crate) connections: IntGauge,
    /// CONNECTs accepted.
    pub(crate) connects: IntCounter,
    /// PUBLISHes that waited because the log was full or the sender too fast.
    pub(crate) stalls: IntCounter,
    /// Log positions that the fan-out to subscribers never saw: deleted before it came to them, or damaged.
    /// All subscribers of the time were disconnected.
    pub(crate) fanout_skipped: IntCounter,
    /// Presence and will records given up because the log stayed full.
    pub(crate) records_lost: IntCounter,
    /// Panics caught in the codec; each is a fault worth a look.
    pub(crate) codec_panics: IntCounter,
    /// Errors of accept, such as no file descriptor left.
    pub(crate) accept_errors: IntCounter,
    /// Links that wait for credit.
    pub(crate) credit_waiting: IntGauge,
    /// Backlog records a second that the fleet may send.
    pub(crate) credit_budget: IntGauge,
    /// Backlog records granted.
    pub(crate) credit_granted: IntCounter,
    credit_requests: [IntCounter; 5],
    credit_cuts: [IntCounter; 4],
    connect_refusals: Vec<IntCounter>,
    early_ends: Vec<IntCounter>,
    closes: Vec<IntCounter>,
    refusals: Vec<IntCounter>,
    refusals_qos_zero: Vec<IntCounter>,
    taken: [IntCounter; 3],
    sent: [IntCounter; 3],
    granted: IntCounter,
    subscribes_refused: [IntCounter; 4],
}

/// SUBACK codes that refuse, with their labels.
pub(crate) const SUBACKS: [(u8, &str); 4] = [
    (SUBACK_NOT_AUTHORIZED, "not_authorized"),
    (SUBACK_BAD_FILTER, "bad_filter"),
    (SUBACK_QUOTA, "quota"),
    (SUBACK_NO_SHARE, "share"),
];

fn family(registry: &Registry, name: &str, help: &str) -> Result<IntCounterVec, prometheus::Error> {
    let vec = IntCounterVec::new(Opts::new(name, help), &["reason"])?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn single(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// A name that is registered already.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let refused = family(registry, "gateway_connects_refused_total", "CONNECTs refused")?;
        let early = family(registry, "gateway_early_ends_total", "sockets that ended before a CONNECT")?;
        let closes = family(registry, "gateway_disconnects_total", "MQTT connections ended")?;
        let publishes = family(registry, "gateway_publishes_refused_total", "QoS 1 PUBLISHes refused")?;
        let zero =
            family(registry, "gateway_qos0_refused_total", "QoS 0 PUBLISHes refused, unknown to the sender")?;
        let taken = family(registry, "gateway_publishes_total", "PUBLISHes not refused")?;
        let subscribes = family(registry, "gateway_subscribes_total", "filters of SUBSCRIBEs, by answer")?;
        let sent = family(registry, "gateway_sent_total", "messages to subscribers and devices")?;
        let asked = family(registry, "gateway_credit_requests_total", "requests for credit")?;
        let cuts = family(registry, "gateway_credit_cuts_total", "cuts of the credit budget")?;
        Ok(Self {
            connections: gauge(registry, "gateway_connections", "MQTT connections past their CONNACK")?,
            connects: single(registry, "gateway_connects_total", "CONNECTs accepted")?,
            fanout_skipped: single(
                registry,
                "gateway_fanout_skipped_positions_total",
                "Log positions that subscribers were never sent",
            )?,
            stalls: single(registry, "gateway_stalls_total", "PUBLISHes that had to wait for room or rate")?,
            records_lost: single(
                registry,
                "gateway_presence_lost_total",
                "presence and will records given up",
            )?,
            codec_panics: single(registry, "gateway_codec_panics_total", "panics caught in the codec")?,
            accept_errors: single(registry, "gateway_accept_errors_total", "errors of accept")?,
            credit_waiting: gauge(registry, "gateway_credit_waiting", "devices that wait for credit")?,
            credit_budget: gauge(registry, "gateway_credit_budget", "backlog records a second, all devices")?,
            credit_granted: single(registry, "gateway_credit_granted_total", "backlog records granted")?,
            credit_requests: Asked::ALL.map(|each| asked.with_label_values(&[each.label()])),
            credit_cuts: Cut::ALL.map(|each| cuts.with_label_values(&[each.label()])),
            connect_refusals: ConnectRefusal::ALL
                .map(|each| refused.with_label_values(&[each.label()]))
                .to_vec(),
            early_ends: EarlyEnd::ALL.map(|each| early.with_label_values(&[each.label()])).to_vec(),
            closes: CloseReason::ALL.iter().map(|each| closes.with_label_values(&[each.label()])).collect(),
            refusals: Refusal::ALL.map(|each| publishes.with_label_values(&[each.label()])).to_vec(),
            refusals_qos_zero: Refusal::ALL.map(|each| zero.with_label_values(&[each.label()])).to_vec(),
            taken: ["qos_1", "qos_0", "qos_0_dropped"].map(|label| taken.with_label_values(&[label])),
            granted: subscribes.with_label_values(&["granted"]),
            subscribes_refused: SUBACKS.map(|(_, label)| subscribes.with_label_values(&[label])),
            sent: ["written", "overflow", "too_large"].map(|label| sent.with_label_values(&[label])),
        })
    }

    pub(crate) fn connect_refused(&self, reason: ConnectRefusal) {
        self.connect_refusals[reason as usize].inc();
    }

    pub(crate) fn early_end(&self, reason: EarlyEnd) {
        self.early_ends[reason as usize].inc();
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        let at = CloseReason::ALL.iter().position(|each| *each == reason);
        self.closes[at.expect("ALL holds every reason")].inc();
    }

    pub(crate) fn refused(&self, reason: Refusal, qos: u8) {
        let family = if qos == 0 { &self.refusals_qos_zero } else { &self.refusals };
        let at = Refusal::ALL.iter().position(|each| *each == reason);
        family[at.expect("ALL holds every refusal")].inc();
    }

    #[cfg(test)]
    pub(crate) fn refused_for_test(&self, refusal: Refusal) -> u64 {
        let at = Refusal::ALL.iter().position(|each| *each == refusal);
        self.refusals[at.expect("ALL holds every refusal")].get()
    }

    pub(crate) fn taken(&self, how: Taken) {
        self.taken[how as usize].inc();
    }

    pub(crate) fn subscribed(&self, code: u8) {
        match SUBACKS.iter().position(|(known, _)| *known == code) {
            Some(at) => self.subscribes_refused[at].inc(),
            None => self.granted.inc(),
        }
    }

    pub(crate) fn sent(&self, how: Sent) {
        self.sent[how as usize].inc();
    }

    pub(crate) fn credit_asked(&self, end: Asked) {
        self.credit_requests[end as usize].inc();
    }

    pub(crate) fn credit_cut(&self, reason: Cut) {
        self.credit_cuts[reason as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_under_its_own_label() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        ConnectRefusal::ALL.iter().for_each(|each| metrics.connect_refused(*each));
        EarlyEnd::ALL.iter().for_each(|each| metrics.early_end(*each));
        CloseReason::ALL.iter().for_each(|each| metrics.closed(*each));
        Asked::ALL.iter().for_each(|each| metrics.credit_asked(*each));
        Cut::ALL.iter().for_each(|each| metrics.credit_cut(*each));
        Refusal::ALL.iter().for_each(|each| {
            metrics.refused(*each, 0);
            metrics.refused(*each, 1);
        });
        for family in registry.gather().iter().filter(|family| family.get_metric()[0].get_label().len() == 1)
        {
            let name = family.name();
            if ["gateway_publishes_total", "gateway_sent_total", "gateway_subscribes_total"].contains(&name) {
                continue;
            }
            for metric in family.get_metric() {
                assert_eq!(metric.get_counter().get_value(), 1.0, "{name} {:?}", metric.get_label());
            }
        }
    }
}
