//! What a gateway alone does not start with, and how it says so.

use crate::processes::{Server, command, gateway_command, refused};
use rusqlite::Connection;
use std::path::Path;

#[track_caller]
fn says(text: &str, all: &[&str]) {
    for part in all {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("muster-server: ")).count(), 1, "{text}");
}

fn sql(registry: &Path, statement: &str) {
    assert_eq!(Connection::open(registry).unwrap().execute(statement, []).unwrap(), 1);
}

/// The version of the registry that a server of this build made.
fn schema_version(registry: &Path) -> i64 {
    let newest = "SELECT max(version) FROM refinery_schema_history";
    Connection::open(registry).unwrap().query_row(newest, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_registry_that_cannot_be_used_ends_the_start_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let (of_full, dir) = (root.path().join("full"), root.path().join("one"));
    let data = of_full.join("data");
    let attempt = |registry: &Path| refused(&mut gateway_command(&dir, registry));

    says(&attempt(&data), &["registry.dir", "full/data/registry.db: No such file"]);
    assert!(!data.exists(), "none is made");
    Server::full(&of_full).end();

    let registry = data.join("registry.db");
    let newest = schema_version(&registry);
    sql(&registry, &format!("UPDATE refinery_schema_history SET version = 99 WHERE version = {newest}"));
    let newer = format!("its schema is version 99, this build reads {newest}: use the build of");
    says(&attempt(&data), &["registry.dir", &newer]);
    sql(&registry, "DELETE FROM refinery_schema_history WHERE version = 99");
    let (older, own) = (newest - 1, "start the server that owns it");
    says(&attempt(&data), &[&format!("its schema is version {older}, this build reads {newest}: {own}")]);
    std::fs::write(&registry, "x".repeat(10_000)).unwrap();
    says(&attempt(&data), &["registry.dir", "registry.db", "not a database"]);
}

#[test]
fn listener_files_that_are_missing_and_a_registry_of_its_own_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (of_full, dir) = (root.path().join("full"), root.path().join("one"));
    let data = of_full.join("data");
    Server::full(&of_full).end();

    let own = root.path().join("own");
    std::os::unix::fs::symlink(&data, &own).unwrap();
    says(&refused(&mut gateway_command(&of_full, &own)), &["registry.dir", "own is data_dir"]);
    let key = data.join("pki").join("server.key");
    std::fs::remove_file(&key).unwrap();
    says(&refused(&mut gateway_command(&dir, &data)), &["certificate authority", "pki/server.key"]);
    let other = refused(command(&dir).args(["--roles", "gateway,api"]));
    says(&other, &["flag roles: roles: is [\"gateway\", \"api\"], must be"]);
}
