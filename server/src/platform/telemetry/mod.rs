//! The telemetry store: readings, events, ledger and the store cursor in one commit.
