//! How far each tenant's audit chain was read by who follows the registry.
//!
//! `devices::replica` and `app::follow` keep one. Every change commits with a row of its tenant's chain that names it (see
//! [`super::audit`]), and a chain's order is that of the commits: who saw row n has seen all before.

use super::audit::{self, Changed};
use crate::platform::db::{DbError, Scope, Tx};
use muster_wire::TenantId;
use std::collections::{BTreeSet, HashMap};

/// The newest row that was read, by tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains(HashMap<TenantId, i64>);

/// What was changed, by tenant, oldest first; `None` where the chains cannot tell: more than the bound, or a chain that is
/// shorter than it was (an older backup was put back).
pub type Named = Option<Vec<(TenantId, Changed)>>;

impl Chains {
    /// Where each chain ends now.
    ///
    /// # Errors
    /// The database's.
    pub fn newest(tx: &mut Tx<'_>, scope: &Scope) -> Result<Self, DbError> {
        Ok(Self(audit::newest_each(tx, scope)?.into_iter().collect()))
    }

    /// Reads on in every chain that grew.
    ///
    /// # Errors
    /// The database's.
    pub fn read_all(&mut self, tx: &mut Tx<'_>, scope: &Scope, names_max: usize) -> Result<Named, DbError> {
        let mut grown = BTreeSet::new();
        for (tenant, newest) in audit::newest_each(tx, scope)? {
            match newest.cmp(&self.at(&tenant)) {
                std::cmp::Ordering::Less => return Ok(None),
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => drop(grown.insert(tenant)),
            }
        }
        self.read(tx, &grown, names_max)
    }

    /// Reads on in the chains of these tenants.
    ///
    /// # Errors
    /// The database's.
    pub fn read(
        &mut self,
        tx: &mut Tx<'_>,
        tenants: &BTreeSet<TenantId>,
        names_max: usize,
    ) -> Result<Named, DbError> {
        let mut all = Vec::new();
        for tenant in tenants {
            let room = names_max - all.len();
            let limit = i64::try_from(room + 1).unwrap_or(i64::MAX);
            let rows = audit::changed_since(tx, &Scope::Tenant(tenant.clone()), self.at(tenant), limit)?;
            if rows.len() > room {
                return Ok(None);
            }
            if let Some(last) = rows.last() {
                self.0.insert(tenant.clone(), last.seq);
            }
            all.extend(rows.into_iter().map(|row| (tenant.clone(), row)));
        }
        Ok(Some(all))
    }

    fn at(&self, tenant: &TenantId) -> i64 {
        self.0.get(tenant).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::audit::AuditEntry;
    use crate::testing::registry;

    const ALL: Scope = Scope::System("test");

    fn append(tx: &mut Tx<'_>, tenant: &TenantId, rows: usize) -> Result<(), DbError> {
        for row in 0..rows {
            let (object, detail) = (format!("o{row}"), serde_json::json!({}));
            let entry = AuditEntry { at_us: 1, actor: "a", action: "x.y", object: &object, detail };
            audit::append(tx, &Scope::Tenant(tenant.clone()), &entry)?;
        }
        Ok(())
    }

    #[test]
    fn each_row_is_read_once_and_more_than_the_bound_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let db = registry(dir.path());
        let tenants = ["acme", "other"].map(|name| TenantId::parse(name).unwrap());
        let of = tenants.clone();
        db.write_blocking(move |tx| {
            for tenant in &of {
                let sql = "INSERT INTO tenants (tenant, name, created_at_us) VALUES ($1, 'n', 1)";
                tx.execute(&ALL, sql, &[&tenant.as_str()])?;
            }
            append(tx, &of[0], 2)
        })
        .unwrap();
        let mut chains = db.read_blocking(|tx| Chains::newest(tx, &ALL)).unwrap();
        assert_eq!((chains.at(&tenants[0]), chains.at(&tenants[1])), (2, 0));
        let of = tenants.clone();
        db.write_blocking(move |tx| append(tx, &of[0], 2).and_then(|()| append(tx, &of[1], 1))).unwrap();
        let mut read = |max: usize| {
            let mut now = chains.clone();
            let (named, now) =
                db.read_blocking(move |tx| Ok::<_, DbError>((now.read_all(tx, &ALL, max)?, now))).unwrap();
            chains = now;
            named.map(|named| {
                let shown =
                    |(tenant, row): &(TenantId, Changed)| format!("{tenant} {} {}", row.seq, row.object);
                named.iter().map(shown).collect::<Vec<_>>()
            })
        };
        assert_eq!(read(3).unwrap(), ["acme 3 o0", "acme 4 o1", "other 1 o0"]);
        assert_eq!(read(3).unwrap(), Vec::<String>::new());
        let of = tenants.clone();
        db.write_blocking(move |tx| append(tx, &of[0], 4)).unwrap();
        assert_eq!(read(3), None);
        let ahead = Chains(HashMap::from([(tenants[0].clone(), 9)]));
        let mut ahead_of = ahead.clone();
        let named = db.read_blocking(move |tx| ahead_of.read_all(tx, &ALL, 100)).unwrap();
        assert_eq!(named, None, "a chain that is shorter than it was");
    }
}
