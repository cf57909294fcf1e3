//! The gateway in process, on ephemeral loopback ports, against a raw-socket client of both versions and
//! against mosquitto's clients.

mod bad_input;
mod flow;
mod full;
mod kit;
mod mosquitto;
mod tls;
mod topics;
