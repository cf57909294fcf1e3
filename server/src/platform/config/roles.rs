//! What a process does: a list in the file, a list with commas in a variable or flag.
//!
//! Today a process does everything, is a gateway alone, or an admin API alone; [`Roles::check`] refuses what nothing is built
//! for yet and says what is missing.

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;

/// One thing that a process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Takes devices' MQTT connections and appends to the event log.
    Gateway,
    /// Reads the event log: store, ledger, rules, alerts.
    Worker,
    /// Answers people and programs over HTTP, and enrols devices.
    Api,
}

impl Role {
    /// Every role that there is.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Worker, Self::Api];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Api => "api",
        }
    }
}

/// The roles of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles(BTreeSet<Role>);

impl Default for Roles {
    fn default() -> Self {
        Self(Role::ALL.into())
    }
}

impl Roles {
    /// These roles; the order and repetitions do not matter.
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Self {
        Self(roles.into_iter().collect())
    }

    /// Whether the process does everything.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.len() == Role::ALL.len()
    }

    /// Whether the process is a gateway and nothing else.
    #[must_use]
    pub fn is_gateway_alone(&self) -> bool {
        *self == Self::of([Role::Gateway])
    }

    /// Whether the process answers people and programs and does nothing else.
    #[must_use]
    pub fn is_api_alone(&self) -> bool {
        *self == Self::of([Role::Api])
    }

    /// Refuses combinations that cannot work yet.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.is_all() || self.is_gateway_alone() || self.is_api_alone() {
            return Ok(());
        }
        let shown: Vec<_> = self.0.iter().map(|role| role.name()).collect();
        let has = |role| self.0.contains(&role);
        let why = match (has(Role::Gateway), has(Role::Worker)) {
            (true, true) => {
                "what the worker keeps (ledger, presence, the live stream) is answered by its own process alone, so it needs \
                 the role api as well"
            }
            (true, false) => {
                "nobody would read its messages: an event log that processes share is not built yet"
            }
            (false, _) => {
                "a worker reads the event log of the gateway in its own process: one that processes share is not built yet"
            }
        };
        let all = Role::ALL.map(Role::name);
        Err(format!("is {shown:?}, must be {all:?}, [\"gateway\"] or [\"api\"]: {why}"))
    }
}

impl Serialize for Roles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|role| role.name()))
    }
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RolesVisitor)
    }
}

struct RolesVisitor;

fn parse<E: serde::de::Error>(name: &str) -> Result<Role, E> {
    let found = Role::ALL.into_iter().find(|role| role.name() == name);
    found.ok_or_else(|| E::custom(format!("roles: there is no role {name:?}, expected {}", expected())))
}

fn expected() -> String {
    format!("a list of {}", Role::ALL.map(Role::name).join(", "))
}

impl<'de> Visitor<'de> for RolesVisitor {
    type Value = Roles;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&expected())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Roles, E> {
        text.split(',').map(|name| parse(name.trim())).collect::<Result<BTreeSet<_>, E>>().map(Roles)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Roles, A::Error> {
        let mut roles = BTreeSet::new();
        while let Some(name) = names.next_element::<String>()? {
            roles.insert(parse(&name)?);
        }
        if roles.is_empty() {
            return Err(A::Error::custom(format!("roles: is empty, expected {}", expected())));
        }
        Ok(Roles(roles))
    }
}
