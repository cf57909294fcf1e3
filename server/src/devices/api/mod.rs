//! HTTP of devices, their tokens, certificates and claims.

mod claims;
mod registry;

use super::service::{Devices, DevicesError};
use crate::platform::http_kit::{ApiError, chain};
use muster_wire::ErrorCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The slice's routes.
pub fn routes() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(registry::list_devices, registry::create_device))
        .routes(routes!(registry::get_device, registry::change_device, registry::delete_device))
        .routes(routes!(registry::create_device_token, registry::delete_device_token))
        .routes(routes!(registry::list_certificates))
        .routes(routes!(registry::revoke_certificate))
        .routes(routes!(claims::list_claims, claims::create_claim))
        .routes(routes!(claims::delete_claim))
}

impl From<DevicesError> for ApiError {
    fn from(error: DevicesError) -> Self {
        let text = error.to_string();
        match error {
            DevicesError::NotFound(noun) => Self::not_found(noun),
            DevicesError::Conflict(_) => Self::new(ErrorCode::Conflict, text),
            DevicesError::Field(field) => Self::invalid(field.field, field.why),
            DevicesError::Csr(why) => Self::invalid("csr_pem", why.to_string()),
            DevicesError::Quota { .. } => Self::new(ErrorCode::RateLimited, text),
            DevicesError::ClaimUnknown => Self::new(ErrorCode::Unauthenticated, text),
            DevicesError::ClaimSpent => Self::new(ErrorCode::ClaimSpent, text),
            DevicesError::Disabled => Self::new(ErrorCode::PermissionDenied, text),
            DevicesError::TooMany { retry_after_s } => Self::locked(text, retry_after_s),
            DevicesError::Starting => Self::new(ErrorCode::Unavailable, text),
            DevicesError::Pki(cause) => Self::internal(chain(&cause)),
            DevicesError::Db(cause) => cause.into(),
        }
    }
}
