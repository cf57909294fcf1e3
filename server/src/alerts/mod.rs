//! Alerts: rows opened by rules, acknowledged and resolved by people.
