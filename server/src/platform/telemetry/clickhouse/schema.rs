//! The tables in ClickHouse, and the one way to change them.
//!
//! Each version is a list of statements that may run again: a server that dies between two of them goes on at the next
//! start. Two servers that do it at once do the same. A schema that is newer than this build is refused.

use super::{ClickHouse, ClickHouseError};

/// The newest version of this build.
pub(super) const VERSION: u32 = 1;
/// Every table with rows of tenants. What is made of readings stands behind them.
pub(super) const TABLES: [&str; 4] = ["readings", "readings_1m", "readings_1h", "events"];
const V1: &str = include_str!("schema_v1.sql");

impl ClickHouse {
    /// Brings the schema up to this build's.
    pub(super) async fn prepare(&self) -> Result<(), ClickHouseError> {
        let outside = self.without_database();
        let database = &self.options.url.database;
        let found: u64 = self
            .ask(outside.query("SELECT count() FROM system.databases WHERE name = ?").bind(database))
            .await?;
        if found == 0 {
            self.tell(outside.query(&format!("CREATE DATABASE IF NOT EXISTS {database}"))).await?;
        }
        let client = self.client();
        self.tell(client.query(
            "CREATE TABLE IF NOT EXISTS muster_schema (version UInt32, applied_at DateTime DEFAULT now())
             ENGINE = MergeTree ORDER BY version",
        ))
        .await?;
        let held: u32 = self.ask(client.query("SELECT max(version) FROM muster_schema")).await?;
        if held > VERSION {
            return Err(ClickHouseError::Newer { url: self.options.url.to_string(), held, known: VERSION });
        }
        if held < 1 {
            for statement in statements(V1) {
                self.tell(client.query_raw(statement)).await?;
            }
            self.tell(client.query("INSERT INTO muster_schema (version) VALUES (1)")).await?;
            tracing::info!(url = %self.options.url, version = VERSION, "schema made in ClickHouse");
        }
        Ok(())
    }
}

/// The statements of a file; comments stand on lines of their own.
fn statements(file: &'static str) -> impl Iterator<Item = &'static str> {
    file.split(";\n").map(str::trim).filter(|statement| !statement.is_empty())
}
