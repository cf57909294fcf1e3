//! Reports of runs: their JSON, and what is made of it.
//!
//! Called by `run`, which fills a [`model::Report`] and saves it, and by the command line ([`commands`]), which
//! draws, compares, checks and extrapolates reports that were saved. Promise: a report of another version, a broken
//! one or one beyond a bound is refused with its file and field; the pages need no network and hold no script.
//! Limits: [`store::REPORT_BYTES_MAX`] a file, [`commands::REPORTS_MAX`] files at once, [`model::SAMPLES_MAX`]
//! samples, [`store::FAULTS_MAX`] faults; a drawn line has at most [`svg::POINTS_MAX`] points.

pub mod capacity;
pub mod check;
pub mod commands;
pub mod compare;
mod figures;
pub mod html;
mod json;
pub mod model;
mod setups;
mod stats;
pub mod store;
pub mod svg;
mod units;

#[cfg(test)]
mod synthetic;
