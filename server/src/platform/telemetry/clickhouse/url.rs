//! Where a ClickHouse server is: `http(s)://user:password@host:port/database`.

use std::fmt;
use std::str::FromStr;
use url::Url;

const EXPECTED: &str = "expected http://user:password@host:8123/database, or https";
/// The longest name of a database.
const DATABASE_BYTES_MAX: usize = 63;

/// `http(s)://user:password@host:port/database`; shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ClickHouseUrl {
    /// Without user, password and path.
    pub(super) endpoint: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) database: String,
    is_tls: bool,
}

impl FromStr for ClickHouseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The parser's own errors are not shown: they may hold what stands before the @.
        let url = Url::parse(text).map_err(|_| EXPECTED.to_owned())?;
        let is_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(EXPECTED.to_owned()),
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("{EXPECTED}: it must end with the database's name"));
        }
        let database = url.path().trim_start_matches('/').to_owned();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if database.is_empty() || database.len() > DATABASE_BYTES_MAX || !database.chars().all(is_name) {
            return Err(format!("{EXPECTED}: the database's name must be 1 to 63 letters, digits and _"));
        }
        let plain = |text: &str, what| match text.contains('%') {
            true => {
                Err(format!("{EXPECTED}: the {what} holds %, which must stand in telemetry.password_file"))
            }
            false => Ok(text.to_owned()),
        };
        let user = match url.username() {
            "" => "default".to_owned(),
            name => plain(name, "user")?,
        };
        let password = plain(url.password().unwrap_or_default(), "password")?;
        let host = url.host_str().ok_or_else(|| EXPECTED.to_owned())?;
        let port = url.port_or_known_default().unwrap_or(8123);
        let endpoint = format!("{}://{host}:{port}/", url.scheme());
        Ok(Self { endpoint, user, password, database, is_tls })
    }
}

impl ClickHouseUrl {
    /// Whether the server is asked for a certificate.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// As it was given, but for the password.
    fn masked(&self) -> String {
        let password = if self.password.is_empty() { "" } else { ":***" };
        let (scheme, rest) = self.endpoint.split_once("://").unwrap_or_default();
        format!("{scheme}://{}{password}@{rest}{}", self.user, self.database)
    }
}

impl serde::Serialize for ClickHouseUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

impl<'de> serde::Deserialize<'de> for ClickHouseUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Host and database only.
impl fmt::Display for ClickHouseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.endpoint, self.database)
    }
}

impl fmt::Debug for ClickHouseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_never_shows_its_password() {
        let url: ClickHouseUrl = "http://muster:secret@db.example:8124/fleet".parse().unwrap();
        assert_eq!((url.user.as_str(), url.password.as_str()), ("muster", "secret"));
        assert_eq!((url.endpoint.as_str(), url.database.as_str()), ("http://db.example:8124/", "fleet"));
        assert_eq!(url.masked(), "http://muster:***@db.example:8124/fleet");
        assert_eq!(format!("{url} {url:?}"), "http://db.example:8124/fleet http://db.example:8124/fleet");
        let plain: ClickHouseUrl = "https://[::1]/x".parse().unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.user.as_str()), ("https://[::1]:443/", "default"));
        assert!(plain.is_tls());
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        let name = "x".repeat(DATABASE_BYTES_MAX + 1);
        for wrong in [
            "db:8123",
            "tcp://a:secret@db/fleet",
            "http://a:secret@db",
            "http://a:secret@db/fleet?readonly=1",
            "http://a:secret@db/fleet/x",
            "http://a:sec%72et@db/fleet",
            "http://a:secret@/fleet",
            &format!("http://db/{name}"),
        ] {
            let why = wrong.parse::<ClickHouseUrl>().unwrap_err();
            assert!(why.contains("expected http://") && !why.contains("secret@"), "{wrong}: {why}");
        }
        assert!(format!("http://db/{}", &name[1..]).parse::<ClickHouseUrl>().is_ok());
    }
}
