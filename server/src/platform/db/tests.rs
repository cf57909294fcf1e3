use super::*;

fn open(dir: &Path) -> Db {
    let first = refinery::Migration::unapplied(
        "V1__t",
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT NOT NULL) STRICT;",
    );
    Db::open(&dir.join("t.db"), refinery::Runner::new(&[first.unwrap()]), 2).unwrap()
}

fn count(tx: &mut Tx<'_>) -> Result<i64, DbError> {
    Ok(tx.query_opt("SELECT count(*) FROM t", &[], |row| row.get(0))?.unwrap_or(0))
}

#[tokio::test]
async fn arguments_keep_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let swapped = |tx: &mut Tx<'_>| {
        tx.execute("INSERT INTO t (b, a) VALUES ($2, $1)", &[&7, &"seven $1"])?;
        tx.query_opt("SELECT b, '$1' FROM t WHERE a = $1", &[&7], |row| {
            Ok::<_, DbError>((row.get::<String>(0)?, row.get::<String>(1)?))
        })
    };
    assert_eq!(db.write(swapped).await.unwrap(), Some(("seven $1".into(), "$1".into())));
}

#[tokio::test]
async fn a_failed_closure_leaves_no_trace_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let good = db.write(|tx| tx.execute("INSERT INTO t VALUES (1, 'x')", &[]));
    let bad = db.write(|tx| {
        tx.execute("INSERT INTO t VALUES (2, 'y')", &[])?;
        tx.execute("INSERT INTO t VALUES (1, 'z')", &[])
    });
    let panics = db.write(|tx| -> Result<(), DbError> {
        tx.execute("INSERT INTO t VALUES (3, 'p')", &[])?;
        panic!("a closure that panics")
    });
    let (good, bad, panics) = tokio::join!(good, bad, panics);
    good.unwrap();
    assert!(bad.unwrap_err().is_unique_violation());
    assert!(matches!(panics, Err(DbError::Closed)));
    assert_eq!(db.read(count).await.unwrap(), 1);
}

#[tokio::test]
async fn a_reader_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    assert!(db.read(|tx| tx.execute("INSERT INTO t VALUES (1, 'x')", &[])).await.is_err());
    assert_eq!(db.read(count).await.unwrap(), 0);
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let older = Db::open(&dir.path().join("t.db"), refinery::Runner::new(&[]), 1);
    assert!(matches!(older, Err(DbError::Migrate { .. })));
}
