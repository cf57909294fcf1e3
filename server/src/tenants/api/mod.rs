//! HTTP of accounts, tenants, members, API tokens and audit.

mod audit;
mod auth;
mod leaves;
mod members;
mod roles;
mod sessions;
mod tenancy;
mod tokens;

use super::service::{Tenants, TenantsError};
use crate::platform::http_kit::{ApiError, chain};
use muster_wire::ErrorCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The slice's routes.
pub fn routes() -> OpenApiRouter<Tenants> {
    OpenApiRouter::new()
        .routes(routes!(auth::login))
        .routes(routes!(auth::logout))
        .routes(routes!(auth::me))
        .routes(routes!(auth::change_password))
        .routes(routes!(tenancy::list_tenants, tenancy::create_tenant))
        .routes(routes!(tenancy::get_tenant, tenancy::rename_tenant))
        .routes(routes!(tenancy::list_audit))
        .routes(routes!(audit::verify_audit))
        .routes(routes!(audit::export_audit))
        .routes(routes!(members::list_users, members::add_user))
        .routes(routes!(members::change_user, members::remove_user))
        .routes(routes!(sessions::list_sessions, sessions::end_other_sessions))
        .routes(routes!(sessions::end_session))
        .routes(routes!(sessions::list_user_sessions, sessions::end_user_sessions))
        .routes(routes!(sessions::unlock_user))
        .routes(routes!(roles::list_roles, roles::create_role))
        .routes(routes!(roles::change_role, roles::delete_role))
        .routes(routes!(leaves::create_reset))
        .routes(routes!(leaves::spend_reset))
        .routes(routes!(leaves::list_invitations, leaves::create_invitation))
        .routes(routes!(leaves::delete_invitation))
        .routes(routes!(leaves::accept_invitation))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::delete_token))
}

impl From<TenantsError> for ApiError {
    fn from(error: TenantsError) -> Self {
        let text = error.to_string();
        match error {
            TenantsError::Unauthenticated => Self::new(ErrorCode::Unauthenticated, text),
            TenantsError::Locked { retry_after_s } => Self::locked(text, retry_after_s),
            TenantsError::Denied(_) => Self::new(ErrorCode::PermissionDenied, text),
            TenantsError::NotFound(noun) => Self::not_found(noun),
            TenantsError::Conflict(_) => Self::new(ErrorCode::Conflict, text),
            TenantsError::Invalid { field, why } => Self::invalid(field, why),
            TenantsError::Changed(why) => why.into(),
            TenantsError::Quota { .. } => Self::new(ErrorCode::RateLimited, text),
            TenantsError::Password(cause) => Self::internal(chain(&cause)),
            TenantsError::Db(cause) => cause.into(),
        }
    }
}
