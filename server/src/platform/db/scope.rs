//! Whose rows a statement may touch.

use super::DbError;

/// Whose rows a store function may touch. SQLite trusts the statement's WHERE; PostgreSQL holds it to this as well,
/// by row-level security.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One tenant's.
    Tenant(muster_wire::TenantId),
    /// Every tenant's, for a named reason; `xtask tidy` holds the list of reasons.
    System(&'static str),
}

impl Scope {
    /// The tenant for a WHERE.
    ///
    /// # Errors
    /// A system scope has none: the statement was given the wrong scope.
    pub fn tenant(&self) -> Result<&str, DbError> {
        match self {
            Self::Tenant(tenant) => Ok(tenant.as_str()),
            Self::System(why) => Err(DbError::Scope(why)),
        }
    }
}
