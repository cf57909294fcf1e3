//! `/api/v1/tenants/{tenant}/rules`.

use super::model::{FieldError, Rule, RuleHealth, Selector, Trigger};
use super::service::{RuleDraft, RuleError, RuleService};
use crate::alerts::model::Severity;
use crate::platform::http_kit::schema::{without_bounds, written};
use crate::platform::http_kit::{
    ApiError, ApiJson, ApiPath, ApiQuery, IfMatch, IfMatchHeader, Items, PageQuery, Tagged,
};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::{ErrorCode, TenantId};
use utoipa::PartialSchema as _;
use utoipa::openapi::{RefOr, Schema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The slice's routes.
pub fn routes() -> OpenApiRouter<RuleService> {
    OpenApiRouter::new()
        .routes(routes!(list_rules, create_rule))
        .routes(routes!(validate_rule))
        .routes(routes!(get_rule, replace_rule, delete_rule))
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        let FieldError { field, message, position } = error;
        let place = position.map_or_else(String::new, |at| format!("{at}: "));
        Self::invalid(field, format!("{place}{message}"))
    }
}

impl From<RuleError> for ApiError {
    fn from(error: RuleError) -> Self {
        let text = error.to_string();
        match error {
            RuleError::NotFound => Self::not_found("rule"),
            RuleError::Invalid(error) => error.into(),
            RuleError::TooMany => Self::new(ErrorCode::RateLimited, text),
            RuleError::NameTaken => Self::new(ErrorCode::Conflict, text).at("name"),
            RuleError::Conflict => Self::new(ErrorCode::PreconditionFailed, text),
            RuleError::Db(cause) => cause.into(),
        }
    }
}

/// A rule with how it fares.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct RuleView {
    /// The rule.
    #[serde(flatten)]
    rule: Rule,
    /// Absent where it does not run (disabled, or written within the last second).
    health: Option<RuleHealth>,
}

/// Whether a rule would be accepted.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ValidationView {
    /// Whether it would.
    valid: bool,
    /// The field at fault, as a path.
    field: Option<String>,
    /// What was expected.
    message: Option<String>,
    /// Where in the field's text, from 1.
    line: Option<usize>,
    /// The character within the line, from 1.
    column: Option<usize>,
}

/// A rule to look at: the fields of a written one, whatever they hold.
pub struct RuleToCheck;

impl utoipa::PartialSchema for RuleToCheck {
    fn schema() -> RefOr<Schema> {
        let mut draft = without_bounds(RuleDraft::schema());
        draft["description"] = "A rule to look at: the fields of a written one, whatever they hold.".into();
        draft["properties"]["selector"] = without_bounds(Selector::schema());
        draft["properties"]["on"] = without_bounds(Trigger::schema());
        written(draft)
    }
}

impl utoipa::ToSchema for RuleToCheck {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Severity::name().into(), Severity::schema()));
    }
}

/// What a change expects.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReplaceQuery {
    /// The version that the change was made from; 412 where it is another.
    version: Option<i64>,
}

fn view(rules: &RuleService, tenant: &TenantId, rule: Rule) -> RuleView {
    let health = rules.board().health(tenant, &rule.id).filter(|health| health.version == rule.version);
    RuleView { rule, health }
}

/// A change depends on the rule alone; how it fares counts for a copy of it.
fn tagged(view: RuleView) -> Tagged<RuleView> {
    Tagged(view.rule.etag().beside(&view.health), view)
}

/// The tenant's rules, by id.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/rules", tag = "rules",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of rules", body = Items<RuleView>)))]
pub async fn list_rules(
    State(rules): State<RuleService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<RuleView>>, ApiError> {
    caller.require(Permission::RulesRead, &tenant)?;
    let page = query.page()?;
    let rows = rules.list(&tenant, page.after_text(), page.fetch()).await?;
    Ok(Json(page.items(rows, |rule| rule.id.clone(), |rule| view(&rules, &tenant, rule))))
}

/// Writes a new rule. A fault names its field and the place in its text.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/rules", tag = "rules", params(("tenant" = String, Path)),
    request_body = RuleDraft, responses((status = 201, description = "Written", body = RuleView)))]
pub async fn create_rule(
    State(rules): State<RuleService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(draft): ApiJson<RuleDraft>,
) -> Result<(StatusCode, Json<RuleView>), ApiError> {
    let who = caller.require(Permission::RulesWrite, &tenant)?;
    let rule = rules.create(who, &tenant, draft).await?;
    Ok((StatusCode::CREATED, Json(view(&rules, &tenant, rule))))
}

/// Checks a rule without writing it.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/rules/validate", tag = "rules", params(("tenant" = String, Path)),
    request_body = RuleToCheck, responses((status = 200, description = "Whether it is valid", body = ValidationView)))]
pub async fn validate_rule(
    State(rules): State<RuleService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(draft): ApiJson<RuleDraft>,
) -> Result<Json<ValidationView>, ApiError> {
    caller.require(Permission::RulesRead, &tenant)?;
    let fault = rules.validate(&tenant, draft).err();
    let position = fault.as_ref().and_then(|fault| fault.position);
    Ok(Json(ValidationView {
        valid: fault.is_none(),
        line: position.map(|at| at.line),
        column: position.map(|at| at.column),
        field: fault.as_ref().map(|fault| fault.field.clone()),
        message: fault.map(|fault| fault.message),
    }))
}

/// One rule.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/rules/{rule}", tag = "rules",
    params(("tenant" = String, Path), ("rule" = String, Path)),
    responses((status = 200, description = "The rule", body = RuleView,
               headers(("ETag" = String, description = "The object's state, for `If-None-Match` and `If-Match`")))))]
pub async fn get_rule(
    State(rules): State<RuleService>,
    caller: Caller,
    ApiPath((tenant, rule)): ApiPath<(TenantId, String)>,
) -> Result<Tagged<RuleView>, ApiError> {
    caller.require(Permission::RulesRead, &tenant)?;
    let rule = rules.get(&tenant, &rule).await?;
    Ok(tagged(view(&rules, &tenant, rule)))
}

/// Replaces a rule by its next version; open alerts of the version before are cleared.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/rules/{rule}", tag = "rules",
    params(("tenant" = String, Path), ("rule" = String, Path), ReplaceQuery, IfMatchHeader), request_body = RuleDraft,
    responses((status = 200, description = "The rule", body = RuleView,
               headers(("ETag" = String, description = "The object's state, for `If-None-Match` and `If-Match`")))))]
pub async fn replace_rule(
    State(rules): State<RuleService>,
    caller: Caller,
    ApiPath((tenant, rule)): ApiPath<(TenantId, String)>,
    ApiQuery(query): ApiQuery<ReplaceQuery>,
    IfMatch(expected): IfMatch,
    ApiJson(draft): ApiJson<RuleDraft>,
) -> Result<Tagged<RuleView>, ApiError> {
    let who = caller.require(Permission::RulesWrite, &tenant)?;
    let rule = rules.update(who, &tenant, &rule, (query.version, expected), draft).await?;
    Ok(tagged(view(&rules, &tenant, rule)))
}

/// Deletes a rule; its open alerts are cleared.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/rules/{rule}", tag = "rules",
    params(("tenant" = String, Path), ("rule" = String, Path), IfMatchHeader),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_rule(
    State(rules): State<RuleService>,
    caller: Caller,
    ApiPath((tenant, rule)): ApiPath<(TenantId, String)>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::RulesWrite, &tenant)?;
    rules.delete(who, &tenant, &rule, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}
