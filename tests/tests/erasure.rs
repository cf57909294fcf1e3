//! A device and a tenant are exported and erased through the API of a real server that is killed again and again
//! meanwhile, while their agents go on sending; another device keeps all it has.

use flate2::read::GzDecoder;
use muster_services::{ClickHouse, Postgres, SeaweedFs};
use muster_tests::agent::{Agent, Load};
use muster_tests::http::Api;
use muster_tests::oracle::{self, Stored};
use muster_tests::server::Server;
use muster_tests::wait_for;
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The device that goes, the one that stays, and the tenant that goes with a device of its own.
const GONE: &str = "zebra";
const KEPT: &str = "trial";
const TENANT: &str = "okapi";
/// What they have: a metric's name, a label's value, and the tenant's own name.
const METRIC_OF_GONE: &str = "zebra_stripes";
const METRIC_OF_TENANT: &str = "okapi_stripes";
const LABEL: &str = "zebra-paddock";
const TENANT_NAME: &str = "Okapi Works";
/// Segments of the event log are small, so that what was stored is released while the test runs.
const LOG: &str = "[event_log]\nsegment_bytes = 1048576\nbytes_max = 67108864\n";

/// Processes end before their files go.
struct Rig {
    gone: Agent,
    of_tenant: Agent,
    kept: Agent,
    server: Server,
    /// The first owner, who owns the tenant, too.
    owner: Api,
    dir: TempDir,
}

fn path(tenant: &str, rest: &str) -> String {
    format!("/api/v1/tenants/{tenant}/{rest}")
}

impl Rig {
    fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let server = Server::start_with(&dir.path().join("server"), &format!("{LOG}{config}"));
        let owner = log_in(&server);
        let _ = owner.post("/api/v1/tenants", &json!({ "id": TENANT, "name": TENANT_NAME }));
        let agent = |tenant: &str, device: &str, metric: &str| {
            let labels = if device == GONE { json!({ "place": LABEL }) } else { json!({}) };
            let claim = owner.post(&path(tenant, "claims"), &json!({ "device": device, "labels": labels }));
            let claim = claim["claim"].as_str().expect("the answer holds the claim").to_owned();
            let home = dir.path().join(device);
            let load = Load { rows_per_s: 800, ..Load::default() };
            let agent = Agent::new(&home, &claim, server.address("mqtt_tls"), &load);
            let rows = std::fs::read_to_string(home.join("rows.csv")).expect("the rows were written");
            std::fs::write(home.join("rows.csv"), rows.replace("level", metric))
                .expect("they are written anew");
            agent
        };
        let mut rig = Self {
            gone: agent("default", GONE, METRIC_OF_GONE),
            of_tenant: agent(TENANT, "own", METRIC_OF_TENANT),
            kept: agent("default", KEPT, "level"),
            server,
            owner,
            dir,
        };
        for agent in [&mut rig.gone, &mut rig.of_tenant, &mut rig.kept] {
            agent.start();
        }
        rig.wait_for_stored("default", GONE, 500);
        rig.wait_for_stored("default", KEPT, 500);
        rig.wait_for_stored(TENANT, "own", 500);
        let device = rig.ask(&path("default", &format!("devices/{GONE}"))).expect("the device enrolled");
        assert_eq!(device["labels"]["place"], LABEL);
        rig
    }

    fn wait_for_stored(&self, tenant: &str, device: &str, records: u64) {
        wait_for(&format!("{records} records of {device}"), || {
            let ledger = self.ask(&path(tenant, &format!("devices/{device}/ledger")))?;
            match ledger["totals"]["stored"].as_u64() {
                Some(stored) if stored >= records => Ok(()),
                _ => Err(ledger["totals"].to_string()),
            }
        });
    }

    /// A 2xx answer to the owner.
    fn ask(&self, path: &str) -> Result<Value, String> {
        let answer = self.owner.call("GET", path, None).map_err(|error| error.to_string())?;
        if !(200..300).contains(&answer.status) {
            return Err(answer.text);
        }
        serde_json::from_str(&answer.text).map_err(|error| error.to_string())
    }

    fn status(&self, path: &str) -> u16 {
        self.owner.call("GET", path, None).expect("the API answers").status
    }

    /// Kills the server and starts it again; its ports are others then.
    fn restart_server(&mut self) {
        self.server.kill();
        self.start_server();
    }

    fn start_server(&mut self) {
        self.server.start_again();
        self.owner.addr = self.server.api.addr;
        let port = self.server.address("mqtt_tls").port();
        for (agent, device) in [(&mut self.gone, GONE), (&mut self.of_tenant, "own"), (&mut self.kept, KEPT)]
        {
            agent.stop();
            lead(&self.dir.path().join(device), port);
            agent.start();
        }
    }

    /// Waits for the end of both erasures, and kills the server once in each state that it sees one in.
    fn finish(&mut self, jobs: &[String; 2]) -> BTreeSet<String> {
        let mut killed = BTreeSet::new();
        loop {
            let states = wait_for("both erasures", || {
                let all: Result<Vec<String>, String> = jobs
                    .iter()
                    .map(|job| {
                        let view = self.ask(job)?;
                        Ok(view["state"].as_str().unwrap_or_default().to_owned())
                    })
                    .collect();
                let all = all?;
                let is_done = all.iter().all(|state| state == "done");
                match is_done || all.iter().any(|state| state != "done" && !killed.contains(state)) {
                    true => Ok(all),
                    false => Err(jobs.iter().map(|job| format!("{:?}", self.ask(job))).collect()),
                }
            });
            if states.iter().all(|state| state == "done") {
                return killed;
            }
            killed.extend(states.into_iter().filter(|state| state != "done"));
            self.restart_server();
        }
    }

    /// The lines of an export's files of one kind.
    fn lines(&self, job: &str, kind: &str) -> Vec<Value> {
        let files = self.ask(&format!("{job}/files?limit=500")).expect("the files are listed");
        let names = files["items"].as_array().into_iter().flatten().filter_map(|file| file["name"].as_str());
        let mut lines = Vec::new();
        for name in names.filter(|name| name.starts_with(kind)) {
            let file = self.owner.call("GET", &format!("{job}/files/{name}"), None).expect("the API answers");
            assert_eq!(file.status, 200, "{name}: {}", file.text);
            let mut text = String::new();
            GzDecoder::new(&file.bytes[..]).read_to_string(&mut text).expect("a file is compressed text");
            lines.extend(
                text.lines().map(|line| -> Value { serde_json::from_str(line).expect("lines are JSON") }),
            );
        }
        lines
    }

    /// The export has each record that its own ledger has as stored, once.
    fn check_export(&self, job: &str, device: &str, metric: &str) {
        let readings = self.lines(job, "readings-");
        assert!(readings.iter().all(|line| line["device"] == device));
        let of_metric: Vec<&Value> = readings.iter().filter(|line| line["metric"] == metric).collect();
        let records: BTreeSet<_> =
            of_metric.iter().map(|line| (line["queue_id"].to_string(), line["seq"].as_u64())).collect();
        assert_eq!(records.len(), of_metric.len(), "a reading is exported twice");
        let ledger = self.lines(job, "ledger-");
        let queues = ledger[0]["queues"].as_array().into_iter().flatten();
        let of_class = queues.filter(|queue| queue["class"] == "telemetry");
        let open: u64 = of_class.filter_map(|queue| queue["stored"].as_u64()).sum();
        let stored = open + ledger[0]["merged"]["telemetry"]["stored"].as_u64().unwrap_or(0);
        assert!(stored >= 500, "{}", ledger[0]);
        assert_eq!(records.len() as u64, stored, "{}", ledger[0]);
    }

    /// Records go through the log until nothing of a text is in any file of the server, but for the databases'
    /// write-ahead logs, which are overwritten in their own time.
    fn wait_until_gone(&mut self, texts: &[&str]) {
        wait_for("the files to hold nothing of them", || {
            let mut found = holding(&self.server.data_dir(), texts);
            found.retain(|(path, _)| !path.to_string_lossy().ends_with("-wal"));
            if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
}

/// Tells an agent where the server is now.
fn lead(home: &Path, port: u16) {
    let file = home.join("agent.toml");
    let config = std::fs::read_to_string(&file).expect("the configuration was written");
    let led = config.lines().map(|line| match line.starts_with("port = ") {
        true => format!("port = {port}\n"),
        false => format!("{line}\n"),
    });
    std::fs::write(&file, led.collect::<String>()).expect("the configuration can be written");
}

/// The first owner as a browser, with a password of their own.
fn log_in(server: &Server) -> Api {
    let mut owner = Api { addr: server.api.addr, token: String::new() };
    let login = server.owner_login();
    let answer = owner.call("POST", "/api/v1/auth/login", Some(&login)).expect("the API answers");
    owner.token = answer.cookie.clone().unwrap_or_else(|| panic!("no session: {}", answer.text));
    let change = json!({ "old_password": login["password"], "new_password": "correct horse battery" });
    let _ = owner.post("/api/v1/auth/password", &change);
    owner
}

/// Files below a directory that hold a text, but for exports, which do on purpose.
fn holding(dir: &Path, texts: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the directory can be read").flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("exports") {
                found.extend(holding(&path, texts));
            }
            continue;
        }
        // A segment of the log may go meanwhile.
        let Ok(content) = std::fs::read(&path) else { continue };
        let holds = |text: &&&str| content.windows(text.len()).any(|window| window == text.as_bytes());
        found.extend(texts.iter().filter(holds).map(|text| (path.clone(), (*text).to_owned())));
    }
    found
}

/// Erases the device and the tenant, with kills in between, and checks what is left of them in the API.
fn erase_both(rig: &mut Rig) {
    let begin = |path: &str, body: &Value| {
        let begun = rig.owner.post(path, body);
        begun["id"].as_str().expect("the answer names the job").to_owned()
    };
    let of_device = begin(&path("default", &format!("devices/{GONE}/erase")), &json!({}));
    let of_tenant = begin(&path(TENANT, "erase"), &json!({ "confirm": TENANT }));
    let jobs =
        [path("default", &format!("erasures/{of_device}")), path(TENANT, &format!("erasures/{of_tenant}"))];
    let killed = rig.finish(&jobs);
    assert!(killed.contains("draining"), "{killed:?}");
    rig.check_export(&jobs[0], GONE, METRIC_OF_GONE);
    rig.check_export(&jobs[1], "own", METRIC_OF_TENANT);
    assert_eq!(rig.status(&path("default", &format!("devices/{GONE}"))), 404);
    assert_eq!(rig.status(&path("default", &format!("devices/{GONE}/ledger"))), 404);
    assert_eq!(rig.status(&path(TENANT, "devices")), 404);
    assert_eq!(rig.status(&path("default", &format!("devices/{KEPT}"))), 200);
    // Their agents are still there, and let in by nobody.
    rig.gone.stop();
    rig.of_tenant.stop();
}

#[test]
fn nothing_of_an_erased_device_or_tenant_is_left_in_any_file_and_others_keep_all() {
    let mut rig = Rig::start("");
    erase_both(&mut rig);
    // What was written meanwhile is copied into the files, and the rest of the log is released.
    let texts = [METRIC_OF_GONE, METRIC_OF_TENANT, LABEL, TENANT_NAME];
    rig.server.stop();
    rig.start_server();
    rig.gone.stop();
    rig.of_tenant.stop();
    rig.wait_until_gone(&texts);
    let audit = rig.ask(&path("default", "audit?limit=500")).expect("the chain stays");
    assert!(audit["items"].as_array().into_iter().flatten().any(|row| row["action"] == "erasure.done"));
    let Rig { server, kept, .. } = &mut rig;
    oracle::assert_exactly_once(server, kept, KEPT, 31);
    for name in ["registry.db", "telemetry.db"] {
        let db = Connection::open(rig.server.data_dir().join(name)).expect("the database opens");
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("its log is copied into it");
    }
    assert_eq!(holding(&rig.server.data_dir(), &texts), []);
}

#[test]
fn on_postgres_clickhouse_and_s3_an_erased_device_and_tenant_are_gone_too() {
    let postgres = Postgres::start().expect("PostgreSQL starts");
    let clickhouse = ClickHouse::start().expect("ClickHouse starts");
    let s3 = SeaweedFs::start().expect("SeaweedFS starts");
    postgres.database("registry").expect("a database can be made");
    let secret = tempfile::NamedTempFile::new().expect("a file can be made");
    std::fs::write(secret.path(), s3.secret_key()).expect("the secret can be written");
    let config = format!(
        "[registry]\nurl = {:?}\n[telemetry]\nurl = {:?}\n[blob]\nurl = \"s3://{}/fleet\"\nendpoint = {:?}\n\
         access_key_id = {:?}\nsecret_key_file = {:?}\nallow_http = true\n",
        postgres.url("registry"),
        clickhouse.url("fleet"),
        s3.bucket(),
        s3.endpoint(),
        s3.access_key_id(),
        secret.path(),
    );
    let mut rig = Rig::start(&config);
    erase_both(&mut rig);
    let count = |text: &str| -> u64 {
        let answer = clickhouse.sql("fleet", text).expect("ClickHouse answers");
        answer.parse().expect("it is a number")
    };
    for table in ["readings", "readings_1m", "readings_1h", "events"] {
        let of_both = format!("tenant = '{TENANT}' OR device = '{GONE}'");
        assert_eq!(count(&format!("SELECT count() FROM {table} WHERE {of_both}")), 0, "{table}");
    }
    for table in ["devices", "certificates", "claims", "rules", "memberships", "api_tokens"] {
        let sql = format!("SELECT count(*) FROM muster.{table} WHERE tenant = '{TENANT}'");
        assert_eq!(postgres.sql("registry", &sql).expect("PostgreSQL answers").trim(), "0", "{table}");
    }
    let Rig { server, kept, .. } = &mut rig;
    oracle::assert_exactly_once_in(server, kept, KEPT, 32, || {
        let of = format!("tenant = 'default' AND device = '{KEPT}' AND metric = 'serial'");
        Stored {
            rows: count(&format!("SELECT count() FROM readings WHERE {of}")),
            distinct: count(&format!("SELECT uniqExact(number, text) FROM readings WHERE {of}")),
        }
    });
}
