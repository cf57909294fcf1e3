use super::audit::{self, AuditEntry, first_break};
use super::model::{Decision, Permission, Principal, Role, authorise, may_change_role};
use crate::platform::db::{DbError, Scope, SqlValue};
use muster_wire::TenantId;

fn tenant(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

fn user(role: Role, system_admin: bool, password_pending: bool) -> Principal {
    let memberships = vec![(tenant("acme"), role)];
    Principal::User { user_id: "u-1".into(), email: "a@b".into(), memberships, system_admin, password_pending }
}

fn token(role: Role, scopes: &[Permission]) -> Principal {
    Principal::Token { token_id: "t-1".into(), tenant: tenant("acme"), role, scopes: scopes.to_vec() }
}

#[test]
fn every_role_may_what_it_may_and_no_more() {
    for &permission in Permission::ALL.iter().filter(|permission| **permission != Permission::PlatformAdmin) {
        for role in Role::ALL {
            let expect = if role >= permission.least_role() { Decision::Allow } else { Decision::Denied };
            let who = user(role, false, false);
            assert_eq!(authorise(&who, permission, Some(&tenant("acme"))), expect, "{role:?} {permission:?}");
            assert_eq!(authorise(&who, permission, Some(&tenant("other"))), Decision::NotFound);
            let with = authorise(&token(role, &[permission]), permission, Some(&tenant("acme")));
            assert_eq!(with, expect, "token of {role:?} with {permission:?}");
            let without = authorise(&token(role, &[]), permission, Some(&tenant("acme")));
            assert_eq!(without, Decision::Denied, "token of {role:?} without {permission:?}");
            let foreign = authorise(&token(role, Permission::ALL), permission, Some(&tenant("other")));
            assert_eq!(foreign, Decision::NotFound);
        }
    }
}

#[test]
fn the_whole_server_is_for_system_administrators() {
    let ask = |who: &Principal| authorise(who, Permission::PlatformAdmin, None);
    assert_eq!(ask(&user(Role::Owner, false, false)), Decision::Denied);
    assert_eq!(ask(&user(Role::Viewer, true, false)), Decision::Allow);
    assert_eq!(ask(&token(Role::Owner, &[Permission::PlatformAdmin])), Decision::Allow);
    assert_eq!(ask(&token(Role::Owner, &[Permission::TenantRead])), Decision::Denied);
    // An administrator of the server is no member of every tenant.
    let read = authorise(&user(Role::Owner, true, false), Permission::TenantRead, Some(&tenant("other")));
    assert_eq!(read, Decision::NotFound);
}

#[test]
fn a_one_time_password_opens_nothing_but_its_own_change() {
    for &permission in Permission::ALL {
        let ask = authorise(&user(Role::Owner, true, true), permission, Some(&tenant("acme")));
        assert_eq!(ask, Decision::PasswordPending, "{permission:?}");
    }
}

#[test]
fn nobody_reaches_above_their_own_role() {
    use Role::{Admin, Operator, Owner, Viewer};
    let table = [
        (Owner, Some(Owner), None, true),
        (Admin, Some(Owner), None, false),
        (Admin, Some(Admin), Some(Owner), false),
        (Admin, Some(Viewer), Some(Admin), true),
        (Operator, None, Some(Viewer), false),
    ];
    for (actor, from, to, expect) in table {
        assert_eq!(may_change_role(actor, from, to), expect, "{actor:?} {from:?} {to:?}");
    }
}

#[tokio::test]
async fn the_audit_chain_shows_where_it_was_altered() {
    let dir = tempfile::tempdir().unwrap();
    let db = crate::platform::db::Db::open(&dir.path().join("r.db"), crate::platform::schema::registry(), 1).unwrap();
    let scope = Scope::Tenant(tenant("acme"));
    let rows = db
        .write(move |tx| {
            for at_us in 0..5 {
                let detail = serde_json::json!({ "at": at_us });
                audit::append(tx, &scope, &AuditEntry { at_us, actor: "server", action: "test", object: "o", detail })?;
            }
            let none = tx.query_opt("SELECT 1", &[], |row| row.get::<SqlValue>(0))?;
            assert!(none.is_some());
            for sql in ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"] {
                assert!(tx.execute(sql, &[]).is_err(), "{sql}");
            }
            audit::list(tx, &scope, 0, 100)
        })
        .await;
    let mut rows = rows.map_err(|error: DbError| error.to_string()).unwrap();
    assert_eq!((rows.len(), first_break(&rows)), (5, None));
    rows[2].actor = "somebody".into();
    assert_eq!(first_break(&rows), Some(3));
    rows.remove(2);
    assert_eq!(first_break(&rows), Some(4));
}
