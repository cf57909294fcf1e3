//! The oracle of the promise: stored = count(*) = count(distinct serial) = accepted - dropped.

use crate::agent::{Agent, Inspection};
use crate::server::Server;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// What the server's store holds of one device's metric `serial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Rows.
    pub rows: u64,
    /// Distinct values.
    pub distinct: u64,
}

/// Counts the rows of `metric` of a device straight from the store's tables.
///
/// # Panics
/// When the file is not the store's.
#[must_use]
pub fn stored(data_dir: &Path, device: &str, metric: &str) -> Stored {
    let file = data_dir.join("telemetry.db");
    let db = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the store opens");
    let days: Vec<i64> = {
        let mut days =
            db.prepare("SELECT day FROM reading_day ORDER BY day").expect("the store lists its days");
        let rows = days.query_map([], |row| row.get(0)).expect("days can be read");
        rows.collect::<Result<_, _>>().expect("days are numbers")
    };
    if days.is_empty() {
        return Stored { rows: 0, distinct: 0 };
    }
    let all =
        days.iter().map(|day| format!("SELECT series_id, value FROM reading_{day}")).collect::<Vec<_>>();
    let sql = format!(
        "SELECT count(*), count(DISTINCT value) FROM ({}) WHERE series_id IN
         (SELECT s.id FROM series s JOIN device d ON d.id = s.device_id WHERE d.name = ?1 AND s.name = ?2)",
        all.join(" UNION ALL ")
    );
    let (rows, distinct): (i64, i64) = db
        .query_row(&sql, (device, metric), |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("readings can be counted");
    Stored { rows: rows.unsigned_abs(), distinct: distinct.unsigned_abs() }
}

/// Waits until the agent's queue is drained, stops both, and asserts the promise on the store's tables.
///
/// # Panics
/// When a reading is lost or stored twice.
pub fn assert_exactly_once(server: &mut Server, agent: &mut Agent, device: &str, seed: u64) -> Inspection {
    let dir = server.data_dir();
    assert_exactly_once_in(server, agent, device, seed, || stored(&dir, device, "serial"))
}

/// As [`assert_exactly_once`], with readings that `stored` counts once the server has stopped.
///
/// # Panics
/// As [`assert_exactly_once`].
pub fn assert_exactly_once_in(
    server: &mut Server,
    agent: &mut Agent,
    device: &str,
    seed: u64,
    stored: impl FnOnce() -> Stored,
) -> Inspection {
    let path = format!("/api/v1/tenants/default/devices/{device}/ledger");
    crate::wait_for("the agent's backlog to drain", || {
        agent.stop_reading();
        let drained = pending_of(server, &path);
        agent.stop();
        let told = agent.inspect();
        if told.released == told.next { drained } else { Err(format!("agent {told:?}, ledger {drained:?}")) }
    });
    let told = agent.inspect();
    let ledger = server.api.get(&path);
    server.stop();
    let held = stored();
    let context = format!("seed {seed}: agent {told:?}, store {held:?}, ledger {}", ledger["totals"]);
    assert_eq!(held.rows, held.distinct, "a reading is stored twice; {context}");
    // A drop record may cover records that were in flight and got stored: the ledger counts those as stored.
    let dropped = ledger["totals"]["dropped"].as_u64().unwrap_or_default();
    assert!(dropped <= told.dropped, "the ledger lists drops that the agent did not make; {context}");
    assert_eq!(held.rows, told.accepted - dropped, "a reading is lost; {context}");
    assert_eq!(ledger["totals"]["lost"], 0, "{context}");
    told
}

/// Polls the ledger for a while until nothing is pending.
fn pending_of(server: &Server, path: &str) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..100 {
        let answer = server.api.call("GET", path, None).map_err(|error| error.to_string())?;
        let ledger: serde_json::Value =
            serde_json::from_str(&answer.text).map_err(|error| error.to_string())?;
        let totals = &ledger["totals"];
        if totals["pending"] == 0 && totals["stored"].as_u64() > Some(0) {
            return Ok(());
        }
        last = totals.to_string();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Err(last)
}
