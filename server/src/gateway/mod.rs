//! The MQTT front: identify, authorise, limit, append, acknowledge after the fsync.
