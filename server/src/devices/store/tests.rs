use super::*;
use crate::platform::db::Db;
use crate::platform::schema;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use refinery::Target;
use std::collections::BTreeSet;
use std::path::Path;

const TENANTS: [&str; 2] = ["acme", "other"];

fn scope(tenant: &str) -> Scope {
    Scope::Tenant(TenantId::parse(tenant).unwrap())
}

fn device(id: &str) -> DeviceId {
    DeviceId::parse(id).unwrap()
}

fn row(id: &str) -> DeviceRow {
    DeviceRow {
        device: device(id),
        name: String::new(),
        enabled: true,
        labels: Labels::new(),
        profile: None,
        token_sha256: None,
        created_at_us: 0,
        enrolled_at_us: None,
    }
}

/// A registry with the tenants, as of a version of the schema.
async fn registry(dir: &Path, version: Target) -> Db {
    let db = Db::open(&dir.join("registry.db"), schema::registry().set_target(version), 1).unwrap();
    db.write(|tx| {
        for tenant in TENANTS {
            tx.execute(
                &Scope::System("test"),
                "INSERT INTO tenants (tenant, name, created_at_us) VALUES ($1, '', 0)",
                &[&tenant],
            )?;
        }
        Ok::<_, DbError>(())
    })
    .await
    .unwrap();
    db
}

async fn counts(db: &Db) -> Vec<i64> {
    db.read(|tx| {
        TENANTS.iter().map(|tenant| device_count(tx, &scope(tenant))).collect::<Result<_, DbError>>()
    })
    .await
    .unwrap()
}

/// What a transaction does: adds or deletes devices one after the other, and is undone where it says so or fails.
#[derive(Clone, Debug)]
struct Change {
    tenant: usize,
    steps: Vec<(bool, u32)>,
    is_undone: bool,
}

impl Change {
    fn random(rng: &mut StdRng) -> Self {
        let mut step = || (rng.random_bool(0.6), rng.random_range(0..30));
        let steps = [step(), step(), step()];
        let steps = steps[..rng.random_range(1..=3)].to_vec();
        Self { tenant: rng.random_range(0..2), steps, is_undone: rng.random_bool(0.25) }
    }

    /// Whether every step can be done; the devices as they are afterwards.
    fn expect(&self, devices: &BTreeSet<u32>) -> Option<BTreeSet<u32>> {
        let mut devices = devices.clone();
        for (adds, number) in &self.steps {
            if *adds && !devices.insert(*number) {
                return None;
            }
            if !*adds {
                devices.remove(number);
            }
        }
        (!self.is_undone).then_some(devices)
    }

    fn run(&self, tx: &mut Tx<'_>) -> Result<(), DbError> {
        let scope = scope(TENANTS[self.tenant]);
        for (adds, number) in &self.steps {
            let id = format!("d{number}");
            if *adds {
                device_insert(tx, &scope, &row(&id))?;
            } else {
                device_delete(tx, &scope, &device(&id))?;
            }
        }
        if self.is_undone { Err(DbError::Closed) } else { Ok(()) }
    }
}

#[tokio::test]
async fn devices_are_counted_through_every_change_and_none_that_was_undone() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path(), Target::Latest).await;
    let mut rng = StdRng::seed_from_u64(7);
    let mut devices = [BTreeSet::new(), BTreeSet::new()];
    let (mut done, mut undone) = (0, 0);
    for _ in 0..100 {
        // Changes that wait together share a transaction: all but its first run in savepoints.
        let group: Vec<Change> = (0..5).map(|_| Change::random(&mut rng)).collect();
        let expected: Vec<bool> = group
            .iter()
            .map(|change| {
                let after = change.expect(&devices[change.tenant]);
                after.map(|after| devices[change.tenant] = after).is_some()
            })
            .collect();
        let mut answers = Vec::new();
        for change in group {
            let db = db.clone();
            answers.push(tokio::spawn(async move { db.write(move |tx| change.run(tx)).await.is_ok() }));
        }
        for (answer, expect) in answers.into_iter().zip(expected) {
            assert_eq!(answer.await.unwrap(), expect);
            (done, undone) = (done + u32::from(expect), undone + u32::from(!expect));
        }
        assert_eq!(counts(&db).await, devices.each_ref().map(|devices| devices.len() as i64));
    }
    assert!(done > 100 && undone > 100, "{done} done, {undone} undone");
}

#[tokio::test]
async fn what_was_there_before_the_count_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let before = registry(dir.path(), Target::Version(11)).await;
    // As that version had it: today's statements know of later tables.
    const INSERT: &str = "INSERT INTO devices (tenant, device, name, enabled, labels, created_at_us)
        VALUES ('acme', $1, '', 1, '{}', 0)";
    let insert = |tx: &mut Tx<'_>| {
        (0..7).try_for_each(|number| tx.execute(&scope("acme"), INSERT, &[&format!("d{number}")]).map(drop))
    };
    before.write(insert).await.unwrap();
    drop(before);
    let db = Db::open(&dir.path().join("registry.db"), schema::registry(), 1).unwrap();
    assert_eq!(counts(&db).await, [7, 0]);
    db.write(|tx| device_delete(tx, &scope("acme"), &device("d3"))).await.unwrap();
    db.write(|tx| device_insert(tx, &scope("other"), &row("d3"))).await.unwrap();
    assert_eq!(counts(&db).await, [6, 1]);
}

#[tokio::test]
async fn a_row_that_nobody_inserts_or_deletes_stays_its_tenants() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path(), Target::Latest).await;
    db.write(|tx| device_insert(tx, &scope("acme"), &row("d1"))).await.unwrap();
    for sql in ["UPDATE devices SET tenant = 'other'", "UPDATE devices SET device = 'd2'"] {
        assert!(db.write(move |tx| tx.execute(&Scope::System("test"), sql, &[])).await.is_err(), "{sql}");
    }
    assert_eq!(counts(&db).await, [1, 0]);
}
