//! A load simulation: devices with profiles and faults against a server, and what must hold afterwards.

mod faults;
mod order;
mod part;
mod profile;
