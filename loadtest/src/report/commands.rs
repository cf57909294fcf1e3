//! The commands that work on reports that were saved: `render`, `compare`, `check`, `capacity`.
//!
//! Called by `main`. They read files and print; nothing runs. Limits: [`REPORTS_MAX`] reports at once.

use super::capacity::{Fleet, Rules, Transport, capacity};
use super::check::{self, Baseline, Machines};
use super::compare::{self, COMPARE_HTML};
use super::html;
use super::model::Report;
use super::setups::quiet;
use super::store::{self, REPORT_HTML};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Reports that one command reads.
pub const REPORTS_MAX: usize = 32;

/// What to do with reports. Each report is a file or a directory with a `report.json`.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// Draws a report's page again: report.html in a directory.
    Render {
        /// The report.
        report: PathBuf,
        /// Where the page goes.
        #[arg(long)]
        out: PathBuf,
    },
    /// Two reports side by side: which figures differ by more than noise.
    Compare {
        /// The first report.
        a: PathBuf,
        /// The second.
        b: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Write compare.html, with both runs in each plot, into this directory.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Whether runs are worse than a baseline by more than its runs differ; fails when one is.
    Check(Check),
    /// What a fleet needs, from measured runs.
    Capacity(Capacity),
}

/// How a check is made.
#[derive(clap::Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("file").required(true))]
pub struct Check {
    /// The baseline to hold the reports against.
    #[arg(long, group = "file")]
    pub baseline: Option<PathBuf>,
    /// Write a baseline of these reports, at least three, instead.
    #[arg(long, group = "file")]
    pub update: Option<PathBuf>,
    /// Reports; the median of several counts.
    #[arg(required = true)]
    pub reports: Vec<PathBuf>,
    /// Hold figures of another machine against the baseline too.
    #[arg(long)]
    pub any_machine: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What the fleet is.
#[derive(clap::Args, Clone, Debug)]
pub struct Capacity {
    /// Reports of one transport; two or more sizes tell fixed parts from the rest.
    #[arg(required = true)]
    pub reports: Vec<PathBuf>,
    /// Devices of the fleet.
    #[arg(long, required_unless_present = "verify")]
    pub devices: Option<u32>,
    /// Messages a second of one device; as in the first report unless given.
    #[arg(long)]
    pub messages_per_device_per_s: Option<f64>,
    /// Readings in a message; as in the first report unless given.
    #[arg(long)]
    pub readings: Option<f64>,
    /// Days that readings are kept.
    #[arg(long, default_value_t = 30.0)]
    pub retention_days: f64,
    /// The fleet connects with TLS; as in the first report unless given.
    #[arg(long, conflicts_with = "plain")]
    pub tls: bool,
    /// The fleet connects without TLS.
    #[arg(long)]
    pub plain: bool,
    /// What the event log may take: `event_log.bytes_max` of the server.
    #[arg(long, default_value_t = 4 << 30)]
    pub event_log_bytes: u64,
    /// Rules beyond those of the measured runs.
    #[arg(long)]
    pub rules: Option<u32>,
    /// Devices that each of these rules selects; all unless given.
    #[arg(long, requires = "rules")]
    pub rule_devices: Option<u32>,
    /// Evaluations a second and core, from a bench of rules.
    #[arg(long, requires = "rules", default_value_t = 500_000.0)]
    pub rule_evaluations_per_core_s: f64,
    /// Memory of a rule in bytes, from a bench of rules.
    #[arg(long, requires = "rules", default_value_t = 30_000.0)]
    pub rule_bytes: f64,
    /// Predict this run's figures and hold them against what it measured.
    #[arg(long)]
    pub verify: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What to print, and whether all held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// For the standard output.
    pub text: String,
    /// False makes the program fail.
    pub held: bool,
}

/// Runs a command.
///
/// # Errors
/// A file cannot be read or written, or the reports do not fit what was asked.
pub fn run(command: &Command) -> Result<Printed> {
    match command {
        Command::Render { report, out } => {
            let page = html::page(&store::read(report)?);
            written(&out.join(REPORT_HTML), &page)
        }
        Command::Compare { a, b, json, out } => compare_two(a, b, *json, out.as_deref()),
        Command::Check(options) => match (&options.baseline, &options.update) {
            (Some(baseline), _) => check_against(baseline, options),
            (None, Some(update)) => update_baseline(update, options),
            (None, None) => bail!("--baseline or --update names the file"),
        },
        Command::Capacity(options) => capacity_of(options),
    }
}

fn written(path: &Path, page: &str) -> Result<Printed> {
    store::write_file(path, page.as_bytes())?;
    Ok(held(format!("{}\n", path.display())))
}

fn held(text: String) -> Printed {
    Printed { text, held: true }
}

fn json_line(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Report>> {
    if paths.len() > REPORTS_MAX {
        bail!("{} reports; the most at once are {REPORTS_MAX}", paths.len());
    }
    paths.iter().map(|path| Ok(store::read(path)?)).collect()
}

fn compare_two(a: &Path, b: &Path, json: bool, out: Option<&Path>) -> Result<Printed> {
    let (first, second) = (store::read(a)?, store::read(b)?);
    let comparison = compare::compare(&first, &second);
    let mut text = if json { json_line(&comparison)? } else { comparison.text() };
    if let Some(dir) = out {
        let path = dir.join(COMPARE_HTML);
        let names = [a.display().to_string(), b.display().to_string()];
        let page = compare::page(&comparison, [&names[0], &names[1]], &first, &second);
        store::write_file(&path, page.as_bytes())?;
        if !json {
            let _ = writeln!(text, "{}", path.display());
        }
    }
    Ok(held(text))
}

fn check_against(file: &Path, options: &Check) -> Result<Printed> {
    let baseline = Baseline::read(file)?;
    let machines = if options.any_machine { Machines::Any } else { Machines::Same };
    let checked = check::check(&baseline, &read_all(&options.reports)?, machines)
        .with_context(|| format!("cannot check against {}", file.display()))?;
    let text = if options.json { json_line(&checked)? } else { checked.text() };
    Ok(Printed { text, held: checked.held })
}

fn update_baseline(file: &Path, options: &Check) -> Result<Printed> {
    let reports = read_all(&options.reports)?;
    let baseline = Baseline::of(&reports)?;
    baseline.write(file)?;
    if options.json {
        return Ok(held(json_line(&baseline)?));
    }
    let mut text =
        format!("{}: {} figures of {} runs\n", file.display(), baseline.figures.len(), baseline.runs);
    if !quiet(baseline.other_load_cores.median) {
        let _ = writeln!(
            text,
            "the machine was busy: others kept {:.2} cores busy; a baseline of a quiet one tells more",
            baseline.other_load_cores.median
        );
    }
    Ok(held(text))
}

fn capacity_of(options: &Capacity) -> Result<Printed> {
    let named = |path: &PathBuf, report| (path.display().to_string(), report);
    let reports: Vec<(String, Report)> = options
        .reports
        .iter()
        .zip(read_all(&options.reports)?)
        .map(|(path, report)| named(path, report))
        .collect();
    let verify = match &options.verify {
        Some(path) => Some(named(path, store::read(path)?)),
        None => None,
    };
    let fleet = options.devices.map(|devices| fleet_of(options, devices, &reports[0].1));
    let found = capacity(&reports, fleet, verify.as_ref())?;
    Ok(held(if options.json { json_line(&found)? } else { found.text() }))
}

fn fleet_of(options: &Capacity, devices: u32, first: &Report) -> Fleet {
    let setup = &first.setup;
    let transport = match (options.tls, options.plain) {
        (true, _) => Transport::Tls,
        (_, true) => Transport::Plain,
        _ => Transport::of(first),
    };
    let of_the_run = setup.rate / f64::from(setup.devices.max(1));
    Fleet {
        devices,
        messages_per_device_per_s: options.messages_per_device_per_s.unwrap_or(of_the_run),
        readings_per_message: options.readings.unwrap_or(setup.readings_per_message),
        retention_days: options.retention_days,
        transport,
        event_log_bytes: options.event_log_bytes,
        rules: options.rules.map(|count| Rules {
            count,
            devices_each: options.rule_devices.unwrap_or(devices),
            evaluations_per_core_s: options.rule_evaluations_per_core_s,
            bytes_each: options.rule_bytes,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic;
    use super::*;
    use clap::Parser;
    use tempfile::{TempDir, tempdir};

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    /// Runs a line whose words are separated by spaces; `@` stands for the directory.
    fn ran(dir: &TempDir, line: &str) -> Result<Printed> {
        let at = dir.path().display().to_string();
        let words = format!("loadtest {line}").replace('@', &at);
        run(&Line::try_parse_from(words.split(' ').collect::<Vec<_>>())?.command)
    }

    fn runs(count: u64) -> TempDir {
        let dir = tempdir().unwrap();
        for seed in 1..=count {
            let setup = synthetic::report(1, 60).setup;
            let report = Report { setup, ..synthetic::report(seed, 60) };
            store::save(&dir.path().join(seed.to_string()), &report).unwrap();
        }
        dir
    }

    #[test]
    fn a_page_is_drawn_again() {
        let dir = runs(1);
        assert!(ran(&dir, "render @/1 --out @/page").unwrap().text.ends_with("report.html\n"));
        let page = |at: &str| std::fs::read(dir.path().join(at)).unwrap();
        assert_eq!(page("page/report.html"), page("1/report.html"));
    }

    #[test]
    fn a_comparison_is_a_table_json_and_a_page() {
        let dir = runs(2);
        assert!(ran(&dir, "compare @/1 @/2/report.json --out @/c").unwrap().text.contains("puback_p95_ms"));
        assert!(
            std::fs::read_to_string(dir.path().join("c/compare.html")).unwrap().contains("Two load runs")
        );
        let text = ran(&dir, "compare @/1 @/2 --json --out @/d").unwrap().text;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["figures"][0]["name"], "success_ratio");
        assert_eq!(value["figures"][0]["verdict"], "same");
    }

    #[test]
    fn a_baseline_is_made_and_held_against() {
        let dir = runs(6);
        let made = ran(&dir, "check --update @/base.json @/1 @/2 @/3 @/4 @/5").unwrap();
        assert!(made.text.contains("figures of 5 runs"), "{}", made.text);
        let good = ran(&dir, "check --baseline @/base.json @/6").unwrap();
        assert!(good.held && good.text.contains("check: held:"), "{}", good.text);
        let mut worse = store::read(&dir.path().join("6")).unwrap();
        worse.cost.server_rss_bytes = Some(900_000_000);
        store::save(&dir.path().join("6"), &worse).unwrap();
        assert!(!ran(&dir, "check --baseline @/base.json @/6").unwrap().held);
        let json = ran(&dir, "check --baseline @/base.json @/6 --json").unwrap();
        let value: serde_json::Value = serde_json::from_str(&json.text).unwrap();
        assert!(!json.held && value["held"] == false);
        assert!(
            ran(&dir, "check --update @/base.json @/1 @/2").unwrap_err().to_string().contains("at least 3")
        );
        assert!(ran(&dir, "check --baseline @/base.json --update @/base.json @/1").is_err());
        assert!(ran(&dir, "check @/1").is_err());
    }

    #[test]
    fn a_fleet_takes_what_it_is_not_told_from_the_first_report() {
        let dir = runs(1);
        let text = ran(&dir, "capacity @/1 --devices 4000 --json").unwrap().text;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["needs"]["messages_per_s"], 2_000.0);
        assert_eq!(value["fleet"]["transport"], "tls");
        let text = ran(&dir, "capacity @/1 --devices 4000 --plain --rules 10 --readings 2").unwrap().text;
        assert!(text.contains("fleet of 4,000 devices, plain, 2,000 messages/s, 4,000 readings/s"), "{text}");
        assert!(ran(&dir, "capacity @/1 --verify @/1").unwrap().text.contains("1.00"));
        assert!(ran(&dir, "capacity @/1").is_err());
        assert!(ran(&dir, "capacity @/1 --devices 0").is_err());
    }

    #[test]
    fn more_reports_than_fit_are_refused_before_one_is_read() {
        let dir = tempdir().unwrap();
        let line = format!("check --baseline @/b {}", vec!["@/x"; REPORTS_MAX + 1].join(" "));
        std::fs::write(dir.path().join("b"), "").unwrap();
        assert!(ran(&dir, &line).unwrap_err().to_string().contains("field `version`"));
        let line = format!("capacity --devices 1 {}", vec!["@/x"; REPORTS_MAX + 1].join(" "));
        assert_eq!(ran(&dir, &line).unwrap_err().to_string(), "33 reports; the most at once are 32");
    }
}
