//! Exchanges with a small enrolment listener that signs, refuses, breaks or is another one.

use super::*;
use crate::enrol::claim::tests::claim;
use rcgen::{BasicConstraints, CertificateSigningRequestParams, CertifiedIssuer, IsCa};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io::Read;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn pin(authority: &Authority) -> [u8; 32] {
    key_sha256(authority.der()).unwrap()
}

/// What the listener does with one request.
type Reply = Box<dyn Fn(&serde_json::Value) -> Vec<u8> + Send>;

fn answer(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn refuse(status: u16) -> Reply {
    Box::new(move |_| answer(status, r#"{"detail": "it is so"}"#))
}

/// Signs what the device asks for; `change` may spoil it.
fn sign(authority: &Arc<Authority>, change: fn(&mut serde_json::Value)) -> Reply {
    let authority = authority.clone();
    Box::new(move |request| {
        let csr = CertificateSigningRequestParams::from_pem(request["csr_pem"].as_str().unwrap()).unwrap();
        assert_eq!(request["claim_token"], "mcl_token");
        let mut view = json!({
            "tenant": "acme", "device": request["device_name"], "mqtt_host": "localhost", "mqtt_port": 1,
            "certificate_pem": csr.signed_by(&authority).unwrap().pem(), "ca_pem": authority.pem(),
        });
        change(&mut view);
        answer(201, &view.to_string())
    })
}

/// A listener for `host` with one reply a connection, then none; and the requests that it heard.
fn listen(
    authority: &Authority,
    host: &str,
    replies: Vec<Reply>,
) -> (u16, Arc<Mutex<Vec<serde_json::Value>>>) {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let chain = vec![leaf.der().clone(), authority.der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(crate::identity::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::<Mutex<Vec<serde_json::Value>>>::default();
    let told = heard.clone();
    std::thread::spawn(move || {
        for (reply, stream) in replies.iter().zip(listener.incoming()) {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(session, stream.unwrap());
            let Some(request) = read_request(&mut stream) else { continue };
            let bytes = reply(&request);
            told.lock().unwrap().push(request);
            // The client may have seen enough and gone.
            let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
        }
    });
    (port, heard)
}

fn read_request(stream: &mut impl Read) -> Option<serde_json::Value> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        if let Some(head) = bytes.windows(4).position(|found| found == b"\r\n\r\n")
            && let Ok(body) = serde_json::from_slice(&bytes[head + 4..])
        {
            assert!(bytes.starts_with(b"POST /api/v1/enroll HTTP/1.1\r\n"));
            return Some(body);
        }
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&chunk[..read]);
    }
}

/// A device's outcome with these replies, and how many requests were heard.
fn apply(replies: impl FnOnce(&Arc<Authority>) -> Vec<Reply>) -> (Result<Issued, ExchangeError>, usize) {
    let authority = Arc::new(authority());
    let replies = replies(&authority);
    let (port, heard) = listen(&authority, "localhost", replies);
    let outcome = Applicant::new("acme", "d0").unwrap().apply(&claim(port, pin(&authority)), None);
    let count = heard.lock().unwrap().len();
    (outcome, count)
}

fn text(outcome: Result<Issued, ExchangeError>) -> String {
    format!("{:#}", anyhow::Error::new(outcome.unwrap_err()))
}

#[test]
fn a_device_gets_a_certificate_for_its_own_key() {
    let (issued, heard) = apply(|authority| vec![sign(authority, |_| {})]);
    let issued = issued.unwrap();
    let entry = crate::enrol::file::Entry::certified("acme", "d0", issued.certificate_pem, issued.key_pem);
    entry.own_key().unwrap().ready().unwrap().keys_match().unwrap();
    assert_eq!(heard, 1);
}

#[test]
fn a_server_without_the_pinned_key_hears_nothing() {
    let (theirs, ours) = (Arc::new(authority()), authority());
    let (port, heard) = listen(&theirs, "localhost", vec![sign(&theirs, |_| {})]);
    let applicant = Applicant::new("acme", "d0").unwrap();
    let outcome = applicant.apply(&claim(port, pin(&ours)), None);
    assert!(matches!(outcome, Err(ExchangeError::Pin { .. })), "{outcome:?}");
    // The same certificate under another name is no better, whatever its authority.
    let (port, other) = listen(&theirs, "elsewhere", vec![sign(&theirs, |_| {})]);
    let error = text(applicant.apply(&claim(port, pin(&theirs)), None));
    assert!(
        error.starts_with(&format!("no TLS with localhost:{port}: ")) && error.contains("name"),
        "{error}"
    );
    assert!(heard.lock().unwrap().is_empty() && other.lock().unwrap().is_empty());
}

#[test]
fn what_may_pass_is_tried_again_with_the_same_key_and_not_for_ever() {
    let (outcome, heard) = apply(|authority| vec![refuse(503), refuse(500), sign(authority, |_| {})]);
    assert!(outcome.is_ok() && heard == 3, "{heard}: {outcome:?}");
    let more_than_enough = |_: &Arc<Authority>| (0..TRIES_MAX + 3).map(|_| refuse(503)).collect();
    let (outcome, heard) = apply(more_than_enough);
    assert_eq!(
        (text(outcome).as_str(), heard),
        ("the server refuses the claim (503): it is so", TRIES_MAX as usize)
    );
}

#[test]
fn a_lost_answer_is_asked_for_with_the_same_request() {
    let authority = Arc::new(authority());
    let replies: Vec<Reply> = vec![Box::new(|_| Vec::new()), sign(&authority, |_| {})];
    let (port, heard) = listen(&authority, "localhost", replies);
    Applicant::new("acme", "d0").unwrap().apply(&claim(port, pin(&authority)), None).unwrap();
    let heard = heard.lock().unwrap();
    assert!(heard.len() == 2 && heard[0] == heard[1]);
}

#[test]
fn a_refusal_is_final_and_says_what_to_do() {
    let check = |reply: Reply, expect: &str| {
        let (outcome, heard) = apply(|_| vec![reply]);
        assert_eq!((text(outcome).as_str(), heard), (expect, 1));
    };
    check(refuse(410), "the server refuses the claim (410): it is so");
    check(
        refuse(429),
        "the server refuses the claim (429): it is so; raise quota.devices_max in its configuration",
    );
    let locked = b"HTTP/1.1 429 X\r\nRetry-After: 61\r\nContent-Length: 2\r\n\r\nno".to_vec();
    check(
        Box::new(move |_| locked.clone()),
        "the server refuses the claim (429): no; raise enroll.attempts_per_minute in its configuration, or wait a \
         minute",
    );
    let (taken, _) = apply(|_| vec![refuse(409)]);
    assert!(taken.unwrap_err().is_taken());
}

#[test]
fn an_answer_for_somebody_else_is_no_use() {
    let check = |change: fn(&mut serde_json::Value), expect: &str| {
        let (outcome, _) = apply(|authority| vec![sign(authority, change)]);
        assert_eq!(text(outcome), format!("the server's answer is not usable: {expect}"));
    };
    check(|view| view["device"] = json!("d1"), "it is for another device");
    check(|view| view["tenant"] = json!("other"), "it is for another device");
    check(|view| view["certificate_pem"] = json!(""), "it holds no certificate");
    check(|view| view["certificate_pem"] = view["ca_pem"].clone(), "the certificate is for another key");
    check(
        |view| view["ca_pem"] = json!(authority().pem()),
        "its authority is not the one that the claim names",
    );
    check(|view| view["ca_pem"] = json!(1), "it is other JSON than documented");
}

#[test]
fn an_answer_has_a_largest_size() {
    let check = |bytes: Vec<u8>, expect: &str| {
        let (outcome, heard) = apply(|_| vec![Box::new(move |_| bytes.clone())]);
        let error = text(outcome);
        assert!(error.ends_with(expect) && heard == 1, "{heard}: {error}");
    };
    check(answer(200, &" ".repeat(ANSWER_BYTES_MAX + 1)), "gives no answer of HTTP/1.1: a body too large");
    check(vec![b'x'; ANSWER_BYTES_MAX + 1], "gives no answer of HTTP/1.1: a line too long");
    check(b"SMTP\r\n\r\n".to_vec(), "gives no answer of HTTP/1.1: no status line");
    check(answer(200, &"x".repeat(ANSWER_BYTES_MAX)), "it is other JSON than documented");
}
