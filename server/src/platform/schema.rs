//! The migrations that are built in. Files never change once merged; a slice adds its own under its numbers.
//!
//! Registry: V1 to V9 tenants and devices, V10 to V19 rules and alerts.

#[allow(missing_docs, clippy::unwrap_used, reason = "written by the macro; names are checked when it runs")]
mod registry_files {
    refinery::embed_migrations!("migrations/registry");
}

/// The registry's migrations.
#[must_use]
pub fn registry() -> refinery::Runner {
    registry_files::migrations::runner()
}
