use super::*;
use crate::platform::db::contract::options;
use crate::platform::db::{Db, Scope, Tx};
use crate::platform::schema;
use muster_services::Postgres;

/// Long enough for a slow machine; a test that passes never waits for it.
const DEADLINE: Duration = Duration::from_secs(30);
/// A rescan that no test waits for.
const NEVER: Duration = Duration::from_secs(3600);

struct Site {
    db: Db,
    server: Postgres,
}

impl Site {
    fn start() -> Self {
        let server = Postgres::start().unwrap();
        let database = server.database("registry").unwrap();
        let db = Db::connect(&options(&database.url), schema::registry_postgres()).unwrap();
        Self { db, server }
    }

    fn sql(&self, sql: &str) -> String {
        self.server.sql("registry", sql).unwrap()
    }

    /// Listens, and takes the wake for everything that stands at the beginning.
    async fn listen(&self, rescan: Duration) -> Wakes {
        let wakes = self.db.wakes(rescan).unwrap();
        assert_eq!(next(&wakes).await, Woken::Everything);
        wakes
    }

    async fn append(&self, tenant: &'static str, rows: i64) {
        let appended = self.db.write(move |tx: &mut Tx<'_>| {
            let scope = Scope::Tenant(TenantId::parse(tenant).unwrap());
            let sql = "INSERT INTO audit (tenant, seq, at_us, actor, action, object, detail, hash)
                       VALUES ($1, $2, 0, 'a', 'x.y', 'o', '{}', $3)";
            let newest = "SELECT coalesce(max(seq), 0) FROM audit WHERE tenant = $1";
            let last = tx.query_one::<i64, DbError>(&scope, newest, &[&tenant], |row| row.get(0))?;
            for seq in last + 1..=last + rows {
                tx.execute(&scope, sql, &[&tenant, &seq, &[0_u8; 32]])?;
            }
            Ok::<_, DbError>(())
        });
        appended.await.unwrap();
    }

    fn cut(&self) {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%LISTEN%'
                   AND pid <> pg_backend_pid()";
        assert_eq!(self.sql(cut), "1");
    }
}

async fn next(wakes: &Wakes) -> Woken {
    tokio::time::timeout(DEADLINE, wakes.next()).await.expect("a wake")
}

fn of(names: &[&str]) -> Woken {
    Woken::Tenants(names.iter().map(|name| TenantId::parse(name).unwrap()).collect())
}

#[tokio::test]
async fn a_commit_wakes_for_its_tenant_once_and_what_was_undone_for_none() {
    let site = Site::start();
    let wakes = site.listen(NEVER).await;
    site.append("acme", 3).await;
    assert_eq!(next(&wakes).await, of(&["acme"]));
    let undone = site.db.write(|tx| {
        let scope = Scope::Tenant(TenantId::parse("undone").unwrap());
        let sql = "INSERT INTO audit (tenant, seq, at_us, actor, action, object, detail, hash)
                   VALUES ('undone', 1, 0, 'a', 'x.y', 'o', '{}', '')";
        tx.execute(&scope, sql, &[])?;
        Err::<(), _>(DbError::Closed)
    });
    assert!(undone.await.is_err());
    site.append("other", 1).await;
    assert_eq!(next(&wakes).await, of(&["other"]), "nothing of what was undone");
    assert_eq!(wakes.counter(|counts| &counts.notifications)(), 2, "three rows of one commit are one");
}

#[tokio::test]
async fn a_connection_that_was_cut_is_made_again_and_wakes_for_everything() {
    let mut site = Site::start();
    let wakes = site.listen(NEVER).await;
    let connects = wakes.counter(|counts| &counts.connects);
    for made in [2, 3] {
        site.cut();
        assert_eq!(next(&wakes).await, Woken::Everything);
        assert_eq!(connects(), made);
        assert_eq!(wakes.condition().check(), Ok(()));
        site.append("acme", 1).await;
        assert_eq!(next(&wakes).await, of(&["acme"]), "it listens again");
    }
    // A server that is away is said, and followed again once it is back.
    site.server.kill().unwrap();
    let waits = async {
        while wakes.condition().check().is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waits).await.expect("it is said");
    site.server.start_again().unwrap();
    assert_eq!(next(&wakes).await, Woken::Everything);
    assert_eq!(wakes.condition().check(), Ok(()));
}

#[tokio::test]
async fn a_notification_that_was_lost_is_made_good_by_the_next_rescan() {
    let site = Site::start();
    site.sql("ALTER TABLE muster.audit DISABLE TRIGGER audit_wakes");
    let wakes = site.listen(Duration::from_millis(100)).await;
    let rescans = wakes.counter(|counts| &counts.rescans);
    site.append("acme", 1).await;
    let before = rescans();
    // The first may have been begun before the commit.
    for _ in 0..2 {
        assert_eq!(next(&wakes).await, Woken::Everything);
    }
    assert!(rescans() > before);
    assert_eq!(wakes.counter(|counts| &counts.notifications)(), 0);
    assert_eq!(wakes.counter(|counts| &counts.connects)(), 1, "on the connection that is there");
}

#[test]
fn as_many_tenants_as_the_bound_wait_by_name_and_one_more_is_everything() {
    let board = Board::default();
    let name = |n: usize| format!("t{n}");
    (0..NAMED_MAX).for_each(|n| board.notified(&name(n)));
    match board.lock().clone().unwrap() {
        Woken::Tenants(tenants) => assert_eq!(tenants.len(), NAMED_MAX),
        Woken::Everything => panic!("as many are kept"),
    }
    board.notified(&name(NAMED_MAX));
    assert_eq!(board.lock().take(), Some(Woken::Everything));
    board.notified("-");
    board.notified("no tenant's id");
    assert_eq!(board.lock().take(), None, "what is no tenant wakes for nothing");
    assert_eq!(board.counts.notifications.load(Ordering::Relaxed), NAMED_MAX as u64 + 3);
}

#[tokio::test]
async fn a_schema_is_not_migrated_under_a_process_without_the_lease() {
    let site = Site::start();
    let wakes = site.listen(NEVER).await;
    let more = refinery::Migration::unapplied("V1000__more", "CREATE TABLE more (a BIGINT)").unwrap();
    let mut all: Vec<_> = schema::registry_postgres().get_migrations().clone();
    all.push(more);
    let newer = || {
        let (url, all) = (site.server.url("registry"), all.clone());
        tokio::task::spawn_blocking(move || Db::connect(&options(&url), refinery::Runner::new(&all)))
    };
    let refused = newer().await.unwrap().err().unwrap().to_string();
    assert!(refused.contains("other processes run on the schema of postgres://127.0.0.1"), "{refused}");
    // The lock is gone with the connection: a newer build that comes before it is made again migrates.
    site.sql("INSERT INTO muster.refinery_schema_history VALUES (1000, 'more', '', '0')");
    site.cut();
    let lost = tokio::time::timeout(DEADLINE, wakes.lost()).await.expect("it is told");
    assert!(lost.contains("schema is version 1000 now"), "{lost}");
}
