//! The commands `muster-server audit`: verify a registry's audit chains, write one out.
//!
//! `main` calls it. On SQLite the file is opened read-only, also while the server runs; on PostgreSQL the schema
//! is left as it is. A chain is read page by page, each in a transaction of its own: rows are only appended.

use super::parts;
use crate::platform::config::Config;
use crate::platform::db::sqlite::ReadOnlyDb;
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::schema;
use crate::tenants::audit::export::{self, Format, Span};
use crate::tenants::audit::verify::{self, Fault, Mark, Walk};
use crate::tenants::audit::{self};
use muster_wire::TenantId;
use std::io::Write;

const AUDIT: Scope = Scope::System("audit");

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AuditCommandError {
    /// The registry cannot be read.
    #[error("cannot read the registry")]
    Db(#[from] DbError),
    /// What was asked for is no chain.
    #[error("{0:?} is no tenant, and not - (the server's own chain)")]
    NoChain(String),
    /// The output cannot be written.
    #[error("cannot write")]
    Write(#[from] std::io::Error),
}

/// A registry that is read.
pub enum AuditRegistry {
    /// A file that a server may be writing.
    File(ReadOnlyDb),
    /// A database on a server.
    Server(Db),
}

impl AuditRegistry {
    /// Opens the registry where the configuration says.
    ///
    /// # Errors
    /// There is none, or it is of another build.
    pub async fn open(config: &Config) -> Result<Self, AuditCommandError> {
        if let Some(options) = parts::postgres(config) {
            let connect = move || Db::connect_as_it_is(&options, schema::registry_postgres());
            let opened = tokio::task::spawn_blocking(connect).await;
            return Ok(Self::Server(opened.map_err(|_| DbError::Closed)??));
        }
        let dir = config.registry.dir.as_ref().unwrap_or(&config.data_dir);
        Ok(Self::File(ReadOnlyDb::open(&dir.join("registry.db"), &schema::registry())?))
    }

    fn read<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        match self {
            Self::File(db) => db.read(work),
            Self::Server(db) => db.read_blocking(work),
        }
    }

    /// A chain that is there.
    fn scope_of(&mut self, chain: &str) -> Result<Scope, AuditCommandError> {
        if chain == "-" {
            return Ok(AUDIT);
        }
        let none = || AuditCommandError::NoChain(chain.to_owned());
        let scope = Scope::Tenant(TenantId::parse(chain).map_err(|_| none())?);
        let of = scope.clone();
        if self.read(move |tx| audit::is_chain(tx, &of))? { Ok(scope) } else { Err(none()) }
    }

    /// The chains that there are, or must have been; `-` is the server's own.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub fn chains(&mut self) -> Result<Vec<String>, AuditCommandError> {
        Ok(self.read(|tx| audit::chains(tx, &AUDIT))?)
    }

    /// Walks a whole chain; `noted` must be met. Gives how many rows are good, and the last of them or what is wrong.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub fn verify(
        &mut self,
        chain: &str,
        noted: Option<Mark>,
    ) -> Result<(u64, Result<Mark, Fault>), AuditCommandError> {
        let scope = self.scope_of(chain)?;
        let mut walk = Walk::whole(noted);
        loop {
            let (of, after) = (scope.clone(), walk.at().seq);
            let rows = self.read(move |tx| audit::list(tx, &of, after, verify::PAGE_ROWS))?;
            if let Err(fault) = walk.take(&rows) {
                return Ok((walk.rows(), Err(fault)));
            }
            if rows.is_empty() {
                return Ok((walk.rows(), walk.end(&scope)));
            }
        }
    }

    /// Writes a chain's rows of a span.
    ///
    /// # Errors
    /// The registry cannot be read, or the output not written.
    pub fn export(
        &mut self,
        chain: &str,
        span: Span,
        format: Format,
        out: &mut impl Write,
    ) -> Result<(), AuditCommandError> {
        let scope = self.scope_of(chain)?;
        out.write_all(format.head().as_bytes())?;
        let mut after = 0;
        loop {
            let scope = scope.clone();
            let rows = self.read(move |tx| export::page(tx, &scope, span, after))?;
            let Some(last) = rows.last() else { return Ok(out.flush()?) };
            after = last.seq;
            out.write_all(format.rows(&rows).as_bytes())?;
        }
    }
}
