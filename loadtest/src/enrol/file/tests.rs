//! Files of identities: what is taken, what is refused and where, what is written.

use super::*;
use rcgen::{CertificateParams, KeyPair};

/// Certificate and key, made for each other.
fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (CertificateParams::default().self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn line(tenant: &str, device: &str, (certificate, key): &(String, String)) -> String {
    serde_json::json!({
        "tenant": tenant, "device": device, "certificate_pem": certificate, "key_pem": key,
    })
    .to_string()
}

fn refused(text: &str, count: u32, login: Login) -> String {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let error = format!("{:#}", fleet(file.path(), count, login).unwrap_err());
    error.replace(&file.path().display().to_string(), "FILE")
}

#[test]
fn a_file_gives_tenants_and_devices_in_its_order() {
    let file = NamedTempFile::new().unwrap();
    let text = [line("b", "d0", &pair()), String::new(), line("a", "d0", &pair()), line("b", "d1", &pair())];
    std::fs::write(file.path(), text.join("\n")).unwrap();
    let fleet = fleet(file.path(), 3, Login::Certificate).unwrap();
    assert_eq!(fleet.tenants, ["b", "a"]);
    let named: Vec<_> = fleet.members.iter().map(|member| (member.tenant, member.name.as_str())).collect();
    assert_eq!(named, [(0, "d0"), (1, "d0"), (0, "d1")]);
    assert!(fleet.members.iter().all(|member| member.token.is_none()));
}

#[test]
fn tokens_are_taken_where_tokens_are_wanted() {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{"device": "d0", "token": "secret", "tenant": "acme"}"#).unwrap();
    let members = fleet(file.path(), 1, Login::Token).unwrap().members;
    assert_eq!(members, [Member { tenant: 0, name: "d0".to_owned(), token: Some("secret".to_owned()) }]);
    let error = format!("{:#}", fleet(file.path(), 1, Login::Certificate).unwrap_err());
    assert!(error.ends_with("line 1: certificate_pem: it is missing"), "{error}");
}

#[test]
fn what_is_amiss_is_named_by_line_and_field() {
    let (good, other) = (pair(), pair());
    let first = line("acme", "d0", &good);
    let with = |second: &str| refused(&format!("{first}\n{second}\n"), 2, Login::Certificate);
    let starts = |error: String, start: &str| assert!(error.starts_with(start), "{error} is not {start}");
    starts(with("{"), "FILE, line 2: no JSON object: EOF while parsing an object, at column 1");
    starts(with("[]"), "FILE, line 2: no JSON object: ");
    starts(with(r#"{"tenant": 5}"#), "FILE, line 2: tenant: expected a text");
    starts(with(r#"{"tenant": "acme", "key": "x"}"#), "FILE, line 2: key: no field of an identity");
    starts(with(r#"{"device": "d1"}"#), "FILE, line 2: tenant: ");
    starts(with(r#"{"tenant": "acme", "device": "D 1"}"#), "FILE, line 2: device: ");
    starts(with(&first), "FILE, line 2: device: d0 was named before");
    let changed =
        |certificate: &str, key: &str| with(&line("acme", "d1", &(certificate.to_owned(), key.to_owned())));
    starts(changed("", &good.1), "FILE, line 2: certificate_pem: it holds no certificate");
    starts(changed("-----BEGIN CERTIFICATE-----\n!", &good.1), "FILE, line 2: certificate_pem: ");
    starts(changed(&good.0, "no key"), "FILE, line 2: key_pem: ");
    starts(changed(&good.0, &other.1), "FILE, line 2: key_pem: it is not the key of certificate_pem");
    starts(refused("", 2, Login::Token), "FILE names 0 devices, 2 are needed: give --devices 0");
    starts(refused("{\"tenant\": \"\u{7f}", 1, Login::Token), "FILE, line 1: no JSON object");
}

#[test]
fn lines_and_their_length_have_a_most() {
    let padded = |bytes: u64| {
        let text = r#"{"tenant": "acme", "device": "d0", "token": "x"}"#;
        format!("{text}{}\n", " ".repeat(bytes as usize - text.len() - 1))
    };
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), padded(LINE_BYTES_MAX)).unwrap();
    assert_eq!(fleet(file.path(), 1, Login::Token).unwrap().members.len(), 1);
    let error = refused(&padded(LINE_BYTES_MAX + 1), 1, Login::Token);
    assert_eq!(error, "FILE, line 1: longer than 32768 bytes");
    // A line without an end is not read to its end.
    let (endless, mut line) = (vec![b'x'; LINE_BYTES_MAX as usize * 2], Vec::new());
    assert_eq!(read_line(&mut &endless[..], &mut line).unwrap() as u64, LINE_BYTES_MAX + 1);

    let blank = "\n".repeat(LINES_MAX as usize);
    assert_eq!(refused(&blank, 1, Login::Token), "FILE names 0 devices, 1 are needed: give --devices 0");
    let error = refused(&format!("{blank}\n"), 1, Login::Token);
    assert_eq!(error, format!("FILE, line {}: more than {LINES_MAX} lines", LINES_MAX + 1));
}

#[test]
fn what_is_written_is_ordered_private_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identities");
    std::fs::write(&path, "of an earlier run").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let pairs = [pair(), pair(), pair()];
    let mut writer = Writer::begin(&path).unwrap();
    for number in [2, 0, 1] {
        let (certificate, key) = pairs[number].clone();
        writer.put(number, &Entry::certified("acme", &format!("d{number}"), certificate, key)).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "of an earlier run");
    writer.finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let entries: Vec<Entry> = Entries::open(&path).unwrap().map(Result::unwrap).collect();
    let devices: Vec<&str> = entries.iter().map(|entry| entry.device.as_str()).collect();
    assert_eq!(devices, ["d0", "d1", "d2"]);
    assert_eq!(entries[1].key_pem.as_ref(), Some(&pairs[1].1));
    assert_eq!(fleet(&path, 3, Login::Certificate).unwrap().members.len(), 3);

    // One that is given up leaves nothing.
    drop(Writer::begin(&path).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
