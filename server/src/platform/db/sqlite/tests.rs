use super::*;
use std::sync::Arc;

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

/// Holds the writer in one closure, so that all that follow are one group, the first of them first.
async fn one_group(db: &Db, first_panics: bool) {
    let (held, go_on) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let (there, on) = (held.clone(), go_on.clone());
    let holder = db.write(move |tx| {
        let done = tx.execute("INSERT INTO t VALUES (100, 'held')", &[]);
        there.wait();
        on.wait();
        done?;
        // Only a whole transaction that is begun again keeps what follows from standing on this one.
        if first_panics { panic!("the first panics") } else { Err::<(), _>(DbError::Closed) }
    });
    let second = db.write(|tx| tx.execute("INSERT INTO t VALUES (1, 'x')", &[]));
    let bad = db.write(|tx| {
        tx.execute("INSERT INTO t VALUES (2, 'y')", &[])?;
        Err::<(), _>(DbError::Closed)
    });
    let release = tokio::task::spawn_blocking(move || {
        held.wait();
        // What follows is in the queue, or comes into a group of its own: the outcome is the same.
        go_on.wait();
    });
    let (holder, second, bad, _) = tokio::join!(holder, second, bad, release);
    assert!(holder.is_err() && bad.is_err());
    second.unwrap();
}

#[tokio::test]
async fn a_first_closure_that_fails_or_panics_leaves_no_trace_and_its_group_goes_on() {
    for first_panics in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path());
        one_group(&db, first_panics).await;
        assert_eq!(db.read(count).await.unwrap(), 1, "the second alone");
    }
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

/// Counts for ever.
const ENDLESS: &str =
    "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n";
/// A read that is not ended would hold the test for ever.
const PATIENCE: Duration = Duration::from_secs(60);

fn one_reader(dir: &Path, read_time_max: Option<Duration>) -> Db {
    let options = Options { readers: 1, read_time_max, ..Options::default() };
    Db::open_with(&dir.join("t.db"), refinery::Runner::new(&[]), options).unwrap()
}

async fn answers(db: &Db) -> i64 {
    let one = db.read(|tx| tx.query_one("SELECT 1", &[], |row| row.get::<i64>(0)));
    tokio::time::timeout(PATIENCE, one).await.expect("the reader is free").unwrap()
}

#[tokio::test]
async fn a_read_ends_at_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let db = one_reader(dir.path(), Some(Duration::from_millis(50)));
    let endless = db.read(|tx| tx.query_one(ENDLESS, &[], |row| row.get::<i64>(0)));
    let outcome: Result<_, DbError> = tokio::time::timeout(PATIENCE, endless).await.expect("it ends");
    assert!(outcome.unwrap_err().is_overdue());
    assert_eq!(answers(&db).await, 1);
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_ends_or_never_begins() {
    let dir = tempfile::tempdir().unwrap();
    let db = one_reader(dir.path(), None);
    let (begun, has_begun) = oneshot::channel();
    let (late, mut was_late) = oneshot::channel();
    let endless = db.read(move |tx| {
        let _ = begun.send(());
        tx.query_one(ENDLESS, &[], |row| row.get::<i64>(0))
    });
    let after = db.read(move |_| {
        let _ = late.send(());
        Ok::<_, DbError>(())
    });
    tokio::select! {
        biased;
        _ = async { tokio::join!(endless, after) } => panic!("it never ends"),
        begun = has_begun => begun.unwrap(),
    }
    assert_eq!(answers(&db).await, 1);
    assert!(was_late.try_recv().is_err(), "its caller had gone before it could begin");
}

/// Holds the writer in a closure until told.
struct Held {
    holder: tokio::task::JoinHandle<Result<(), DbError>>,
    go_on: std::sync::mpsc::Sender<()>,
}

async fn hold(db: &Db) -> Held {
    let (begun, has_begun) = oneshot::channel();
    let (go_on, told) = std::sync::mpsc::channel();
    let db = db.clone();
    let holder = tokio::spawn(async move {
        db.write(move |_| {
            let _ = begun.send(());
            told.recv().map_err(|_| DbError::Closed)
        })
        .await
    });
    has_begun.await.unwrap();
    Held { holder, go_on }
}

/// Lets every other task run as far as it can.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

impl Held {
    async fn release(self) {
        self.go_on.send(()).unwrap();
        self.holder.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn more_closures_than_the_lane_holds_make_their_callers_wait() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let held = hold(&db).await;
    let insert = || {
        let db = db.clone();
        tokio::spawn(async move { db.write(|tx| tx.execute("INSERT INTO t (b) VALUES ('x')", &[])).await })
    };
    let mut writes: Vec<_> = (0..QUEUE_MAX - 1).map(|_| insert()).collect();
    settle().await;
    assert_eq!(db.inner.writes.capacity(), 1);
    writes.extend([insert(), insert(), insert()]);
    settle().await;
    assert_eq!(db.inner.writes.capacity(), 0);
    let further = db.inner.writes.try_reserve();
    assert!(matches!(further, Err(mpsc::error::TrySendError::Full(()))));
    held.release().await;
    for write in writes {
        write.await.unwrap().unwrap();
    }
    assert_eq!(db.read(count).await.unwrap() as usize, QUEUE_MAX + 2, "they waited, and none was lost");
}

#[tokio::test]
async fn as_many_closures_as_the_bound_share_a_commit_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let held = hold(&db).await;
    // What another connection sees is what earlier groups committed.
    let writes: Vec<_> = (0..GROUP_MAX + 1)
        .map(|_| {
            let (db, path) = (db.clone(), dir.path().join("t.db"));
            tokio::spawn(async move {
                db.write(move |tx| {
                    tx.execute("INSERT INTO t (b) VALUES ('x')", &[])?;
                    let other = Connection::open(path)?;
                    Ok::<i64, DbError>(other.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)
                })
                .await
            })
        })
        .collect();
    settle().await;
    held.release().await;
    let mut seen = Vec::new();
    for write in writes {
        seen.push(write.await.unwrap().unwrap() as usize);
    }
    // The one that held the writer was of the first group.
    let mut expect = vec![0; GROUP_MAX - 1];
    expect.extend([GROUP_MAX - 1; 2]);
    assert_eq!(seen, expect);
}

/// What the file holds once the database is closed.
fn bytes_after_a_delete(overwrites: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    let migrations = refinery::Migration::unapplied("V1__t", "CREATE TABLE t (a TEXT) STRICT;").unwrap();
    let options = Options { overwrites, ..Options::default() };
    let db = Db::open_with(&path, refinery::Runner::new(&[migrations]), options).unwrap();
    let write = |sql: &'static str| db.write_blocking(move |tx| tx.execute(sql, &[])).unwrap();
    write(
        "INSERT INTO t VALUES ('zebra-stripes'), ('other'), (replace(hex(zeroblob(9000)), '00', 'zebra-stripes'))",
    );
    write("DELETE FROM t WHERE a != 'other'");
    drop(db);
    let wal = dir.path().join("t.db-wal");
    while wal.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::read(path).unwrap()
}

#[test]
fn what_is_deleted_is_overwritten_where_it_should_be() {
    let holds = |bytes: &[u8]| bytes.windows(13).any(|window| window == b"zebra-stripes");
    assert!(holds(&bytes_after_a_delete(false)));
    assert!(!holds(&bytes_after_a_delete(true)));
}
