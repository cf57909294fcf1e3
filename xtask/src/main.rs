//! Project commands: `cargo xtask demo | test | api | tidy | bench | gen | trials | arm`.
//!
//! Developers and `.ci/run` call it; it calls cargo and the real binaries, never the product's crates.
//! Every child process is started, watched and ended by its own id.

mod api;
mod arm;
mod bench;
mod cargo;
mod demo;
mod generate;
mod http;
mod process;
mod recipe;
mod server;
mod test;
mod tidy;
mod trials;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Muster's project commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A server and three agents on this machine, with real data, models, rules and alerts.
    Demo(demo::Arguments),
    /// Measure the figures that the project promises; needs minutes to build, and a quiet machine.
    Bench(bench::Arguments),
    /// Make files from the code: the OpenAPI document.
    Gen(generate::Arguments),
    /// Power cuts, kills and network cuts from many seeds.
    Trials(trials::Arguments),
    /// Run every test: builds the real binaries first, ends with the skipped tests and the runner's summary.
    Test(test::Arguments),
    /// Check a running server's API against its OpenAPI document with schemathesis.
    Api(api::Arguments),
    /// Build the agent for ARM and run it, and the kernels' tests, under emulation; fetches 220 MB the first time.
    Arm(arm::Arguments),
    /// Check what the compiler does not: layering, lengths, banned words, stray files.
    Tidy(tidy::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Gen(arguments) => generate::run(&arguments),
        Command::Trials(arguments) => trials::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Api(arguments) => api::run(&arguments),
        Command::Arm(arguments) => arm::run(&arguments),
        Command::Tidy(arguments) => tidy::run(&arguments),
    };
    report(outcome)
}

/// A command answers whether all held; an error is a command that could not finish.
fn report(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
