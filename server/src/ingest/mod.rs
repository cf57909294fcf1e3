//! Consumers of the event log: store writer, ledger, rules, live stream, retention.
