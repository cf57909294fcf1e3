//! Quotas of tenants, what they used, the price list and invoice drafts.

use super::board::Board;
use super::gap::{GAPS_MAX, GapView};
use super::invoice::{Invoice, PriceError, PriceList};
use super::model::{
    DAY_US, DayRow, Notice, QuotaSpec, Quotas, RETENTION_DAYS, day_of, month_after, month_text,
};
use super::store;
use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::{Principal, Tenants, TenantsError};
use muster_wire::TenantId;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Notices that are told in one pass.
pub const UNTOLD_MAX: i64 = 100;

/// Why usage or quotas cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A quota that cannot be.
    #[error("{field} {why}")]
    Invalid {
        /// The quota.
        field: &'static str,
        /// What was expected.
        why: String,
    },
    /// No price list was set.
    #[error("there is no price list")]
    NoPrices,
    /// The price list cannot be.
    #[error(transparent)]
    Prices(#[from] PriceError),
    /// No such tenant.
    #[error(transparent)]
    Tenants(#[from] TenantsError),
    /// The database failed.
    #[error("usage cannot be stored or read")]
    Db(#[from] DbError),
}

/// The slice's service; clones share it.
#[derive(Clone)]
pub struct UsageService {
    inner: Arc<Inner>,
    has_gateway: bool,
}

struct Inner {
    db: Db,
    clock: SharedClock,
    tenants: Tenants,
    board: Arc<Board>,
    /// One change at a time: what the board holds is what was committed last.
    changing: Mutex<()>,
}

/// A tenant's quotas, and where it stands with them today.
#[derive(Clone, Debug)]
pub struct Standing {
    /// In force.
    pub quotas: Quotas,
    /// Those of the tenant's own.
    pub own: QuotaSpec,
    /// The day (days since 1970, UTC).
    pub day: i64,
    /// What was counted of it, a second or so ago.
    pub today: DayRow,
    /// Messages and bytes that the gateway admitted on it.
    pub admitted: (u64, u64),
    /// Open connections; none in a process without the gateway.
    pub connections: Option<u64>,
    /// Limits reached on it.
    pub notices: Vec<Notice>,
}

fn every_tenant() -> Scope {
    Scope::System("usage: the meter counts every tenant's records")
}

fn of_server() -> Scope {
    Scope::System("usage: the price list")
}

impl UsageService {
    /// Puts the quotas of configuration and registry in force.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn open(
        db: Db,
        clock: SharedClock,
        config: &Live,
        tenants: Tenants,
        board: Arc<Board>,
    ) -> Result<Self, UsageError> {
        board.set_defaults(Quotas::of_config(&config.get().quota));
        let own = db.read(|tx| store::quotas_all(tx, &every_tenant())).await?;
        board.set_all_own(own);
        let inner = Inner { db, clock, tenants, board, changing: Mutex::new(()) };
        Ok(Self { inner: Arc::new(inner), has_gateway: true })
    }

    /// In a process without the gateway: nobody's connections are counted there.
    #[must_use]
    pub fn without_gateway(self) -> Self {
        Self { has_gateway: false, ..self }
    }

    /// Puts in force what another process made of a tenant's quotas.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh(&self, tenant: &TenantId) -> Result<(), UsageError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let scope = Scope::Tenant(tenant.clone());
        let own = self.inner.db.read(move |tx| store::quotas_get(tx, &scope)).await?;
        self.inner.board.set_own(tenant.as_str(), own);
        Ok(())
    }

    /// As [`Self::refresh`], for every tenant.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh_all(&self) -> Result<(), UsageError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let own = self.inner.db.read(|tx| store::quotas_all(tx, &every_tenant())).await?;
        self.inner.board.set_all_own(own);
        Ok(())
    }

    /// What the gateway asks.
    #[must_use]
    pub fn board(&self) -> &Arc<Board> {
        &self.inner.board
    }

    /// The day now (days since 1970, UTC).
    #[must_use]
    pub fn today(&self) -> i64 {
        day_of(self.inner.clock.now_us())
    }

    /// A tenant's quotas and where it stands with them.
    ///
    /// # Errors
    /// No such tenant; the database's.
    pub async fn standing(&self, tenant: &TenantId) -> Result<Standing, UsageError> {
        self.inner.tenants.tenant(tenant).await?;
        let (day, scope) = (self.today(), Scope::Tenant(tenant.clone()));
        let read = move |tx: &mut Tx<'_>| {
            Ok::<_, DbError>((
                store::days_of(tx, &scope, &(day..=day))?,
                store::notices_of(tx, &scope, &(day..=day))?,
            ))
        };
        let (days, notices) = self.inner.db.read(read).await?;
        let (board, allowance) = (&self.inner.board, self.inner.board.of(tenant.as_str()));
        Ok(Standing {
            quotas: board.quotas(tenant.as_str()),
            own: board.own(tenant.as_str()).unwrap_or_default(),
            day,
            today: days.into_iter().next().unwrap_or_default(),
            admitted: allowance.used(),
            connections: self.has_gateway.then(|| allowance.connections()),
            notices,
        })
    }

    /// Gives a tenant quotas of its own, in place of those before; in force when this returns. What is committed comes into
    /// force even where the caller goes away meanwhile.
    ///
    /// # Errors
    /// No such tenant; a quota that cannot be.
    pub async fn set_quotas(
        &self,
        who: &Principal,
        tenant: &TenantId,
        own: QuotaSpec,
    ) -> Result<Standing, UsageError> {
        if let Some((field, why)) = own.fault() {
            return Err(UsageError::Invalid { field, why });
        }
        self.inner.tenants.tenant(tenant).await?;
        let changing = self.clone().change(who.audit_name(), tenant.clone(), own);
        tokio::spawn(changing).await.map_err(|_| DbError::Closed)??;
        self.standing(tenant).await
    }

    async fn change(self, actor: String, tenant: TenantId, own: QuotaSpec) -> Result<(), DbError> {
        let kept = Some(own).filter(|own| *own != QuotaSpec::default());
        let _one_at_a_time = self.inner.changing.lock().await;
        let (scope, now_us) = (Scope::Tenant(tenant.clone()), self.inner.clock.now_us());
        let write = move |tx: &mut Tx<'_>| {
            store::quotas_put(tx, &scope, kept.as_ref(), &actor, now_us)?;
            let (object, detail) = (scope.tenant()?, serde_json::json!(own));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action: "quota.change", object, detail };
            audit::append(tx, &scope, &entry)
        };
        self.inner.db.write(write).await?;
        self.inner.board.set_own(tenant.as_str(), kept);
        Ok(())
    }

    /// A tenant's days and the limits that it reached.
    ///
    /// # Errors
    /// The database's.
    pub async fn days(
        &self,
        tenant: &TenantId,
        days: RangeInclusive<i64>,
    ) -> Result<(Vec<DayRow>, Vec<Notice>), UsageError> {
        let scope = Scope::Tenant(tenant.clone());
        let read = move |tx: &mut Tx<'_>| {
            Ok::<_, DbError>((store::days_of(tx, &scope, &days)?, store::notices_of(tx, &scope, &days)?))
        };
        Ok(self.inner.db.read(read).await?)
    }

    /// Every tenant's days from after `(day, tenant)` on.
    ///
    /// # Errors
    /// The database's.
    pub async fn all_days(
        &self,
        days: RangeInclusive<i64>,
        after: (i64, String),
        limit: i64,
    ) -> Result<Vec<DayRow>, UsageError> {
        let read = move |tx: &mut Tx<'_>| store::days_all(tx, &every_tenant(), &days, &after, limit);
        Ok(self.inner.db.read(read).await?)
    }

    /// The price list.
    ///
    /// # Errors
    /// None was set; the database's.
    pub async fn prices(&self) -> Result<PriceList, UsageError> {
        let text =
            self.inner.db.read(|tx| store::prices(tx, &of_server())).await?.ok_or(UsageError::NoPrices)?;
        serde_json::from_str(&text).map_err(|_| UsageError::Db(DbError::Column { column: "spec".into() }))
    }

    /// Replaces the price list.
    ///
    /// # Errors
    /// A list that cannot be.
    pub async fn set_prices(&self, who: &Principal, list: PriceList) -> Result<PriceList, UsageError> {
        list.check()?;
        let (actor, now_us, stored) = (who.audit_name(), self.inner.clock.now_us(), list.clone());
        let write = move |tx: &mut Tx<'_>| {
            let (scope, detail) = (of_server(), serde_json::json!(stored));
            store::prices_put(tx, &scope, &detail.to_string(), &actor, now_us)?;
            let entry =
                AuditEntry { at_us: now_us, actor: &actor, action: "prices.change", object: "-", detail };
            audit::append(tx, &scope, &entry)
        };
        self.inner.db.write(write).await?;
        Ok(list)
    }

    /// What a month's usage costs by the price list as it is now; a draft, for a person to look at.
    ///
    /// # Errors
    /// No price list; the database's.
    pub async fn invoice(&self, tenant: &TenantId, month_start: i64) -> Result<Invoice, UsageError> {
        let prices = self.prices().await?;
        let next = month_after(month_start);
        let days = month_start..=next - 1;
        let (rows, _) = self.days(tenant, days.clone()).await?;
        let (gaps, counted_us) = self.gaps(days).await?;
        let is_complete = self.today() >= next && counted_us >= next * DAY_US;
        let month = month_text(month_start);
        Ok(Invoice::draft(tenant.as_str(), &month, is_complete, &prices, &rows).with_gaps(gaps))
    }

    /// What of some days was never counted, the newest first, and up to when all else is.
    ///
    /// # Errors
    /// The database's.
    pub async fn gaps(&self, days: RangeInclusive<i64>) -> Result<(Vec<GapView>, i64), UsageError> {
        let times = (days.start() * DAY_US, (days.end() + 1) * DAY_US);
        let read = move |tx: &mut Tx<'_>| {
            let scope = every_tenant();
            let last = store::cursors(tx, &scope)?.into_iter().max_by_key(|cursor| cursor.commits);
            let gaps = store::gaps_between(tx, &scope, times, GAPS_MAX)?;
            Ok::<_, DbError>((gaps, last.map_or(0, |last| last.counted_us)))
        };
        let (gaps, counted_us) = self.inner.db.read(read).await?;
        Ok((gaps.into_iter().map(GapView::from).collect(), counted_us))
    }

    /// Notices whose alert is not open yet.
    ///
    /// # Errors
    /// The database's.
    pub async fn untold(&self) -> Result<Vec<Notice>, UsageError> {
        Ok(self.inner.db.read(|tx| store::notices_untold(tx, &every_tenant(), UNTOLD_MAX)).await?)
    }

    /// A notice's alert is open.
    ///
    /// # Errors
    /// The database's.
    pub async fn told(&self, notice: Notice) -> Result<(), UsageError> {
        Ok(self.inner.db.write(move |tx| store::notice_told(tx, &every_tenant(), &notice)).await?)
    }

    /// The first day whose usage may still be there.
    #[must_use]
    pub fn oldest_day(&self) -> i64 {
        self.today() - RETENTION_DAYS + 1
    }
}
