//! HTTP of quotas, usage, the price list and invoice drafts.

mod invoices;
mod quotas;
mod reports;

use super::model::Refused;
use super::service::{UsageError, UsageService};
use crate::platform::http_kit::ApiError;
use std::collections::BTreeMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The slice's routes.
pub fn routes() -> OpenApiRouter<UsageService> {
    OpenApiRouter::new()
        .routes(routes!(quotas::get_quotas, quotas::put_quotas))
        .routes(routes!(reports::get_usage))
        .routes(routes!(reports::list_usage))
        .routes(routes!(invoices::get_invoice))
        .routes(routes!(invoices::get_prices, invoices::put_prices))
}

impl From<UsageError> for ApiError {
    fn from(error: UsageError) -> Self {
        match error {
            UsageError::Invalid { field, why } => Self::invalid(field, why),
            UsageError::NoPrices => Self::not_found("price list"),
            UsageError::Prices(error) => Self::invalid(error.field, error.why),
            UsageError::Tenants(error) => error.into(),
            UsageError::Db(cause) => cause.into(),
        }
    }
}

/// Refusals that happened, by reason.
fn refused_view(refused: &[u64; 13]) -> BTreeMap<&'static str, u64> {
    let pairs = Refused::ALL.iter().map(|reason| reason.as_str()).zip(*refused);
    pairs.filter(|(_, count)| *count > 0).collect()
}
