//! What the demo sees of the fleet through the API, and whether all held.

use super::agents::Role;
use crate::http::Client;
use crate::server::Server;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// Alerts on one page of the API.
const ALERTS_PAGE: usize = 500;

/// One device's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceCounts {
    pub(crate) readings: u64,
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
    let totals = api.get(&server.path("ledger"))?;
    let mut sample = read_totals(&totals)?;
    for role in Role::ALL {
        let ledger = api.get(&server.path(&format!("devices/{}/ledger", role.device())))?;
        let device = read_totals(&ledger)?;
        sample.devices.push(DeviceCounts { readings: device.readings, inferences: device.inferences });
    }
    Ok(sample)
}

/// The totals of a ledger's answer: of the tenant, or of one device.
fn read_totals(answer: &Value) -> Result<Sample> {
    let totals = answer.get("totals").unwrap_or(answer);
    let number =
        |name: &str| totals[name].as_u64().with_context(|| format!("the ledger holds no {name}: {totals}"));
    let dropped = match &totals["dropped"] {
        Value::Object(reasons) => reasons.values().filter_map(Value::as_u64).sum(),
        other => other.as_u64().unwrap_or(0),
    };
    Ok(Sample {
        readings: number("readings")?,
        inferences: number("events")?,
        accepted: number("accepted")?,
        stored: number("stored")?,
        dropped,
        pending: number("pending")?,
        lost: number("lost")?,
        duplicated: number("duplicated").or_else(|_| number("duplicates"))?,
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
pub(crate) fn verdicts(sample: &Sample, alerts: &Alerts) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut expect = |what: String, found: u64, held: bool| {
        verdicts.push(Verdict { what, found: found.to_string(), held });
    };
    for (role, counts) in Role::ALL.iter().zip(&sample.devices) {
        expect(format!("readings of {}", role.device()), counts.readings, counts.readings > 0);
        if let Some(model) = role.model() {
            expect(format!("inferences of {model}"), counts.inferences, counts.inferences > 0);
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

    fn totals(lost: u64) -> Value {
        json!({"totals": {"accepted": 9, "stored": 7, "dropped": {"expired": 1, "queue_full": 1}, "pending": 0,
            "lost": lost, "duplicates": 0, "readings": 30, "events": 4}})
    }

    #[test]
    fn totals_are_read_from_both_answers() {
        let sample = read_totals(&totals(0)).unwrap();
        assert_eq!((sample.stored, sample.dropped, sample.readings, sample.inferences), (7, 2, 30, 4));
        assert_eq!(read_totals(&totals(0)["totals"]).unwrap(), sample);
        assert!(read_totals(&json!({"lost": 0})).is_err());
    }

    #[test]
    fn an_alert_counts_once_and_a_loss_fails_the_demo() {
        let mut alerts = Alerts::default();
        alerts.note(&json!({"items": [{"id": "a", "state": "open"}, {"id": "b", "state": "cleared"}]}));
        alerts.note(&json!({"items": [{"id": "a", "state": "resolved", "cleared_at_us": 5}]}));
        assert_eq!((alerts.opened(), alerts.cleared()), (2, 2));

        let counts = DeviceCounts { readings: 3, inferences: 2 };
        let held = |sample: &Sample| verdicts(sample, &alerts).iter().all(|verdict| verdict.held);
        let good = Sample { stored: 7, devices: vec![counts; 3], ..Sample::default() };
        assert!(held(&good));
        assert!(!held(&Sample { lost: 1, ..good.clone() }));
        assert!(!held(&Sample { duplicated: 1, ..good.clone() }));
        assert!(!held(&Sample {
            devices: vec![counts, DeviceCounts { inferences: 0, ..counts }, counts],
            ..good
        }));
    }
}
