//! Labels, claims and certificates as pure values.

use muster_wire::{DeviceId, TenantId};
use std::collections::BTreeMap;

pub mod batch;
mod profile;

pub use profile::{ClaimDefaults, ProfileSpec, check_pattern, check_profile_name, filled, fits};

/// Labels of one device.
pub const LABELS_MAX: usize = 32;
/// The longest label key, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 63;
/// The longest label value, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// The life of a claim that nobody says, in seconds.
pub const CLAIM_LIFE_S_DEFAULT: u32 = 86_400;
/// The longest life of a claim, in seconds.
pub const CLAIM_LIFE_S_MAX: u32 = 90 * 86_400;
/// Uses of one claim.
pub const CLAIM_USES_MAX: u32 = 10_000;
/// The longest note of a person, in bytes.
pub const NOTE_BYTES_MAX: usize = 500;
/// The largest certificate request, in bytes.
pub const CSR_BYTES_MAX: usize = 8 * 1024;

/// Free-form marks of a device.
pub type Labels = BTreeMap<String, String>;

/// Why a field is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {why}")]
pub struct FieldError {
    /// The field, as a path.
    pub field: String,
    /// What was expected.
    pub why: String,
}

fn refuse(field: impl Into<String>, why: impl Into<String>) -> FieldError {
    FieldError { field: field.into(), why: why.into() }
}

/// Checks labels.
///
/// # Errors
/// Too many; a key or value out of its rules.
pub fn check_labels(labels: &Labels) -> Result<(), FieldError> {
    if labels.len() > LABELS_MAX {
        return Err(refuse("labels", format!("must hold at most {LABELS_MAX}")));
    }
    for (key, value) in labels {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b);
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX || !key.bytes().all(plain) {
            let key: String = key.chars().take(80).collect();
            return Err(refuse(
                format!("labels.{key}"),
                "a key has 1 to 63 of a-z, 0-9, '.', '_', '-' and '/'",
            ));
        }
        if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(refuse(
                format!("labels.{key}"),
                "a value has at most 256 bytes and no control characters",
            ));
        }
    }
    Ok(())
}

/// Checks the name that people read; may be empty.
///
/// # Errors
/// Too long, or with control characters.
pub fn check_device_name(name: &str) -> Result<(), FieldError> {
    if name.len() <= 128 && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(refuse("name", "must have at most 128 bytes and no control characters"))
}

/// Checks a person's note.
///
/// # Errors
/// Too long, or with control characters.
pub fn check_note(note: &str) -> Result<(), FieldError> {
    if note.len() <= NOTE_BYTES_MAX && !note.chars().any(|c| c.is_control() && c != '\n') {
        return Ok(());
    }
    Err(refuse("note", format!("must have at most {NOTE_BYTES_MAX} bytes and no control characters")))
}

/// Where a device's request to enrol stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnrollmentState {
    /// A person has to decide.
    Pending,
    /// It gets its certificate when it asks next.
    Approved,
    /// It is turned away.
    Rejected,
}

impl EnrollmentState {
    /// The text in the registry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }

    /// Reads the text in the registry.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Approved, Self::Rejected].into_iter().find(|state| state.as_str() == text)
    }
}

/// What a new claim shall allow; what is absent is as in its profile, or as [`ClaimRequest::settle`] says.
#[derive(Clone, Debug, Default)]
pub struct ClaimRequest {
    /// The only device that it enrols; it may exist already (a new key for it).
    pub device: Option<DeviceId>,
    /// How many keys it takes.
    pub uses_max: Option<u32>,
    /// Its life in seconds.
    pub life_s: Option<u32>,
    /// Labels that a device enrolled by it gets; `{device}` stands for its id.
    pub labels: Labels,
    /// The profile of a device enrolled by it.
    pub profile: Option<String>,
    /// Which ids a device may ask for.
    pub id_pattern: Option<String>,
    /// Whether a person decides on each device.
    pub approval: Option<bool>,
}

/// What a new claim allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimTerms {
    /// How many keys it takes.
    pub uses_max: u32,
    /// Its life in seconds.
    pub life_s: u32,
    /// Which ids a device may ask for.
    pub id_pattern: Option<String>,
    /// Whether a person decides on each device.
    pub approval: bool,
}

impl ClaimRequest {
    /// Checks the request, and fills in what it does not say: by the profile's defaults, else one use, a day, any id, no
    /// approval. A claim that names its device is for one use, and is the approval.
    ///
    /// # Errors
    /// Names the field.
    pub fn settle(&self, defaults: &ClaimDefaults) -> Result<ClaimTerms, FieldError> {
        check_labels(&self.labels)?;
        let is_named = self.device.is_some();
        let defaults = if is_named {
            &ClaimDefaults { life_s: defaults.life_s, ..ClaimDefaults::default() }
        } else {
            defaults
        };
        let terms = ClaimTerms {
            uses_max: self.uses_max.or(defaults.uses_max).unwrap_or(1),
            life_s: self.life_s.or(defaults.life_s).unwrap_or(CLAIM_LIFE_S_DEFAULT),
            id_pattern: self.id_pattern.clone().or_else(|| defaults.id_pattern.clone()),
            approval: self.approval.or(defaults.approval).unwrap_or(false),
        };
        if !(1..=CLAIM_USES_MAX).contains(&terms.uses_max) {
            return Err(refuse("uses_max", format!("must be 1 to {CLAIM_USES_MAX}")));
        }
        if is_named && terms.uses_max != 1 {
            return Err(refuse("uses_max", "must be 1 for a claim that names its device"));
        }
        if is_named && (terms.approval || terms.id_pattern.is_some()) {
            let field = if terms.approval { "approval" } else { "id_pattern" };
            return Err(refuse(field, "is for claims that name no device"));
        }
        if !(60..=CLAIM_LIFE_S_MAX).contains(&terms.life_s) {
            return Err(refuse("life_s", format!("must be 60 to {CLAIM_LIFE_S_MAX}")));
        }
        terms.id_pattern.as_deref().map_or(Ok(()), check_pattern)?;
        Ok(terms)
    }
}

/// What an enrolment may do, decided from the claim alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimUse {
    /// The claim names this device; it may exist.
    Named(DeviceId),
    /// A device that must not exist yet.
    New(DeviceId),
    /// Nothing: past its time or used up.
    Spent,
    /// The request names another device than the claim.
    OtherDevice,
}

/// A claim's state as the decision needs it.
#[derive(Clone, Debug)]
pub struct ClaimState {
    /// The only device that it enrols.
    pub device: Option<DeviceId>,
    /// Keys taken so far.
    pub uses: u32,
    /// Keys that it takes.
    pub uses_max: u32,
    /// The end of its life.
    pub expires_at_us: i64,
}

/// Decides the use of a claim by a key that it has not seen. `fallback` names a device that nobody named.
#[must_use]
pub fn use_claim(claim: &ClaimState, asked: Option<DeviceId>, fallback: DeviceId, now_us: i64) -> ClaimUse {
    if claim.uses >= claim.uses_max || claim.expires_at_us <= now_us {
        return ClaimUse::Spent;
    }
    match (&claim.device, asked) {
        (Some(named), Some(asked)) if *named != asked => ClaimUse::OtherDevice,
        (Some(named), _) => ClaimUse::Named(named.clone()),
        (None, Some(asked)) => ClaimUse::New(asked),
        (None, None) => ClaimUse::New(fallback),
    }
}

/// The text that an operator hands to a device: where to enrol, the secret, and the key to trust.
#[must_use]
pub fn claim_string(host: &str, port: u16, token: &str, ca_spki_sha256: &[u8; 32]) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("muster-claim:{host}:{port}:{token}:{}", hex::encode(ca_spki_sha256))
}

/// The name in a device's certificate.
#[must_use]
pub fn device_uri(tenant: &TenantId, device: &DeviceId) -> String {
    format!("muster://{tenant}/{device}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    #[test]
    fn a_claim_gives_what_it_names_and_no_more() {
        let check = |named: Option<&str>, uses, asked: Option<&str>, now_us, expect| {
            let claim = ClaimState { device: named.map(device), uses, uses_max: 2, expires_at_us: 100 };
            assert_eq!(
                use_claim(&claim, asked.map(device), device("gen"), now_us),
                expect,
                "{named:?} {asked:?}"
            );
        };
        check(None, 0, None, 0, ClaimUse::New(device("gen")));
        check(None, 1, Some("pump"), 99, ClaimUse::New(device("pump")));
        check(None, 2, Some("pump"), 99, ClaimUse::Spent);
        check(None, 0, Some("pump"), 100, ClaimUse::Spent);
        check(Some("pump"), 0, None, 0, ClaimUse::Named(device("pump")));
        check(Some("pump"), 0, Some("pump"), 0, ClaimUse::Named(device("pump")));
        check(Some("pump"), 0, Some("valve"), 0, ClaimUse::OtherDevice);
    }

    #[track_caller]
    fn refused(checked: Result<(), FieldError>, field: &str, why: &str) {
        let error = checked.unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.why.contains(why), "{error}");
    }

    #[test]
    fn labels_are_bounded() {
        let many =
            |count: usize| -> Labels { (0..count).map(|at| (format!("k{at}"), String::new())).collect() };
        assert!(check_labels(&many(LABELS_MAX)).is_ok());
        refused(check_labels(&many(LABELS_MAX + 1)), "labels", "at most 32");
        let one = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
        let text = |length: usize| "x".repeat(length);
        assert!(check_labels(&one("site/floor", "3")).is_ok());
        assert!(check_labels(&one(&text(LABEL_KEY_BYTES_MAX), &text(LABEL_VALUE_BYTES_MAX))).is_ok());
        refused(check_labels(&one("Site", "3")), "labels.Site", "1 to 63 of a-z");
        refused(check_labels(&one("", "3")), "labels.", "1 to 63 of a-z");
        let long = text(LABEL_KEY_BYTES_MAX + 1);
        refused(check_labels(&one(&long, "3")), &format!("labels.{long}"), "1 to 63 of a-z");
        refused(
            check_labels(&one("site", &text(LABEL_VALUE_BYTES_MAX + 1))),
            "labels.site",
            "at most 256 bytes",
        );
    }

    #[test]
    fn a_claims_uses_and_life_are_bounded() {
        let check = |uses_max, life_s| {
            let (uses_max, life_s) = (Some(uses_max), Some(life_s));
            let request = ClaimRequest { uses_max, life_s, ..ClaimRequest::default() };
            request.settle(&ClaimDefaults::default()).map(drop)
        };
        assert!(check(1, 60).is_ok());
        assert!(check(CLAIM_USES_MAX, CLAIM_LIFE_S_MAX).is_ok());
        refused(check(0, 60), "uses_max", "1 to 10000");
        refused(check(CLAIM_USES_MAX + 1, 60), "uses_max", "1 to 10000");
        refused(check(1, 59), "life_s", "60 to 7776000");
        refused(check(1, CLAIM_LIFE_S_MAX + 1), "life_s", "60 to 7776000");
    }

    #[test]
    fn a_claim_is_what_it_says_then_what_its_profile_says() {
        let defaults = ClaimDefaults {
            uses_max: Some(50),
            life_s: Some(600),
            approval: Some(true),
            id_pattern: Some("pump-*".into()),
        };
        let settle = |request: ClaimRequest| request.settle(&defaults).unwrap();
        let terms = settle(ClaimRequest::default());
        assert_eq!((terms.uses_max, terms.life_s, terms.approval), (50, 600, true));
        assert_eq!(terms.id_pattern.as_deref(), Some("pump-*"));
        let own = ClaimRequest { uses_max: Some(2), approval: Some(false), ..ClaimRequest::default() };
        let terms = settle(own);
        assert_eq!((terms.uses_max, terms.life_s, terms.approval), (2, 600, false));
        let named = ClaimRequest { device: Some(device("pump")), ..ClaimRequest::default() };
        let terms = settle(named.clone());
        assert_eq!((terms.uses_max, terms.life_s, terms.approval, terms.id_pattern), (1, 600, false, None));
        for (request, field) in [
            (ClaimRequest { approval: Some(true), ..named.clone() }, "approval"),
            (ClaimRequest { id_pattern: Some("a*".into()), ..named.clone() }, "id_pattern"),
            (ClaimRequest { uses_max: Some(2), ..named }, "uses_max"),
        ] {
            refused(request.settle(&defaults).map(drop), field, "");
        }
        assert!(check_note(&"x".repeat(NOTE_BYTES_MAX)).is_ok());
        refused(check_note(&"x".repeat(NOTE_BYTES_MAX + 1)), "note", "at most 500");
    }

    #[test]
    fn a_claim_string_reads_back() {
        let text = claim_string("::1", 8443, "mcl_ab", &[7; 32]);
        assert_eq!(text, format!("muster-claim:[::1]:8443:mcl_ab:{}", "07".repeat(32)));
    }
}
