//! Metrics registry and logging.
