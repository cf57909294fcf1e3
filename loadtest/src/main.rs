//! `muster-loadtest`: the command line of the load generator.

use clap::{Parser, Subcommand};
use muster_loadtest::enrol::{self, EnrolArgs};
use muster_loadtest::report::commands;
use muster_loadtest::simulation::RunArgs;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    version,
    about = "Many MQTT devices in one process; the last line of a measurement's output is JSON"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and clap flattens no box")]
enum Command {
    #[command(flatten)]
    Bench(muster_loadtest::Command),
    /// A load simulation: a fleet with profiles and faults, and what must hold afterwards.
    Run(Box<RunArgs>),
    Enrol(EnrolArgs),
    /// One sending process of a run; started by `run`.
    #[command(hide = true)]
    RunPart,
    #[command(flatten)]
    Report(commands::Command),
}

fn main() -> ExitCode {
    let outcome = match &Arguments::parse().command {
        Command::Bench(command) => muster_loadtest::run(command).map(|outcome| {
            println!("{}", outcome.json());
            true
        }),
        Command::Run(args) => muster_loadtest::simulation::run(args),
        Command::Enrol(args) => enrol::run(args).map(|()| true),
        Command::RunPart => muster_loadtest::simulation::part().map(|()| true),
        Command::Report(command) => commands::run(command).map(|printed| {
            print!("{}", printed.text);
            printed.held
        }),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("muster-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
