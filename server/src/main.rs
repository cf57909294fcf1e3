//! `muster-server`: command line of the fleet server.
fn main() {}
