//! The servers that `--engines services` starts, and the one that is stopped for a while.

use super::watch::Verdict;
use crate::http::Client;
use anyhow::{Context, Result, bail};
use muster_services::{ClickHouse, Postgres, SeaweedFs, python};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// ClickHouse's database.
const DATABASE: &str = "muster";

/// When the outage begins and how long it takes.
const OUTAGE_BEGINS: Duration = Duration::from_secs(20);
const OUTAGE_TIME: Duration = Duration::from_secs(60);

/// Where the server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Engines {
    /// Files of its own.
    Embedded,
    /// PostgreSQL, ClickHouse and S3.
    Services,
}

/// A server that can be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Engine {
    Postgres,
    Clickhouse,
}

impl Engine {
    /// The part of the server's health check that names it.
    fn part(self) -> &'static str {
        match self {
            Self::Postgres => "registry",
            Self::Clickhouse => "clickhouse",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    Ahead,
    Now,
    Over,
}

/// The engines' servers.
pub(super) struct Running {
    postgres: Postgres,
    clickhouse: ClickHouse,
    pub(super) s3: SeaweedFs,
    secret_file: PathBuf,
}

impl Running {
    /// Rows of a device in ClickHouse.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) fn rows_of(&self, tables: &[&str], device: &str) -> Result<u64> {
        let counts = tables.iter().map(|table| {
            let sql = format!("SELECT count() FROM {table} WHERE device = '{device}'");
            self.clickhouse.sql(DATABASE, &sql)?.parse::<u64>().context("no number")
        });
        counts.sum()
    }
}

/// What runs beside the server.
pub(super) struct Services {
    running: Option<Running>,
    outage: Option<(Engine, Outage)>,
    /// What the server said of the part while it was away.
    said: Option<String>,
    /// The first refusal of the API was printed.
    told: bool,
}

impl Services {
    /// Starts what is asked for; installs what is missing where that needs no question. A secret is written into `dir`.
    ///
    /// # Errors
    /// A server is not installed or does not start.
    pub(super) fn start(engines: Engines, outage: Option<Engine>, dir: &Path) -> Result<Self> {
        let running = match engines {
            Engines::Embedded if outage.is_some() => bail!("--outage needs --engines services"),
            Engines::Embedded => None,
            Engines::Services => {
                println!("starting PostgreSQL, ClickHouse and SeaweedFS (S3)");
                crate::test::install_programs();
                python::install().context("cannot install ClickHouse and SeaweedFS")?;
                let postgres = Postgres::start()?;
                postgres.database("registry")?;
                let s3 = SeaweedFs::start()?;
                let secret_file = dir.join("s3-secret");
                std::fs::create_dir_all(dir)?;
                std::fs::write(&secret_file, s3.secret_key()).context("cannot write the bucket's secret")?;
                Some(Running { postgres, clickhouse: ClickHouse::start()?, s3, secret_file })
            }
        };
        Ok(Self { running, outage: outage.map(|engine| (engine, Outage::Ahead)), said: None, told: false })
    }

    /// What the server is told.
    pub(super) fn settings(&self) -> Vec<String> {
        let Some(running) = &self.running else { return Vec::new() };
        vec![
            format!("registry.url={:?}", running.postgres.url("registry")),
            format!("telemetry.url={:?}", running.clickhouse.url(DATABASE)),
            format!("blob.url={:?}", format!("s3://{}/demo", running.s3.bucket())),
            format!("blob.endpoint={:?}", running.s3.endpoint()),
            format!("blob.access_key_id={:?}", running.s3.access_key_id()),
            format!("blob.secret_key_file={:?}", running.secret_file.display().to_string()),
            "blob.allow_http=true".to_owned(),
        ]
    }

    /// The servers, where there are any.
    pub(super) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// Begins and ends the outage when its time has come, and notes what the server says meanwhile.
    ///
    /// # Errors
    /// A server does not stop or start.
    pub(super) fn at(&mut self, elapsed: Duration, api: &mut Client) -> Result<()> {
        let (Some((engine, outage)), Some(running)) = (&mut self.outage, &mut self.running) else {
            return Ok(());
        };
        match *outage {
            Outage::Ahead if elapsed >= OUTAGE_BEGINS => {
                println!("\n{engine:?} is stopped for {} s", OUTAGE_TIME.as_secs());
                match engine {
                    Engine::Postgres => running.postgres.kill()?,
                    Engine::Clickhouse => running.clickhouse.kill()?,
                }
                *outage = Outage::Now;
            }
            Outage::Now if elapsed >= OUTAGE_BEGINS + OUTAGE_TIME => {
                println!("\n{engine:?} is started again");
                match engine {
                    Engine::Postgres => running.postgres.start_again()?,
                    Engine::Clickhouse => running.clickhouse.start_again()?,
                }
                *outage = Outage::Over;
            }
            Outage::Now if self.said.is_none() => {
                // 503 with the parts: the client gives the answer as an error.
                let ready = api.get("/readyz").map_or_else(|error| format!("{error:#}"), |ok| ok.to_string());
                if ready.contains("failing") || ready.contains("cannot be reached") {
                    println!("\nthe server says: {ready}");
                    self.said = Some(ready);
                }
            }
            Outage::Ahead | Outage::Now | Outage::Over => {}
        }
        Ok(())
    }

    /// Whether one of them is stopped, or was a moment ago: the server looks for it every few seconds.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.outage, Some((_, Outage::Now | Outage::Over)))
    }

    /// Prints what does not answer meanwhile, once.
    pub(super) fn tell_once(&mut self, error: &anyhow::Error) {
        if !std::mem::replace(&mut self.told, true) {
            println!("the ledger is not shown meanwhile: {error:#}");
        }
    }

    /// Whether the outage took place and was said.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let (engine, outage) = self.outage?;
        let said = self.said.as_deref().is_some_and(|said| said.contains(engine.part()));
        let found = match (outage, said) {
            (Outage::Over, true) => "said",
            (Outage::Over, false) => "not said",
            (Outage::Ahead | Outage::Now, _) => "not over",
        };
        Some(Verdict {
            what: format!("outage of {engine:?}"),
            found: found.to_owned(),
            held: outage == Outage::Over && said,
        })
    }
}
