//! Enrolment against a small HTTPS server: pinned CA, lost replies, refusals, files.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use muster_agent::clock::AgentClock;
use muster_agent::identity::{self, Claim, EnrollError, Keeper, Listener, Shared, spki_sha256};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// What the server does with its next requests; empty: it issues.
#[derive(Clone, Copy)]
enum Mood {
    LoseReply,
    Refuse(u16),
    /// With so many bytes.
    RefuseAtLength(u16, usize),
    /// The identity, padded to so many bytes.
    IssueAtLength(usize),
    OtherKey,
    /// A person has to decide first.
    Pend(u64),
}

struct Server {
    claim: Claim,
    ca: Arc<Ca>,
    moods: Arc<Mutex<Vec<Mood>>>,
    seen: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Server {
    async fn start() -> Self {
        let ca = Arc::new(ca());
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &*ca).unwrap();
        let chain = vec![certificate.der().clone(), ca.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(muster_agent::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let claim = Claim {
            host: "localhost".into(),
            port: listener.local_addr().unwrap().port(),
            token: "token-1".into(),
            ca_spki_sha256: spki_sha256(ca.der()).unwrap(),
        };
        let server = Self { claim, ca, moods: Arc::default(), seen: Arc::default() };
        let (ca, moods, seen) = (Arc::clone(&server.ca), Arc::clone(&server.moods), Arc::clone(&server.seen));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let (ca, moods, seen) = (Arc::clone(&ca), Arc::clone(&moods), Arc::clone(&seen));
                let service = service_fn(move |request| {
                    answer(request, Arc::clone(&ca), Arc::clone(&moods), Arc::clone(&seen))
                });
                let serving = hyper::server::conn::http1::Builder::new();
                tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
            }
        });
        server
    }

    fn mood(&self, mood: Mood) {
        self.moods.lock().unwrap().push(mood);
    }

    async fn enroll(&self, dir: &std::path::Path) -> Result<identity::Identity, EnrollError> {
        identity::enroll(dir, &self.claim, Some("press-7"), Arc::new(AgentClock::default())).await
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    ca: Arc<Ca>,
    moods: Arc<Mutex<Vec<Mood>>>,
    seen: Arc<Mutex<Vec<serde_json::Value>>>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let path = request.uri().path().to_owned();
    assert!(
        request.method() == "POST" && ["/api/v1/enroll", "/api/v1/renew"].contains(&path.as_str()),
        "{path}"
    );
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let mut body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    body["path"] = path.into();
    let csr = CertificateSigningRequestParams::from_pem(body["csr_pem"].as_str().unwrap()).unwrap();
    seen.lock().unwrap().push(body);
    let mut certificate = csr.signed_by(&ca).unwrap();
    let mut length = 0;
    match moods.lock().unwrap().pop() {
        Some(Mood::LoseReply) => return Err(std::io::Error::other("the reply is lost")),
        Some(Mood::Refuse(status)) => {
            let text = Full::from(Bytes::from_static(b"{\"code\":\"claim_spent\"}"));
            return Ok(Response::builder().status(status).body(text).unwrap());
        }
        Some(Mood::RefuseAtLength(status, bytes)) => {
            return Ok(Response::builder().status(status).body(Full::from(vec![b'r'; bytes])).unwrap());
        }
        Some(Mood::Pend(retry_after_s)) => {
            let text = serde_json::json!({ "state": "pending", "retry_after_s": retry_after_s }).to_string();
            return Ok(Response::builder().status(StatusCode::ACCEPTED).body(Full::from(text)).unwrap());
        }
        Some(Mood::IssueAtLength(bytes)) => length = bytes,
        Some(Mood::OtherKey) => {
            let other = KeyPair::generate().unwrap();
            certificate = CertificateParams::default().signed_by(&other, &*ca).unwrap();
        }
        None => {}
    }
    let body = serde_json::json!({
        "tenant": "acme", "device": "press-7", "certificate_pem": certificate.pem(), "ca_pem": ca.pem(),
        "mqtt_host": "localhost", "mqtt_port": 8883,
    });
    let mut body = body.to_string();
    body.push_str(&" ".repeat(length.saturating_sub(body.len())));
    Ok(Response::builder().status(StatusCode::CREATED).body(Full::from(body)).unwrap())
}

#[tokio::test]
async fn a_claim_becomes_an_identity_that_is_kept_private() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let got = server.enroll(dir.path()).await.unwrap();
    assert_eq!((got.tenant.as_str(), got.device.as_str(), got.mqtt_port), ("acme", "press-7", 8883));
    assert!(got.server_time_us != 0);
    assert_eq!(identity::load(dir.path()).unwrap().unwrap(), got);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    let seen = server.seen.lock().unwrap();
    assert_eq!((&seen[0]["claim_token"], &seen[0]["device_name"]), (&"token-1".into(), &"press-7".into()));
}

#[tokio::test]
async fn after_a_lost_reply_the_same_key_asks_again() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    server.mood(Mood::LoseReply);
    let error = server.enroll(dir.path()).await.unwrap_err();
    assert!(error.is_passing(), "{error:?}");
    assert_eq!(identity::load(dir.path()).unwrap(), None);
    server.enroll(dir.path()).await.unwrap();
    let seen = server.seen.lock().unwrap();
    let key = |at: usize| {
        let csr = CertificateSigningRequestParams::from_pem(seen[at]["csr_pem"].as_str().unwrap()).unwrap();
        format!("{:?}", csr.public_key)
    };
    assert_eq!(seen.len(), 2);
    assert_eq!(key(0), key(1));
}

#[tokio::test]
async fn a_server_of_another_ca_hears_no_token() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let claim = Claim { ca_spki_sha256: [7; 32], ..server.claim.clone() };
    let error =
        identity::enroll(dir.path(), &claim, None, Arc::new(AgentClock::default())).await.unwrap_err();
    assert!(matches!(error, EnrollError::Connect { .. }), "{error:?}");
    assert!(server.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_under_another_name_hears_no_token() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let claim = Claim { host: "127.0.0.1".into(), ..server.claim.clone() };
    let error =
        identity::enroll(dir.path(), &claim, None, Arc::new(AgentClock::default())).await.unwrap_err();
    assert!(matches!(error, EnrollError::Connect { .. }), "{error:?}");
    assert!(server.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn refusals_say_whether_another_try_helps() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    for (status, passing) in [(410, false), (401, false), (503, true), (429, true)] {
        server.mood(Mood::Refuse(status));
        let error = server.enroll(dir.path()).await.unwrap_err();
        assert_eq!(error.is_passing(), passing, "{error}");
        assert!(error.to_string().contains("claim_spent"), "{error}");
    }
    server.mood(Mood::OtherKey);
    let error = server.enroll(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
    assert_eq!(identity::load(dir.path()).unwrap(), None);
}

#[tokio::test]
async fn an_answer_of_the_largest_size_is_taken_and_a_larger_one_is_not() {
    const ANSWER_BYTES_MAX: usize = 64 * 1024;
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    server.mood(Mood::IssueAtLength(ANSWER_BYTES_MAX + 1));
    let error = server.enroll(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("an answer of at most 65536 bytes"), "{error}");
    assert!(!error.is_passing(), "the same answer would come again");
    assert_eq!(identity::load(dir.path()).unwrap(), None);
    server.mood(Mood::RefuseAtLength(503, ANSWER_BYTES_MAX + 1));
    let error = server.enroll(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("(503): expected an answer of at most 65536 bytes"), "{error}");
    assert!(error.is_passing(), "what the status says stands");
    server.mood(Mood::IssueAtLength(ANSWER_BYTES_MAX));
    server.enroll(dir.path()).await.unwrap();
}

#[tokio::test]
async fn of_a_long_refusal_the_first_words_are_shown() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    for (bytes, shown) in [(300, 300), (301, 300), (64 * 1024, 300)] {
        server.mood(Mood::RefuseAtLength(410, bytes));
        let error = server.enroll(dir.path()).await.unwrap_err();
        let EnrollError::Refused { status: 410, reason } = error else { panic!("{error}") };
        assert_eq!(reason, "r".repeat(shown));
    }
}

/// The keys of the requests so far, in order.
fn keys(server: &Server) -> Vec<String> {
    let seen = server.seen.lock().unwrap();
    let key = |body: &serde_json::Value| {
        let csr = CertificateSigningRequestParams::from_pem(body["csr_pem"].as_str().unwrap()).unwrap();
        format!("{:?}", csr.public_key)
    };
    seen.iter().map(key).collect()
}

impl Server {
    fn listener(&self) -> Listener {
        Listener { host: self.claim.host.clone(), port: self.claim.port }
    }
}

#[tokio::test]
async fn a_renewal_takes_a_new_key_and_after_a_lost_reply_the_same() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let first = server.enroll(dir.path()).await.unwrap();
    let listener = server.listener();
    let (dir_path, listener) = (dir.path(), &listener);
    let renew = |from| async move {
        identity::renew(dir_path, from, listener, Arc::new(AgentClock::default())).await
    };
    server.mood(Mood::LoseReply);
    assert!(renew(&first).await.unwrap_err().is_passing());
    assert_eq!(identity::load(dir.path()).unwrap().unwrap(), first, "the old one stays in force");
    let next = renew(&first).await.unwrap();
    let keys = keys(&server);
    assert_eq!(keys.len(), 3);
    assert!(keys[0] != keys[1] && keys[1] == keys[2], "a new key, and the same again");
    assert_eq!(identity::load(dir.path()).unwrap().unwrap(), next);
    assert!(next.certificate_pem != first.certificate_pem && next.key_file != first.key_file);
    let files: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "the old key is gone: {files:?}");
    server.mood(Mood::OtherKey);
    let error = renew(&next).await.unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
    assert_eq!(identity::load(dir.path()).unwrap().unwrap(), next);
}

#[tokio::test]
async fn a_refused_certificate_is_renewed_at_once_and_failures_are_tried_again() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let first = server.enroll(dir.path()).await.unwrap();
    for mood in [Mood::Refuse(403), Mood::LoseReply, Mood::Refuse(503)] {
        server.mood(mood);
    }
    let key = identity::load_key(dir.path(), &first).unwrap();
    let clock = Arc::new(AgentClock::default());
    let own = Some((first.certificate_pem.as_str(), key.as_str()));
    let tls = muster_agent::tls::client(&first.ca_pem, own, clock.clone()).unwrap();
    let (sender, mut shown) = watch::channel(Some(tls));
    let shared = Shared { tls: Arc::new(sender), refused: Arc::default() };
    let mut keeper =
        Keeper::new(dir.path().to_owned(), first.clone(), server.listener(), clock, shared.clone());
    keeper.retry_delay = (Duration::from_millis(1), Duration::from_millis(5));
    let keeper = tokio::spawn(keeper.run());
    // Its certificate is good for a thousand years: only the server's refusal makes it due.
    shared.refused.notify_one();
    tokio::time::timeout(Duration::from_secs(30), shown.changed()).await.expect("renewed").unwrap();
    assert_eq!(keys(&server).len(), 5, "one enrolment, three failures, one renewal");
    assert_ne!(identity::load(dir.path()).unwrap().unwrap(), first);
    // A server that goes on refusing does not make it renew again within the gap.
    shared.refused.notify_one();
    let again = tokio::time::timeout(Duration::from_millis(500), shown.changed()).await;
    assert!(again.is_err(), "renewed again within the gap");
    let taken = tokio::time::timeout(Duration::ZERO, shared.refused.notified()).await;
    assert!(taken.is_err(), "the keeper heard of it");
    assert_eq!(keys(&server).len(), 5);
    keeper.abort();
}

#[tokio::test]
async fn a_claim_that_needs_approval_is_asked_again_with_the_same_key() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    for (told, taken) in [(0, 1), (20, 20), (1 << 40, 3_600)] {
        server.mood(Mood::Pend(told));
        let error = server.enroll(dir.path()).await.unwrap_err();
        assert!(matches!(error, EnrollError::Pending { retry_after_s } if retry_after_s == taken), "{error}");
        assert!(error.is_passing());
    }
    server.enroll(dir.path()).await.unwrap();
    let keys = keys(&server);
    assert!(keys.len() == 4 && keys.iter().all(|key| *key == keys[0]));
}
