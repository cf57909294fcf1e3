//! The end of the demo on services: one device is exported into the bucket and erased, and both are held against what
//! was there.

use super::agents::Role;
use super::engines::Running;
use super::watch::{Verdict, stored_of_class};
use crate::http::Client;
use crate::process::wait_for;
use crate::server::Server;
use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::Duration;

/// The longest wait for the job: it begins with seconds in which connections end.
const JOB_TIMEOUT: Duration = Duration::from_secs(120);
/// Every table with rows of devices.
const TABLES: [&str; 4] = ["readings", "readings_1m", "readings_1h", "events"];
/// Whose agent has stopped.
const ROLE: Role = Role::Host;

/// Exports and erases the device; answers what was found.
///
/// # Errors
/// The API or a server fails, or the job does not end.
pub(super) fn device(server: &Server, api: &mut Client, services: &Running) -> Result<Vec<Verdict>> {
    let device = server.path(&format!("devices/{}", ROLE.device()));
    let begun = api.post(&format!("{device}/erase"), &json!({}))?;
    let id = begun["id"].as_str().with_context(|| format!("no id in {begun}"))?.to_owned();
    let job = server.path(&format!("erasures/{id}"));
    let done = wait_for("the erasure", JOB_TIMEOUT, || {
        let now = api.get(&job)?;
        Ok((now["state"] == "done").then_some(now))
    })?;
    let export = Export::fetch(api, &job, |name| {
        services.s3.object(&format!("demo/{}/exports/{id}/{name}", server.tenant))
    })?;
    println!(
        "{} is erased: {} rows deleted; {} rows are in {} files in the bucket",
        ROLE.device(),
        done["rows_erased"],
        done["rows_exported"],
        export.files
    );
    let left = services.rows_of(&TABLES, ROLE.device())?;
    let answer = api.call("GET", &device, None)?;
    Ok(vec![
        Verdict {
            what: format!("records exported of {}", ROLE.device()),
            found: export.records.to_string(),
            held: export.records > 0 && export.records == export.stored,
        },
        Verdict {
            what: "export files in the bucket".to_owned(),
            found: export.in_bucket.to_string(),
            held: export.files > 0 && export.in_bucket == export.files,
        },
        Verdict {
            what: format!("rows left of {}", ROLE.device()),
            found: left.to_string(),
            held: left == 0 && answer.status == 404,
        },
    ])
}

/// What the files of an export hold.
#[derive(Default)]
struct Export {
    files: usize,
    /// Files whose object in the bucket is what the API gave.
    in_bucket: usize,
    /// Different records that the readings came in.
    records: u64,
    /// Such records by the device's ledger.
    stored: u64,
}

impl Export {
    fn fetch(api: &mut Client, job: &str, object: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let listed = api.get(&format!("{job}/files?limit=500"))?;
        let (mut export, mut records) = (Self::default(), BTreeSet::new());
        for file in listed["items"].as_array().into_iter().flatten() {
            let name = file["name"].as_str().with_context(|| format!("a file without a name: {file}"))?;
            let content = api.download(&format!("{job}/files/{name}"))?;
            ensure!(file["bytes"] == content.len(), "{name} has {} bytes: {file}", content.len());
            export.files += 1;
            export.in_bucket += usize::from(object(name)?.is_some_and(|object| object == content));
            for line in lines(name, &content)? {
                if name.starts_with("readings-") {
                    records.insert((line["queue_id"].to_string(), line["seq"].as_u64()));
                }
                if name.starts_with("ledger-") {
                    export.stored += stored_of_class(&line, "telemetry");
                }
            }
        }
        export.records = records.len() as u64;
        Ok(export)
    }
}

/// The rows of a file; none of the manifest.
fn lines(name: &str, content: &[u8]) -> Result<Vec<Value>> {
    if !name.ends_with(".ndjson.gz") {
        return Ok(Vec::new());
    }
    let mut text = String::new();
    GzDecoder::new(content).read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
    text.lines().map(|line| serde_json::from_str(line).context("a line is no JSON")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn lines_are_read_from_a_compressed_file() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"{\"seq\":1}\n{\"seq\":2}\n").unwrap();
        let packed = packed.finish().unwrap();
        let read = lines("readings-00001.ndjson.gz", &packed).unwrap();
        assert_eq!(read, [json!({ "seq": 1 }), json!({ "seq": 2 })]);
        assert!(lines("manifest.json", b"{}").unwrap().is_empty());
        assert!(lines("readings-00001.ndjson.gz", &packed[..9]).is_err());
    }
}
