//! Profiles: what devices of a kind have in common. Pure.

use super::{CLAIM_LIFE_S_MAX, CLAIM_USES_MAX, FieldError, Labels, check_labels, refuse};
use muster_wire::DeviceId;

/// The shortest life of a device's certificate, in seconds.
pub const CERTIFICATE_LIFE_S_MIN: u32 = 3_600;
/// The longest.
pub const CERTIFICATE_LIFE_S_MAX: u32 = 825 * 86_400;
/// The longest pattern of ids, in bytes.
pub const PATTERN_BYTES_MAX: usize = 64;
/// Stars of one pattern.
pub const PATTERN_STARS_MAX: usize = 4;

/// What devices of a kind have in common; what is absent is as in the server's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProfileSpec {
    /// Labels that a device gets when it is made, where it is given none of that key. `{device}` in a value stands for
    /// the device's id.
    pub labels: Labels,
    /// Life of the certificates in seconds, 3600 to 71280000; absent: `pki.device_days`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_life_s: Option<u32>,
    /// What a claim of this profile is where its maker does not say otherwise.
    pub claim: ClaimDefaults,
}

/// What a claim of a profile is where its maker does not say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimDefaults {
    /// How many keys it takes, 1 to 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses_max: Option<u32>,
    /// Its life in seconds, 60 to 7776000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub life_s: Option<u32>,
    /// Whether a person decides on each device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<bool>,
    /// Which ids a device may ask for; `*` stands for any letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_pattern: Option<String>,
}

impl ProfileSpec {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), FieldError> {
        check_labels(&self.labels)?;
        let lives = CERTIFICATE_LIFE_S_MIN..=CERTIFICATE_LIFE_S_MAX;
        if self.certificate_life_s.is_some_and(|life| !lives.contains(&life)) {
            let (min, max) = (CERTIFICATE_LIFE_S_MIN, CERTIFICATE_LIFE_S_MAX);
            return Err(refuse("certificate_life_s", format!("must be {min} to {max}")));
        }
        if self.claim.uses_max.is_some_and(|uses| !(1..=CLAIM_USES_MAX).contains(&uses)) {
            return Err(refuse("claim.uses_max", format!("must be 1 to {CLAIM_USES_MAX}")));
        }
        if self.claim.life_s.is_some_and(|life| !(60..=CLAIM_LIFE_S_MAX).contains(&life)) {
            return Err(refuse("claim.life_s", format!("must be 60 to {CLAIM_LIFE_S_MAX}")));
        }
        let pattern = self.claim.id_pattern.as_deref().map_or(Ok(()), check_pattern);
        pattern.map_err(|error| refuse("claim.id_pattern", error.why))
    }

    /// The labels of a device of this profile, its own above the profile's.
    #[must_use]
    pub fn labels_with(&self, own: &Labels) -> Labels {
        self.labels.iter().chain(own).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// The name of a profile follows the rule of a device's id.
///
/// # Errors
/// It does not.
pub fn check_profile_name(name: &str) -> Result<(), FieldError> {
    DeviceId::parse(name).map(drop).map_err(|error| refuse("profile", error.to_string()))
}

/// Labels of one device, from a template.
#[must_use]
pub fn filled(template: &Labels, device: &DeviceId) -> Labels {
    template.iter().map(|(key, value)| (key.clone(), value.replace("{device}", device.as_str()))).collect()
}

/// Checks a pattern of ids.
///
/// # Errors
/// Too long, too many stars, or letters that stand in no id.
pub fn check_pattern(pattern: &str) -> Result<(), FieldError> {
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b"._-*".contains(&b);
    let stars = pattern.bytes().filter(|b| *b == b'*').count();
    if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX || !pattern.bytes().all(is_letter) {
        return Err(refuse("id_pattern", "must have 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-' and '*'"));
    }
    if stars > PATTERN_STARS_MAX {
        return Err(refuse("id_pattern", format!("must hold at most {PATTERN_STARS_MAX} '*'")));
    }
    Ok(())
}

/// Whether an id fits a pattern.
#[must_use]
pub fn fits(pattern: &str, id: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| id.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_what_its_letters_and_stars_say() {
        for (pattern, id, expect) in [
            ("pump", "pump", true),
            ("pump", "pump-1", false),
            ("pump-*", "pump-1", true),
            ("pump-*", "pump-", true),
            ("pump-*", "valve-1", false),
            ("*", "x", true),
            ("*-berlin", "pump-berlin", true),
            ("*-berlin", "pump-berlin-2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("aa*aa", "aaa", false),
        ] {
            assert_eq!(fits(pattern, id), expect, "{pattern} {id}");
        }
        assert!(check_pattern(&"*a".repeat(PATTERN_STARS_MAX)).is_ok());
        assert!(check_pattern(&"*a".repeat(PATTERN_STARS_MAX + 1)).is_err());
        assert!(check_pattern(&"a".repeat(PATTERN_BYTES_MAX)).is_ok());
        assert!(check_pattern(&"a".repeat(PATTERN_BYTES_MAX + 1)).is_err());
        assert!(check_pattern("").is_err() && check_pattern("a/b").is_err());
    }

    #[test]
    fn a_profile_is_bounded_and_its_labels_stand_below_a_devices_own() {
        let refused = |spec: ProfileSpec, field: &str| assert_eq!(spec.check().unwrap_err().field, field);
        let life = |certificate_life_s| ProfileSpec { certificate_life_s, ..ProfileSpec::default() };
        assert!(life(Some(CERTIFICATE_LIFE_S_MIN)).check().is_ok());
        assert!(life(Some(CERTIFICATE_LIFE_S_MAX)).check().is_ok());
        refused(life(Some(CERTIFICATE_LIFE_S_MIN - 1)), "certificate_life_s");
        refused(life(Some(CERTIFICATE_LIFE_S_MAX + 1)), "certificate_life_s");
        let claim = |claim| ProfileSpec { claim, ..ProfileSpec::default() };
        refused(claim(ClaimDefaults { uses_max: Some(0), ..ClaimDefaults::default() }), "claim.uses_max");
        refused(claim(ClaimDefaults { life_s: Some(59), ..ClaimDefaults::default() }), "claim.life_s");
        let pattern = Some("a/b".to_owned());
        refused(claim(ClaimDefaults { id_pattern: pattern, ..ClaimDefaults::default() }), "claim.id_pattern");
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let spec = ProfileSpec {
            labels: labels(&[("kind", "pump"), ("site", "none"), ("asset", "A-{device}")]),
            ..ProfileSpec::default()
        };
        let device = DeviceId::parse("p1").unwrap();
        let of_device = filled(&spec.labels_with(&labels(&[("site", "berlin")])), &device);
        assert_eq!(of_device, labels(&[("kind", "pump"), ("site", "berlin"), ("asset", "A-p1")]));
    }
}
