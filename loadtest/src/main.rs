//! `muster-loadtest`: the command line of the load generator.

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about = "Many MQTT devices in one process; the last line of output is JSON")]
struct Arguments {
    #[command(subcommand)]
    command: muster_loadtest::Command,
}

fn main() -> ExitCode {
    match muster_loadtest::run(&Arguments::parse().command) {
        Ok(outcome) => {
            println!("{}", outcome.json());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("muster-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
