//! `muster-claim:<host>:<port>:<token>:<sha256 hex of the CA's SubjectPublicKeyInfo>`.

use std::str::FromStr;

/// The longest claim, in bytes.
const CLAIM_BYTES_MAX: usize = 1024;

/// A parsed claim.
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    /// The enrolment listener's host; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The secret.
    pub token: String,
    /// What the CA's key must hash to.
    pub ca_spki_sha256: [u8; 32],
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim({}:{})", self.host, self.port)
    }
}

/// Which part of a claim is off; the token is never shown.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a claim whose {part} is missing or malformed")]
pub struct ClaimError {
    part: &'static str,
}

impl Claim {
    /// Parses a claim; surrounding white space is dropped.
    ///
    /// # Errors
    /// Names the part that is off.
    pub fn parse(text: &str) -> Result<Self, ClaimError> {
        let part = |part| ClaimError { part };
        let text = text.trim();
        if text.len() > CLAIM_BYTES_MAX {
            return Err(part("length (at most 1024 bytes)"));
        }
        let rest = text.strip_prefix("muster-claim:").ok_or(part("prefix muster-claim:"))?;
        let mut parts = rest.rsplitn(4, ':');
        let hash = parts.next().unwrap_or_default();
        let token = parts.next().filter(|token| !token.is_empty()).ok_or(part("token"))?;
        let port = parts.next().and_then(|port| u16::from_str(port).ok()).filter(|port| *port != 0);
        let port = port.ok_or(part("port"))?;
        let host = parts.next().ok_or(part("host"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.len() > 253 || host.contains(['/', '@', ' ']) {
            return Err(part("host"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+/=".contains(&byte)) {
            return Err(part("token"));
        }
        let mut ca_spki_sha256 = [0; 32];
        hex::decode_to_slice(hash, &mut ca_spki_sha256).map_err(|_| part("sha256 (64 hex digits)"))?;
        Ok(Self { host: host.to_owned(), port, token: token.to_owned(), ca_spki_sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_and_addresses_and_refuses_the_rest() {
        let hash = "ab".repeat(32);
        let claim = Claim::parse(&format!(" muster-claim:muster.example:8443:tok-1_:{hash}\n")).unwrap();
        assert_eq!(
            (claim.host.as_str(), claim.port, claim.token.as_str()),
            ("muster.example", 8443, "tok-1_")
        );
        assert_eq!(claim.ca_spki_sha256, [0xab; 32]);
        assert_eq!(Claim::parse(&format!("muster-claim:[::1]:1:t:{hash}")).unwrap().host, "::1");
        for (bad, part) in [
            ("claim:h:1:t:00".to_owned(), "prefix"),
            (format!("muster-claim:h:0:t:{hash}"), "port"),
            (format!("muster-claim:h:x:t:{hash}"), "port"),
            (format!("muster-claim::1:t:{hash}"), "host"),
            (format!("muster-claim:h:1::{hash}"), "token"),
            ("muster-claim:h:1:t:00".to_owned(), "sha256"),
        ] {
            let error = Claim::parse(&bad).unwrap_err().to_string();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn a_claim_and_its_host_have_a_longest() {
        let claim = |host: usize, token: usize| {
            let text =
                format!("muster-claim:{}:1:{}:{}", "h".repeat(host), "t".repeat(token), "ab".repeat(32));
            (text.len(), Claim::parse(&text).map_err(|error| error.to_string()))
        };
        let (bytes, parsed) = claim(1, 942);
        assert!(bytes == CLAIM_BYTES_MAX && parsed.is_ok(), "{bytes}: {parsed:?}");
        let error = claim(1, 943).1.unwrap_err();
        assert!(error.contains("length (at most 1024 bytes)"), "{error}");
        assert!(claim(253, 1).1.is_ok());
        assert!(claim(254, 1).1.unwrap_err().contains("host"));
    }

    #[test]
    fn debug_hides_the_token() {
        let claim = Claim::parse(&format!("muster-claim:h:1:secret:{}", "00".repeat(32))).unwrap();
        assert!(!format!("{claim:?}").contains("secret"));
    }
}
