//! The migrations that are built in. Files never change once merged; a new one's number is above all others, since
//! what lies below a database's newest is never run on it.

#[allow(missing_docs, clippy::unwrap_used, reason = "written by the macro; names are checked when it runs")]
mod registry_files {
    refinery::embed_migrations!("migrations/registry");
}

#[allow(missing_docs, clippy::unwrap_used, reason = "written by the macro; names are checked when it runs")]
mod registry_postgres_files {
    refinery::embed_migrations!("migrations/registry-postgres");
}

/// The registry's migrations on SQLite.
#[must_use]
pub fn registry() -> refinery::Runner {
    registry_files::migrations::runner()
}

/// The registry's migrations on PostgreSQL: the same tables, in files and with numbers of their own.
#[must_use]
pub fn registry_postgres() -> refinery::Runner {
    registry_postgres_files::migrations::runner()
}
