//! Who may do what: pure values and one pure function.

use super::reach::{Reach, Whereabouts};
use muster_wire::TenantId;

/// What a member of a tenant may do, from the most to the least.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, answers alerts, edits and switches devices.
    Operator,
    /// Everything but owners.
    Admin,
    /// Everything.
    Owner,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Admin, Self::Owner];

    /// The stored text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The role of a stored text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $role:ident;)*) => {
        /// One thing to do; also a scope of an API token.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum Permission { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl Permission {
            /// Every permission.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable text, as it stands in tokens.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The weakest role that has it.
            #[must_use]
            pub fn least_role(self) -> Role {
                match self { $(Self::$name => Role::$role,)* }
            }
        }
    };
}

permissions! {
    /// See the tenant.
    TenantRead = "tenant:read", Viewer;
    /// Rename the tenant.
    TenantWrite = "tenant:write", Admin;
    /// See members.
    UsersRead = "users:read", Admin;
    /// Add, change and remove members.
    UsersWrite = "users:write", Admin;
    /// See API tokens (never their secrets).
    TokensRead = "tokens:read", Admin;
    /// Make and revoke API tokens.
    TokensWrite = "tokens:write", Admin;
    /// See the audit chain.
    AuditRead = "audit:read", Admin;
    /// See devices and their certificates.
    DevicesRead = "devices:read", Viewer;
    /// Edit, enable and disable devices.
    DevicesOperate = "devices:operate", Operator;
    /// Create and delete devices, their claims, tokens and certificates.
    DevicesWrite = "devices:write", Admin;
    /// See readings, events, the ledger and the live stream.
    TelemetryRead = "telemetry:read", Viewer;
    /// See rules.
    RulesRead = "rules:read", Viewer;
    /// Change rules.
    RulesWrite = "rules:write", Admin;
    /// See alerts.
    AlertsRead = "alerts:read", Viewer;
    /// Acknowledge and resolve alerts.
    AlertsWrite = "alerts:write", Operator;
    /// Erase a device with everything that is stored of it.
    DataErase = "data:erase", Admin;
    /// See erasures and fetch what they exported.
    DataExport = "data:export", Admin;
    /// Erase the tenant.
    TenantErase = "tenant:erase", Owner;
    /// See quotas and what was used of them.
    UsageRead = "usage:read", Viewer;
    /// See what it costs.
    InvoicesRead = "invoices:read", Admin;
    /// Subscribe to the tenant's `up/` topics as an integration client.
    MqttSubscribe = "mqtt:subscribe", Admin;
    /// Create tenants. Of the whole server: a role never gives it, see [`Principal`].
    PlatformAdmin = "platform:admin", Owner;
}

/// Written out: the derived one does not see the texts through the macro.
impl utoipa::PartialSchema for Permission {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let texts = Self::ALL.iter().map(|permission| permission.as_str());
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some("One thing to do; also a scope of an API token."))
            .enum_values(Some(texts))
            .into()
    }
}

impl utoipa::ToSchema for Permission {}

impl Permission {
    /// The permission of a token's text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|permission| permission.as_str() == text)
    }
}

/// The role that somebody was given: one of the four, or one of the tenant's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GivenRole {
    /// One of the four.
    BuiltIn(Role),
    /// A set of permissions that the tenant named.
    Custom {
        /// The role's id.
        role_id: String,
        /// What it allows.
        permissions: Vec<Permission>,
    },
}

impl From<Role> for GivenRole {
    fn from(role: Role) -> Self {
        Self::BuiltIn(role)
    }
}

impl GivenRole {
    /// The stored text: the role's name, or its id.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::BuiltIn(role) => role.as_str(),
            Self::Custom { role_id, .. } => role_id,
        }
    }

    /// Whether it allows something within a tenant. No role allows what is of the whole server.
    #[must_use]
    pub fn allows(&self, permission: Permission) -> bool {
        permission != Permission::PlatformAdmin
            && match self {
                Self::BuiltIn(role) => *role >= permission.least_role(),
                Self::Custom { permissions, .. } => permissions.contains(&permission),
            }
    }

    /// All that it allows.
    #[must_use]
    pub fn permissions(&self) -> Vec<Permission> {
        Permission::ALL.iter().copied().filter(|permission| self.allows(*permission)).collect()
    }

    /// Whether who has this role may give or take another: nobody gives more than they have, and only owners make owners.
    #[must_use]
    fn covers(&self, other: &Self) -> bool {
        let owner = Self::BuiltIn(Role::Owner);
        (*other != owner || *self == owner)
            && other.permissions().into_iter().all(|permission| self.allows(permission))
    }
}

/// What somebody may in one tenant, and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The tenant.
    pub tenant: TenantId,
    /// What they may.
    pub role: GivenRole,
    /// Where.
    pub reach: Reach,
}

impl Membership {
    /// A membership without bounds.
    #[must_use]
    pub fn whole(tenant: TenantId, role: impl Into<GivenRole>) -> Self {
        Self { tenant, role: role.into(), reach: Reach::Everything }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A person with a session.
    User {
        /// The account.
        user_id: String,
        /// Its address.
        email: String,
        /// What they may in each tenant.
        memberships: Vec<Membership>,
        /// May create tenants.
        system_admin: bool,
        /// The one-time password was not changed yet: nothing that needs a permission is allowed.
        password_pending: bool,
    },
    /// A program with an API token.
    Token {
        /// The token's id.
        token_id: String,
        /// Its only tenant, the role that it cannot exceed, and how far it reaches.
        membership: Membership,
        /// What it may do.
        scopes: Vec<Permission>,
    },
}

/// What somebody asks for, with the facts that decide.
#[derive(Clone, Copy, Debug)]
pub enum Object<'a> {
    /// Something of the whole server.
    Server,
    /// Something of a whole tenant: its people, its rules, its audit chain. Nobody with a bounded reach has it.
    Tenant(&'a TenantId),
    /// Something that is cut to the caller's reach: a list of devices.
    Part(&'a TenantId),
    /// One device, or what belongs to it.
    Device(&'a TenantId, &'a Whereabouts),
}

impl<'a> Object<'a> {
    fn tenant(self) -> Option<&'a TenantId> {
        match self {
            Self::Server => None,
            Self::Tenant(tenant) | Self::Part(tenant) | Self::Device(tenant, _) => Some(tenant),
        }
    }

    fn is_within(self, reach: &Reach) -> Decision {
        match self {
            Self::Server => Decision::Denied,
            Self::Tenant(_) if reach.is_everything() => Decision::Allow,
            Self::Tenant(_) => Decision::OutOfReach,
            Self::Part(_) => Decision::Allow,
            Self::Device(_, device) if reach.covers(device) => Decision::Allow,
            Self::Device(..) => Decision::NotFound,
        }
    }
}

/// The answer to "may they?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// They may not know that it exists.
    NotFound,
    /// They may see the tenant, but not do this.
    Denied,
    /// They may do this, but not to the whole tenant.
    OutOfReach,
    /// They must change the one-time password first.
    PasswordPending,
}

/// Decides from values alone.
#[must_use]
pub fn authorise(who: &Principal, permission: Permission, object: Object<'_>) -> Decision {
    let platform = permission == Permission::PlatformAdmin;
    let scopes = match who {
        Principal::User { password_pending: true, .. } => return Decision::PasswordPending,
        Principal::User { system_admin, .. } if platform => return allow_if(*system_admin),
        Principal::Token { scopes, .. } if platform => return allow_if(scopes.contains(&permission)),
        Principal::User { .. } => None,
        Principal::Token { scopes, .. } => Some(scopes),
    };
    let Some(membership) = object.tenant().and_then(|tenant| who.membership_in(tenant)) else {
        return Decision::NotFound;
    };
    if !membership.role.allows(permission) || scopes.is_some_and(|scopes| !scopes.contains(&permission)) {
        return Decision::Denied;
    }
    object.is_within(&membership.reach)
}

fn allow_if(allowed: bool) -> Decision {
    if allowed { Decision::Allow } else { Decision::Denied }
}

impl Principal {
    /// What they are in a tenant.
    #[must_use]
    pub fn membership_in(&self, tenant: &TenantId) -> Option<&Membership> {
        match self {
            Self::User { memberships, .. } => {
                memberships.iter().find(|membership| membership.tenant == *tenant)
            }
            Self::Token { membership, .. } => (membership.tenant == *tenant).then_some(membership),
        }
    }

    /// How far they reach in a tenant. Who is no member was refused before.
    #[must_use]
    pub fn reach_in(&self, tenant: &TenantId) -> Reach {
        self.membership_in(tenant).map(|membership| membership.reach.clone()).unwrap_or_default()
    }

    /// The account's id, or the token's.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::User { user_id, .. } => user_id,
            Self::Token { token_id, .. } => token_id,
        }
    }

    /// How it stands in audit rows: `user:<email>` or `token:<id>`.
    #[must_use]
    pub fn audit_name(&self) -> String {
        match self {
            Self::User { email, .. } => format!("user:{email}"),
            Self::Token { token_id, .. } => format!("token:{token_id}"),
        }
    }

    /// Whether it may hand this permission on to a token of `tenant`.
    #[must_use]
    pub fn may_grant_scope(&self, scope: Permission, tenant: &TenantId) -> bool {
        authorise(self, scope, Object::Tenant(tenant)) == Decision::Allow
    }
}

/// Whether `actor` may give, change or take a role: nobody touches what is more than their own.
#[must_use]
pub fn may_change_role(actor: &Membership, from: Option<&GivenRole>, to: Option<&GivenRole>) -> bool {
    let Membership { role, reach, .. } = actor;
    let covers = |other: Option<&GivenRole>| other.is_none_or(|other| role.covers(other));
    role.allows(Permission::UsersWrite) && reach.is_everything() && covers(from) && covers(to)
}

/// Whether somebody may act on an account as a whole: in every tenant that it is a member of.
#[must_use]
pub fn governs(who: &Principal, of: &[Membership], system_admin: bool) -> bool {
    let may_in = |membership: &Membership| {
        let own = who.membership_in(&membership.tenant);
        own.is_some_and(|own| may_change_role(own, Some(&membership.role), None))
    };
    authorise(who, Permission::PlatformAdmin, Object::Server) == Decision::Allow
        || !system_admin && of.iter().all(may_in)
}

/// The longest address, name and password, in bytes.
pub const TEXT_BYTES_MAX: usize = 254;
/// The shortest password, in characters.
pub const PASSWORD_CHARS_MIN: usize = 12;

/// Why a text of a person is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field} {why}")]
pub struct TextError {
    /// The field.
    pub field: &'static str,
    /// What was expected.
    pub why: &'static str,
}

/// Checks and lowers an address.
///
/// # Errors
/// Not `local@domain`.
pub fn parse_email(text: &str) -> Result<String, TextError> {
    let email = if text.len() > TEXT_BYTES_MAX { String::new() } else { text.trim().to_lowercase() };
    let shape = email.split_once('@').is_some_and(|(local, domain)| {
        !local.is_empty() && !domain.is_empty() && !domain.contains('@') && !domain.starts_with('.')
    });
    let plain = email.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if shape && plain && email.len() <= TEXT_BYTES_MAX {
        return Ok(email);
    }
    Err(TextError { field: "email", why: "must be an address: local@domain, of at most 254 bytes" })
}

/// Checks a new password.
///
/// # Errors
/// Too short or too long.
pub fn check_password(text: &str) -> Result<(), TextError> {
    if text.chars().count() >= PASSWORD_CHARS_MIN && text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(TextError { field: "new_password", why: "must have 12 characters or more, and at most 254 bytes" })
}

/// Checks a name that people read.
///
/// # Errors
/// Empty, too long, or with control characters.
pub fn check_name(text: &str) -> Result<(), TextError> {
    let plain = text.chars().all(|c| !c.is_control());
    if plain && !text.trim().is_empty() && text.len() <= 128 {
        return Ok(());
    }
    Err(TextError { field: "name", why: "must have 1 to 128 bytes and no control characters" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused<T: std::fmt::Debug>(checked: Result<T, TextError>, field: &str, why: &str) {
        let error = checked.unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.why.contains(why), "{error}");
    }

    #[test]
    fn texts_of_people_are_bounded() {
        let email = |bytes: usize| format!("{}@b.c", "a".repeat(bytes - 4));
        assert_eq!(parse_email(&email(TEXT_BYTES_MAX)), Ok(email(TEXT_BYTES_MAX)));
        refused(parse_email(&email(TEXT_BYTES_MAX + 1)), "email", "at most 254 bytes");
        // A capital letter of two bytes whose small one has three.
        refused(parse_email(&format!("\u{23a}{}", email(TEXT_BYTES_MAX - 2))), "email", "at most 254 bytes");
        let text = |bytes: usize| "x".repeat(bytes);
        assert!(check_password(&text(PASSWORD_CHARS_MIN)).is_ok());
        assert!(check_password(&text(TEXT_BYTES_MAX)).is_ok());
        refused(check_password(&text(PASSWORD_CHARS_MIN - 1)), "new_password", "12 characters or more");
        refused(check_password(&text(TEXT_BYTES_MAX + 1)), "new_password", "at most 254 bytes");
        assert!(check_name(&text(128)).is_ok());
        refused(check_name(&text(129)), "name", "1 to 128 bytes");
    }
}
