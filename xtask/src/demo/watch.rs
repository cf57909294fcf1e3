//! What the demo sees of the fleet through the API, and whether all held.

use super::agents::Role;
use crate::http::Client;
use crate::server::Server;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// Alerts on one page of the API.
const ALERTS_PAGE: usize = 500;

/// One device's part: stored records by class. An event record is one inference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceCounts {
    pub(crate) telemetry: u64,
    pub(crate) inferences: u64,
}

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) readings: u64,
    pub(crate) inferences: u64,
    pub(crate) accepted: u64,
    pub(crate) stored: u64,
    pub(crate) dropped: u64,
    pub(crate) pending: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) devices: Vec<DeviceCounts>,
}

/// Alerts seen so far; each is counted once, however long it stays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alerts {
    opened: BTreeSet<String>,
    cleared: BTreeSet<String>,
}

impl Alerts {
    pub(crate) fn opened(&self) -> usize {
        self.opened.len()
    }

    pub(crate) fn cleared(&self) -> usize {
        self.cleared.len()
    }

    fn note(&mut self, page: &Value) {
        for alert in page["items"].as_array().into_iter().flatten() {
            let Some(id) = alert["id"].as_str() else { continue };
            self.opened.insert(id.to_owned());
            if alert["state"] == "cleared" || alert["cleared_at_us"].is_i64() {
                self.cleared.insert(id.to_owned());
            }
        }
    }
}

/// Reads the ledger and the alerts.
///
/// # Errors
/// The API does not answer.
pub(crate) fn look(server: &Server, api: &mut Client, alerts: &mut Alerts) -> Result<Sample> {
    alerts.note(&api.get(&server.path(&format!("alerts?limit={ALERTS_PAGE}")))?);
    let mut sample = read_totals(&api.get(&server.path("ledger"))?)?;
    for role in Role::ALL {
        let ledger = api.get(&server.path(&format!("devices/{}/ledger", role.device())))?;
        let stored = |class| stored_of_class(&ledger, class);
        sample.devices.push(DeviceCounts { telemetry: stored("telemetry"), inferences: stored("event") });
    }
    Ok(sample)
}

/// Records of one class that a device's ledger has stored: open queues and merged ones.
pub(crate) fn stored_of_class(ledger: &Value, class: &str) -> u64 {
    let queues = ledger["queues"].as_array().into_iter().flatten().filter(|queue| queue["class"] == class);
    let open: u64 = queues.filter_map(|queue| queue["stored"].as_u64()).sum();
    open + ledger["merged"][class]["stored"].as_u64().unwrap_or(0)
}

/// The model of a device's newest inference.
///
/// # Errors
/// The API does not answer.
pub(crate) fn newest_model(server: &Server, api: &mut Client, role: Role) -> Result<Option<String>> {
    let events = api.get(&server.path(&format!("events?device={}&limit=1", role.device())))?;
    Ok(events["items"][0]["model"].as_str().map(str::to_owned))
}

/// The totals of a tenant's ledger.
fn read_totals(totals: &Value) -> Result<Sample> {
    let number =
        |name: &str| totals[name].as_u64().with_context(|| format!("the ledger holds no {name}: {totals}"));
    let reasons = totals["dropped"].as_object().context("the ledger holds no dropped")?;
    Ok(Sample {
        readings: number("readings")?,
        inferences: number("events")?,
        accepted: number("accepted")?,
        stored: number("stored")?,
        dropped: reasons.values().filter_map(Value::as_u64).sum(),
        pending: number("pending")?,
        lost: number("lost")?,
        duplicated: number("duplicated")?,
        devices: Vec::new(),
    })
}

/// One expectation of the demo.
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) found: String,
    pub(crate) held: bool,
}

/// Compares what was seen with what the demo promises.
/// `models` are those of the devices' newest inferences.
pub(crate) fn verdicts(sample: &Sample, models: &[Option<String>], alerts: &Alerts) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut expect = |what: String, found: u64, held: bool| {
        verdicts.push(Verdict { what, found: found.to_string(), held });
    };
    for ((role, counts), newest) in Role::ALL.iter().zip(&sample.devices).zip(models) {
        expect(format!("readings of {}, records", role.device()), counts.telemetry, counts.telemetry > 0);
        if let Some(model) = role.model() {
            let held = counts.inferences > 0 && newest.as_deref() == Some(model);
            expect(format!("inferences of {model}"), counts.inferences, held);
        }
    }
    expect("alerts opened".to_owned(), alerts.opened() as u64, alerts.opened() > 0);
    expect("alerts cleared".to_owned(), alerts.cleared() as u64, alerts.cleared() > 0);
    expect("records stored".to_owned(), sample.stored, sample.stored > 0);
    expect("records dropped".to_owned(), sample.dropped, sample.dropped == 0);
    expect("records lost".to_owned(), sample.lost, sample.lost == 0);
    expect("records duplicated".to_owned(), sample.duplicated, sample.duplicated == 0);
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_are_read_from_ledgers() {
        let totals = json!({"accepted": 9, "stored": 7, "dropped": {"expired": 1, "queue_full": 1}, "pending": 0,
            "lost": 0, "duplicated": 0, "readings": 30, "events": 4});
        let sample = read_totals(&totals).unwrap();
        assert_eq!((sample.stored, sample.dropped, sample.readings, sample.inferences), (7, 2, 30, 4));
        assert!(read_totals(&json!({"lost": 0})).is_err());

        let queue = |class: &str, stored: u64| json!({ "class": class, "stored": stored });
        let ledger = json!({
            "queues": [queue("telemetry", 2), queue("event", 5), queue("telemetry", 3)],
            "merged": { "telemetry": { "stored": 10 } }
        });
        assert_eq!((stored_of_class(&ledger, "telemetry"), stored_of_class(&ledger, "event")), (15, 5));
    }

    #[test]
    fn an_alert_counts_once_and_a_loss_fails_the_demo() {
        let mut alerts = Alerts::default();
        alerts.note(&json!({"items": [{"id": "a", "state": "open"}, {"id": "b", "state": "cleared"}]}));
        alerts.note(&json!({"items": [{"id": "a", "state": "resolved", "cleared_at_us": 5}]}));
        assert_eq!((alerts.opened(), alerts.cleared()), (2, 2));

        let counts = DeviceCounts { telemetry: 3, inferences: 2 };
        let models = Role::ALL.map(|role| role.model().map(str::to_owned));
        let held = |sample: &Sample| verdicts(sample, &models, &alerts).iter().all(|verdict| verdict.held);
        let good = Sample { stored: 7, devices: vec![counts; 3], ..Sample::default() };
        assert!(held(&good));
        assert!(!held(&Sample { lost: 1, ..good.clone() }));
        assert!(!held(&Sample { duplicated: 1, ..good.clone() }));
        let silent = DeviceCounts { inferences: 0, ..counts };
        assert!(!held(&Sample { devices: vec![counts, silent, counts], ..good.clone() }));
        let other = [None, models[2].clone(), models[1].clone()];
        assert!(!verdicts(&good, &other, &alerts).iter().all(|verdict| verdict.held));
    }
}
