//! What people do with rules.

use super::model::{FieldError, RULES_PER_TENANT_MAX, Rule, RuleHealth, RuleSpec, Selector, Trigger};
use super::validate::{Written, compile};
use super::{snapshot, store};
use crate::alerts::model::Severity;
use crate::platform::clock::SharedClock;
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::http_kit::Precondition;
use crate::platform::secret::random_bytes;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::TenantId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Why a rule was not stored or found.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// No such rule in the tenant.
    #[error("there is no such rule")]
    NotFound,
    /// A field is wrong.
    #[error(transparent)]
    Invalid(#[from] FieldError),
    /// The tenant's bound is reached.
    #[error("the tenant has {RULES_PER_TENANT_MAX} rules, which is the most")]
    TooMany,
    /// Another rule of the tenant has the name.
    #[error("another rule has this name")]
    NameTaken,
    /// Somebody else changed it in between.
    #[error("the rule was changed by somebody else: load it again")]
    Conflict,
    /// The database failed.
    #[error("rules cannot be stored or read")]
    Db(#[from] DbError),
}

/// A rule as somebody writes it. Unknown fields are refused, so the fields of [`RuleSpec`] stand here again.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleDraft {
    /// Unique in its tenant; 1 to 100 characters without spaces around them or control characters.
    #[schema(min_length = 1, max_length = 100, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$")]
    pub name: String,
    /// Whether it decides anything.
    #[serde(default = "enabled")]
    pub enabled: bool,
    /// Which devices.
    #[serde(default)]
    pub selector: Selector,
    /// What it looks at.
    pub on: Trigger,
    /// CEL that answers a bool: `value > 30 && labels.site == "north"`.
    #[schema(min_length = 1, max_length = 1024, example = "value > 30")]
    pub condition: String,
    /// CEL that answers when a firing alert clears; absent: when the condition no longer holds.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 1024)]
    pub clear: Option<String>,
    /// How long the condition must hold, in seconds: up to a week.
    #[serde(default)]
    #[schema(maximum = 604800, default = 0)]
    pub for_s: u32,
    /// How bad it is.
    pub severity: Severity,
    /// Text of the alert, with `{value}`, `{metric}`, `{device}`, `{labels.<name>}`...; absent: a text of the name.
    #[serde(default)]
    #[schema(max_length = 300)]
    pub message: Option<String>,
}

impl RuleDraft {
    fn parts(self) -> (String, bool, RuleSpec) {
        let Self { name, enabled, selector, on, condition, clear, for_s, severity, message } = self;
        (name, enabled, RuleSpec { selector, on, condition, clear, for_s, severity, message })
    }
}

fn enabled() -> bool {
    true
}

/// What the consumer and people share: that rules changed, and how they fare.
#[derive(Debug, Default)]
pub struct RuleBoard {
    generation: AtomicU64,
    /// How often it was asked that devices be forgotten, and how much of that is done.
    asked: AtomicU64,
    forgotten: AtomicU64,
    health: RwLock<HashMap<(String, String), RuleHealth>>,
}

impl RuleBoard {
    /// Counts changes of rules.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes the consumer read them again: a change was committed, here or by another process.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Asks the consumer to forget every device that is not known any more; gives the number to wait for.
    #[must_use]
    pub fn ask_to_forget(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether what was asked for is done and committed.
    #[must_use]
    pub fn has_forgotten(&self, asked: u64) -> bool {
        self.forgotten.load(Ordering::Acquire) >= asked
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    pub(super) fn set_forgotten(&self, asked: u64) {
        self.forgotten.fetch_max(asked, Ordering::AcqRel);
    }

    /// How a rule fares, where it runs.
    #[must_use]
    pub fn health(&self, tenant: &TenantId, id: &str) -> Option<RuleHealth> {
        let key = (tenant.as_str().to_owned(), id.to_owned());
        self.health.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    pub(super) fn set_health(&self, health: HashMap<(String, String), RuleHealth>) {
        *self.health.write().unwrap_or_else(PoisonError::into_inner) = health;
    }
}

/// Rules of every tenant.
#[derive(Clone)]
pub struct RuleService {
    db: Db,
    clock: SharedClock,
    board: Arc<RuleBoard>,
}

impl RuleService {
    /// A service on a registry.
    #[must_use]
    pub fn new(db: Db, clock: SharedClock, board: Arc<RuleBoard>) -> Self {
        Self { db, clock, board }
    }

    /// The shared board.
    #[must_use]
    pub fn board(&self) -> &Arc<RuleBoard> {
        &self.board
    }

    /// Whether what the rules committed covers the log below a position.
    ///
    /// # Errors
    /// The database's.
    pub async fn has_committed(&self, log_epoch: u64, position: u64) -> Result<bool, RuleError> {
        let cursor = self.db.read(|tx| store::cursor(tx, &snapshot::scope())).await?;
        Ok(cursor.is_some_and(|cursor| cursor.log_epoch == log_epoch && cursor.position >= position))
    }

    /// Checks a rule without storing it.
    ///
    /// # Errors
    /// The first field at fault.
    pub fn validate(&self, tenant: &TenantId, draft: RuleDraft) -> Result<(), FieldError> {
        let (name, _, spec) = draft.parts();
        check(tenant, &name, &spec)
    }

    /// Stores a new rule.
    ///
    /// # Errors
    /// A field is wrong, the name is taken, or the tenant has too many.
    pub async fn create(
        &self,
        who: &Principal,
        tenant: &TenantId,
        draft: RuleDraft,
    ) -> Result<Rule, RuleError> {
        let (name, enabled, spec) = draft.parts();
        check(tenant, &name, &spec)?;
        let now_us = self.clock.now_us();
        let rule = Rule {
            id: hex::encode(random_bytes::<8>()),
            name,
            enabled,
            version: 1,
            spec,
            created_at_us: now_us,
            updated_at_us: now_us,
        };
        let (scope, actor) = (Scope::Tenant(tenant.clone()), who.audit_name());
        let stored = self.db.write(move |tx| {
            let max = i64::try_from(RULES_PER_TENANT_MAX).unwrap_or(i64::MAX);
            if store::count(tx, &scope)? >= max {
                return Err(RuleError::TooMany);
            }
            store::insert(tx, &scope, &rule).map_err(name_taken)?;
            audit(tx, &scope, &actor, "rule.create", &rule)?;
            Ok(rule)
        });
        let rule = stored.await?;
        self.board.changed();
        Ok(rule)
    }

    /// Replaces a rule; its version grows by one. With `version` or a precondition, only if that is the stored one.
    ///
    /// # Errors
    /// There is none, a field is wrong, the name is taken, or somebody was faster.
    pub async fn update(
        &self,
        who: &Principal,
        tenant: &TenantId,
        id: &str,
        (version, expected): (Option<i64>, Precondition),
        draft: RuleDraft,
    ) -> Result<Rule, RuleError> {
        let (name, enabled, spec) = draft.parts();
        check(tenant, &name, &spec)?;
        let (scope, id, now_us) = (Scope::Tenant(tenant.clone()), id.to_owned(), self.clock.now_us());
        let actor = who.audit_name();
        let stored = self.db.write(move |tx| {
            let before = store::get(tx, &scope, &id)?.ok_or(RuleError::NotFound)?;
            let is_other = version.is_some_and(|version| version != before.version);
            if is_other || expected.check(&before.etag()).is_err() {
                return Err(RuleError::Conflict);
            }
            let rule =
                Rule { name, enabled, version: before.version + 1, spec, updated_at_us: now_us, ..before };
            if !store::update(tx, &scope, &rule).map_err(name_taken)? {
                return Err(RuleError::Conflict);
            }
            audit(tx, &scope, &actor, "rule.change", &rule)?;
            Ok(rule)
        });
        let rule = stored.await?;
        self.board.changed();
        Ok(rule)
    }

    /// Deletes a rule; its open alerts are cleared by the consumer.
    ///
    /// # Errors
    /// There is none, or it is another one than the caller expects.
    pub async fn delete(
        &self,
        who: &Principal,
        tenant: &TenantId,
        id: &str,
        expected: Precondition,
    ) -> Result<(), RuleError> {
        let (scope, id, now_us) = (Scope::Tenant(tenant.clone()), id.to_owned(), self.clock.now_us());
        let actor = who.audit_name();
        let deleted = self.db.write(move |tx| {
            let mut rule = store::get(tx, &scope, &id)?.ok_or(RuleError::NotFound)?;
            expected.check(&rule.etag()).map_err(|_| RuleError::Conflict)?;
            store::delete(tx, &scope, &id)?;
            rule.updated_at_us = now_us;
            Ok::<_, RuleError>(audit(tx, &scope, &actor, "rule.delete", &rule)?)
        });
        deleted.await?;
        self.board.changed();
        Ok(())
    }

    /// One rule.
    ///
    /// # Errors
    /// There is none.
    pub async fn get(&self, tenant: &TenantId, id: &str) -> Result<Rule, RuleError> {
        let (scope, id) = (Scope::Tenant(tenant.clone()), id.to_owned());
        let found = self.db.read(move |tx| Ok::<_, RuleError>(store::get(tx, &scope, &id)?)).await?;
        found.ok_or(RuleError::NotFound)
    }

    /// Rules by id, from after `after` on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(&self, tenant: &TenantId, after: &str, limit: i64) -> Result<Vec<Rule>, RuleError> {
        let (scope, after) = (Scope::Tenant(tenant.clone()), after.to_owned());
        self.db.read(move |tx| Ok(store::list(tx, &scope, &after, limit)?)).await
    }
}

fn check(tenant: &TenantId, name: &str, spec: &RuleSpec) -> Result<(), FieldError> {
    compile(&Written { tenant, id: "draft", version: 0, name, spec }).map(|_| ())
}

/// One row of the audit chain; the rule as it now is says what was done.
fn audit(
    tx: &mut Tx<'_>,
    scope: &Scope,
    actor: &str,
    action: &'static str,
    rule: &Rule,
) -> Result<(), DbError> {
    let detail = serde_json::json!({ "name": rule.name, "version": rule.version, "enabled": rule.enabled, "spec": rule.spec });
    audit::append(
        tx,
        scope,
        &AuditEntry { at_us: rule.updated_at_us, actor, action, object: &rule.id, detail },
    )
}

fn name_taken(error: DbError) -> RuleError {
    if error.is_unique_violation() { RuleError::NameTaken } else { error.into() }
}
