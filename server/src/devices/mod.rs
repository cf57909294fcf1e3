//! Devices: registry, claims, certificates, tokens, the in-memory directory.

pub mod directory;
