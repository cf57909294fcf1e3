//! `cargo run --release --example registry_upserts -- 9`: a batch of upserts into the registry on a real PostgreSQL,
//! through [`Db`] and by bare tokio-postgres, so many interleaved pairs. The last line is JSON: rows a second of each pair.

use anyhow::{Context as _, Result};
use muster_server::platform::db::{Db, DbError, PostgresOptions, Scope, Tx};
use muster_server::platform::schema;
use muster_services::Postgres;
use std::time::Instant;

/// Rows of one transaction: what the rules commit in a busy second.
const ROWS: i64 = 1_000;
const SQL: &str = "INSERT INTO rule_last (tenant, device, metric, value) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (tenant, device, metric) DO UPDATE SET value = $4";
const SCOPE: Scope = Scope::System("rules: the engine's state and cursor hold every tenant's rows");

fn row(at: i64) -> [String; 4] {
    ["acme".to_owned(), format!("device-{at}"), "temp_c".to_owned(), format!("{at}.5")]
}

fn ours(db: &Db) -> Result<f64> {
    let began = Instant::now();
    db.write_blocking(|tx: &mut Tx<'_>| {
        for at in 0..ROWS {
            let [tenant, device, metric, value] = row(at);
            tx.execute(&SCOPE, SQL, &[&tenant, &device, &metric, &value])?;
        }
        Ok::<_, DbError>(())
    })?;
    Ok(ROWS as f64 / began.elapsed().as_secs_f64())
}

async fn bare(client: &mut tokio_postgres::Client) -> Result<f64> {
    let began = Instant::now();
    let tx = client.transaction().await?;
    tx.batch_execute("SET LOCAL ROLE muster_worker").await?;
    let statement = tx.prepare(SQL).await?;
    for at in 0..ROWS {
        let [tenant, device, metric, value] = row(at);
        tx.execute(&statement, &[&tenant, &device, &metric, &value]).await?;
    }
    tx.commit().await?;
    Ok(ROWS as f64 / began.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    let pairs: usize = std::env::args().nth(1).map_or(Ok(9), |count| count.parse()).context("pairs")?;
    let server = Postgres::start()?;
    let url = server.database("registry")?.url;
    let options = PostgresOptions::at(url.parse().map_err(anyhow::Error::msg)?);
    let db = Db::connect(&options, schema::registry_postgres())?;
    // As ours: one event loop a thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut client = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute("SET search_path = muster").await?;
        Ok::<_, anyhow::Error>(client)
    })?;
    // Rows, plans and pages are there before the first pair.
    ours(&db)?;
    runtime.block_on(bare(&mut client))?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 1..=pairs {
        with.push(ours(&db)?);
        without.push(runtime.block_on(bare(&mut client))?);
        println!("pair {pair}: {:.0} rows/s through Db, {:.0} bare", with[pair - 1], without[pair - 1]);
    }
    println!("{}", serde_json::json!({ "rows_per_s": with, "raw_rows_per_s": without }));
    Ok(())
}
