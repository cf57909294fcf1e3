//! A generated fleet that enrols as real devices do, and comes back with the identities that it kept.

use muster_tests::process::binary;
use muster_tests::server::Server;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

const DEVICES: usize = 20;

/// `muster-loadtest` with these words, and what else the command needs to know of a server.
fn loadtest(words: &str, files: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(binary("muster-loadtest"));
    command.args(words.split_whitespace()).arg("--quiet");
    for (name, path) in files {
        command.arg(name).arg(path);
    }
    command.output().expect("muster-loadtest starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of a command that has to succeed.
fn told(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().expect("it prints a line")).expect("the line is JSON")
}

/// Runs devices over mTLS, which has to hold.
fn run(server: &Server, words: &str, files: &[(&str, &Path)]) -> (Value, String) {
    let addr = server.address("mqtt_tls");
    let words = format!("run --transport mtls --devices {DEVICES} --rate 40 --addr {addr} {words}");
    let output = loadtest(&words, files);
    let told = told(&output);
    assert_eq!((&told["held"], &told["figures"]["success_ratio"]), (&json!(true), &json!(1.0)), "{told}");
    (told, said(&output))
}

fn entries(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the file of identities is there");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// Every page of a list of tenant `default`.
fn all(server: &Server, list: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.api.call("GET", &format!("/api/v1/tenants/default/{list}?limit=500{cursor}"), None);
        let page = page.expect("the server answers").ok();
        found.extend(page["items"].as_array().expect("a list").iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else { return found };
        cursor = format!("&cursor={next}");
    }
}

/// Who enrolled, in the words of the audit chain: claim and device.
fn enrolments(server: &Server) -> Vec<(String, String)> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let of = |entry: Value| (text(&entry, "actor"), text(&entry, "object"));
    let is = |entry: &Value| entry["action"] == "device.enroll";
    all(server, "audit").into_iter().filter(is).map(of).collect()
}

#[test]
fn a_fleet_enrols_runs_and_comes_back_with_what_it_kept() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let server = Server::start(&dir.path().join("server"));
    let (bootstrap, file) = (dir.path().join("server/bootstrap.json"), dir.path().join("identities"));
    let ca = server.data_dir().join("pki/ca.pem");
    let api = format!("--api {}", server.address("http"));

    // The authority is learned from the claim's pin: no --ca.
    let (first, _) = run(
        &server,
        &format!("{api} --enrol --seconds 5"),
        &[("--bootstrap", &bootstrap), ("--save-identities", &file)],
    );
    assert_eq!((&first["figures"]["lost"], &first["figures"]["duplicated"]), (&json!(0.0), &json!(0.0)));
    let enrolled = enrolments(&server);
    let claims: BTreeSet<&String> = enrolled.iter().map(|(claim, _)| claim).collect();
    let devices: BTreeSet<&String> = enrolled.iter().map(|(_, device)| device).collect();
    assert_eq!((enrolled.len(), claims.len(), devices.len()), (DEVICES, 1, DEVICES), "{enrolled:?}");
    assert!(all(&server, "claims").is_empty(), "the claim was taken back");

    let kept = entries(&file);
    let mode = std::fs::metadata(&file).expect("it is there").permissions().mode();
    assert_eq!((kept.len(), mode & 0o777), (DEVICES, 0o600));
    for secret in ["key_pem", "certificate_pem"] {
        let distinct: BTreeSet<&str> = kept.iter().filter_map(|entry| entry[secret].as_str()).collect();
        assert_eq!(distinct.len(), DEVICES, "each device has its own {secret}");
    }

    // With the API the ledger is judged, over both runs; without it only what the devices count.
    let identities: [(&str, &Path); 2] = [("--identities", &file), ("--ca", &ca)];
    let with_api = [&identities[..], &[("--bootstrap", &bootstrap)]].concat();
    let (again, said) = run(&server, &format!("{api} --seconds 2"), &with_api);
    assert_eq!(again["figures"]["lost"], json!(0.0), "{again}");
    assert!(said.contains("nothing_lost") && !said.contains("stored_exactly_once"), "{said}");
    let (alone, said) = run(&server, "--seconds 2 --processes 2", &identities);
    assert!(alone["figures"]["lost"].is_null() && !said.contains("nothing_lost"), "{alone} {said}");
    assert_eq!(enrolments(&server).len(), DEVICES, "nobody enrolled again");
}

#[test]
fn a_server_with_another_authority_is_refused_and_learns_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let server = Server::start(&dir.path().join("server"));
    let other = Server::start(&dir.path().join("other"));
    let (bootstrap, file) = (dir.path().join("server/bootstrap.json"), dir.path().join("identities"));
    let files: [(&str, &Path); 2] = [("--bootstrap", &bootstrap), ("--save-identities", &file)];
    let words = format!("enrol --api {} --devices {DEVICES}", server.address("http"));

    let elsewhere = loadtest(&format!("{words} --enroll-addr {}", other.address("enroll")), &files);
    let why = said(&elsewhere);
    assert!(!elsewhere.status.success() && why.contains("is not the server of the claim"), "{why}");
    assert!(!file.exists() && all(&server, "devices").is_empty() && all(&other, "devices").is_empty());
    assert!(all(&server, "claims").is_empty(), "the claim was taken back");
    assert!(all(&other, "audit").iter().all(|entry| entry["action"] != "device.enroll"));

    // The same at the right one; and once more, which takes one claim for each device that is there.
    let made = told(&loadtest(&words, &files));
    assert_eq!((&made["devices"], &made["claims"]), (&json!(DEVICES), &json!(1)), "{made}");
    let first = entries(&file);
    let made = told(&loadtest(&words, &files));
    assert_eq!(made["claims"], json!(1 + DEVICES), "{made}");
    let second = entries(&file);
    let name = |entry: &Value| entry["device"].clone();
    assert!(first.iter().map(name).eq(second.iter().map(name)), "both files are in the devices' order");
    assert!(first.iter().zip(&second).all(|(old, new)| old["key_pem"] != new["key_pem"]));
    let open = |claim: &&Value| claim["uses"] != claim["uses_max"];
    assert_eq!(all(&server, "claims").iter().filter(open).count(), 0, "no claim is left open");
}

#[test]
fn tokens_that_were_issued_in_bulk_are_taken_too() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let server = Server::start(&dir.path().join("server"));
    let (bootstrap, file) = (dir.path().join("server/bootstrap.json"), dir.path().join("identities"));
    let lines: Vec<String> = (0..DEVICES)
        .map(|number| {
            let device = format!("pump-{number}");
            let made = server.api.post("/api/v1/tenants/default/devices", &json!({ "id": device }));
            assert_eq!(made["id"], device.as_str());
            let path = format!("/api/v1/tenants/default/devices/{device}/token");
            let token = server.api.post(&path, &json!({}))["token"].clone();
            json!({ "tenant": "default", "device": device, "token": token }).to_string()
        })
        .collect();
    std::fs::write(&file, lines.join("\n")).expect("the file can be written");
    let (api, addr) = (server.address("http"), server.address("mqtt_plain"));
    let words = format!("run --devices {DEVICES} --rate 40 --seconds 2 --api {api} --addr {addr}");
    let output = loadtest(&words, &[("--bootstrap", &bootstrap), ("--identities", &file)]);
    let (told, said) = (told(&output), said(&output));
    assert_eq!((&told["held"], &told["figures"]["success_ratio"]), (&json!(true), &json!(1.0)), "{told}");
    assert!(said.contains("stored_exactly_once"), "these devices sent nothing before: {said}");
    assert_eq!(all(&server, "devices").len(), DEVICES, "nobody was registered");
}

#[test]
fn identities_that_do_not_fit_the_run_are_named() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("identities");
    let line = |(number, tenant): (usize, &&str)| {
        json!({ "tenant": tenant, "device": format!("d{number}"), "token": "x" }).to_string()
    };
    let refused = |tenants: &[&str], words: &str, expect: &str| {
        let lines: Vec<String> = tenants.iter().enumerate().map(line).collect();
        std::fs::write(&file, lines.join("\n")).expect("the file can be written");
        let output = loadtest(&format!("run {words}"), &[("--identities", &file)]);
        let said = said(&output);
        assert!(!output.status.success() && said.contains(expect), "{words}: {said}");
    };
    let (one, two) = (["a"; 10], ["a", "b", "b", "b", "b", "b", "b", "b", "b", "b"]);
    let addr = "--addr 127.0.0.1:1";
    refused(&one, &format!("{addr} --devices 11"), "names 10 devices, 11 are needed: give --devices 10");
    refused(&two, &format!("{addr} --devices 10"), "belong to 2 tenants: give --tenants 2");
    refused(&two, &format!("{addr} --devices 10 --tenants 2"), "needs 5 devices: a has 1");
    refused(&one, &format!("{addr} --devices 10 --transport mtls"), "--transport mtls needs --ca");
    refused(
        &one,
        &format!("{addr} --devices 10 --transport mtls --ca x"),
        "line 1: certificate_pem: it is missing",
    );
    refused(&one, "--devices 10", "--identities with --addr");
    refused(&one, &format!("{addr} --devices 10 --enrol"), "cannot be used with");
    let output = loadtest("run --devices 10 --enrol --server none", &[]);
    assert!(said(&output).contains("--enrol gives devices certificates: it needs --transport mtls"));
    for many in ["--devices 131073", "--tenants 1001"] {
        let words = format!("enrol --api 127.0.0.1:1 --bootstrap x --save-identities x {many}");
        assert!(said(&loadtest(&words, &[])).contains("--devices must be 1 to 131072, --tenants 1 to 1000"));
    }
}
