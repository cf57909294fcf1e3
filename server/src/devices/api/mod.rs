//! HTTP of devices, their tokens, certificates and claims.

mod authorities;
mod batch;
mod claims;
mod enrollments;
mod places;
mod profiles;
mod registry;

use super::pki::PkiError;
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
        .routes(routes!(registry::set_device_site, registry::clear_device_site))
        .routes(routes!(places::list_sites, places::create_site))
        .routes(routes!(places::get_site, places::change_site, places::delete_site))
        .routes(routes!(places::list_groups, places::create_group))
        .routes(routes!(places::get_group, places::change_group, places::delete_group))
        .routes(routes!(places::list_members))
        .routes(routes!(places::add_member, places::remove_member))
        .routes(routes!(registry::list_certificates))
        .routes(routes!(registry::revoke_certificate))
        .routes(routes!(claims::list_claims, claims::create_claim))
        .routes(routes!(claims::delete_claim))
        .routes(routes!(batch::create_devices))
        .routes(routes!(authorities::list_authorities))
        .routes(routes!(authorities::rotate_authority))
        .routes(routes!(authorities::retire_authority))
        .routes(routes!(profiles::list_profiles))
        .routes(routes!(profiles::get_profile, profiles::put_profile, profiles::delete_profile))
        .routes(routes!(enrollments::list_enrollments))
        .routes(routes!(enrollments::approve_enrollment))
        .routes(routes!(enrollments::reject_enrollment))
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
            DevicesError::CertificateRefused(_) => Self::new(ErrorCode::PermissionDenied, text),
            DevicesError::TooYoung { retry_after_s } => Self::locked(text, retry_after_s),
            DevicesError::Waits => Self::new(ErrorCode::Conflict, text),
            DevicesError::Rejected { .. } => Self::new(ErrorCode::PermissionDenied, text),
            DevicesError::Batch(errors) => batch::refusal(&errors),
            DevicesError::Disabled => Self::new(ErrorCode::PermissionDenied, text),
            DevicesError::TooMany { retry_after_s } => Self::locked(text, retry_after_s),
            DevicesError::Changed(why) => why.into(),
            DevicesError::Starting => Self::new(ErrorCode::Unavailable, text),
            DevicesError::NoGateway => Self::new(ErrorCode::Unavailable, text).before_work(),
            DevicesError::NotHere(not_here) => not_here.into(),
            DevicesError::Access(cause) => cause.into(),
            DevicesError::Pki(PkiError::UnderWay) => {
                Self::new(ErrorCode::Conflict, PkiError::UnderWay.to_string())
            }
            DevicesError::AuthorityInUse { .. } => Self::new(ErrorCode::Conflict, text),
            DevicesError::Pki(cause) => Self::internal(chain(&cause)),
            DevicesError::Db(cause) => cause.into(),
        }
    }
}
