//! Who may do what: pure values and one pure function.

use muster_wire::{ErrorCode, TenantId};

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
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
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
    /// Subscribe to the tenant's `up/` topics as an integration client.
    MqttSubscribe = "mqtt:subscribe", Admin;
    /// Create tenants. Of the whole server: a role never gives it, see [`Principal`].
    PlatformAdmin = "platform:admin", Owner;
}

impl Permission {
    /// The permission of a token's text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|permission| permission.as_str() == text)
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
        /// Role in each tenant.
        memberships: Vec<(TenantId, Role)>,
        /// May create tenants.
        system_admin: bool,
        /// The one-time password was not changed yet: nothing that needs a permission is allowed.
        password_pending: bool,
    },
    /// A program with an API token.
    Token {
        /// The token's id.
        token_id: String,
        /// Its only tenant.
        tenant: TenantId,
        /// The role that it cannot exceed.
        role: Role,
        /// What it may do.
        scopes: Vec<Permission>,
    },
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
    /// They must change the one-time password first.
    PasswordPending,
}

/// Decides from values alone. `tenant` is the object's; `None` stands for the whole server.
#[must_use]
pub fn authorise(who: &Principal, permission: Permission, tenant: Option<&TenantId>) -> Decision {
    let platform = permission == Permission::PlatformAdmin;
    match who {
        Principal::User { password_pending: true, .. } => Decision::PasswordPending,
        Principal::User { system_admin, .. } if platform => allow_if(*system_admin),
        Principal::User { .. } => match tenant.and_then(|tenant| who.role_in(tenant)) {
            None => Decision::NotFound,
            Some(role) => allow_if(role >= permission.least_role()),
        },
        Principal::Token { scopes, .. } if platform => allow_if(scopes.contains(&permission)),
        Principal::Token { tenant: own, role, scopes, .. } => match tenant {
            Some(tenant) if tenant == own => {
                allow_if(*role >= permission.least_role() && scopes.contains(&permission))
            }
            _ => Decision::NotFound,
        },
    }
}

fn allow_if(allowed: bool) -> Decision {
    if allowed { Decision::Allow } else { Decision::Denied }
}

impl Principal {
    /// The role in a tenant.
    #[must_use]
    pub fn role_in(&self, tenant: &TenantId) -> Option<Role> {
        match self {
            Self::User { memberships, .. } => {
                memberships.iter().find(|(member_of, _)| member_of == tenant).map(|(_, role)| *role)
            }
            Self::Token { tenant: own, role, .. } => (own == tenant).then_some(*role),
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
        authorise(self, scope, Some(tenant)) == Decision::Allow
    }
}

/// Whether `actor` may give, change or take a role: nobody touches a role above their own.
#[must_use]
pub fn may_change_role(actor: Role, from: Option<Role>, to: Option<Role>) -> bool {
    actor >= Role::Admin && from.is_none_or(|role| role <= actor) && to.is_none_or(|role| role <= actor)
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
    let email = text.trim().to_lowercase();
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

/// The code of a refusal.
#[must_use]
pub fn decision_code(decision: Decision) -> Option<ErrorCode> {
    match decision {
        Decision::Allow => None,
        Decision::NotFound => Some(ErrorCode::NotFound),
        Decision::Denied | Decision::PasswordPending => Some(ErrorCode::PermissionDenied),
    }
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
