use super::*;
use std::path::Path;

fn sources(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("muster-server.toml");
    std::fs::write(&path, file).unwrap();
    let own = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>()
    };
    (dir, Sources { file: Some(path), env: own(env).into_iter().collect(), flags: own(flags) })
}

fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
    let (_dir, sources) = sources(file, env, flags);
    sources.load().map_err(|error| error.to_string())
}

#[track_caller]
fn refused(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)], names: &[&str]) {
    let error = load(file, env, flags).expect_err("is refused");
    for name in names {
        assert!(error.contains(name), "{error:?} names {name:?}");
    }
}

#[test]
fn flags_win_over_environment_over_file() {
    let file = "[http]\nlisten = \"127.0.0.1:1\"\ntimeout_s = 7\n[event_log]\nsegment_bytes = 1048576";
    let env =
        [("MUSTER_SERVER_HTTP_LISTEN", "127.0.0.1:2"), ("MUSTER_SERVER_EVENT_LOG_BYTES_MAX", "8388608")];
    let config =
        load(file, &env, &[("http.listen", "127.0.0.1:3"), ("pki.hosts", "[\"a.example\"]")]).unwrap();
    assert_eq!(config.http.listen.port(), 3);
    assert_eq!(config.http.timeout_s, 7);
    assert_eq!(config.event_log.bytes_max, 8_388_608);
    assert_eq!(config.pki.hosts, ["a.example"]);
    let config = load(file, &env, &[]).unwrap();
    assert_eq!(config.http.listen.port(), 2);
}

#[test]
fn an_error_names_its_place_and_key() {
    refused("[http]\nlissen = 1", &[], &[], &["muster-server.toml", "lissen", "line 2"]);
    refused("[htp]\nlisten = 1", &[], &[], &["htp"]);
    refused("[http]\ntimeout_s = \"soon\"", &[], &[], &["timeout_s", "line 2"]);
    refused(
        "",
        &[("MUSTER_SERVER_HTTP_LISSEN", "1")],
        &[],
        &["variable MUSTER_SERVER_HTTP_LISSEN", "lissen"],
    );
    refused(
        "",
        &[("MUSTER_SERVER_HTTP_TIMEOUT_S", "soon")],
        &[],
        &["MUSTER_SERVER_HTTP_TIMEOUT_S", "timeout_s"],
    );
    refused("", &[("MUSTER_SERVER_NOPE", "soon")], &[], &["MUSTER_SERVER_NOPE", "nope"]);
    refused("", &[], &[("mqtt.plain", "1")], &["flag mqtt.plain", "plain"]);
    refused("[http]\ntimeout_s = 0", &[], &[], &["http.timeout_s", "1 to 600"]);
    refused("[mqtt]\nplain_listen = \"0.0.0.0:1883\"", &[], &[], &["mqtt.plain_listen", "loopback"]);
    refused("[pki]\nhosts = []", &[], &[], &["pki.hosts", "1 to 64"]);
    refused("[pki]\nhosts = [\"a b\"]", &[], &[], &["pki.hosts", "a b"]);
    refused("[log]\nfilter = \"a=b=c\"", &[], &[], &["log.filter"]);
    refused("[http]\norigins = [\"fleet.example\"]", &[], &[], &["http.origins", "fleet.example"]);
}

#[test]
fn a_value_out_of_range_is_refused_with_the_layer_that_gave_it() {
    let file = "[log]\nfilter = \"info\"\n\n[http]\ntimeout_s = 0\n[retention.tenants]\nacme = 0";
    refused(file, &[], &[], &["muster-server.toml:5: http.timeout_s: is 0"]);
    let env = [("MUSTER_SERVER_HTTP_TIMEOUT_S", "601")];
    refused(file, &env, &[], &["variable MUSTER_SERVER_HTTP_TIMEOUT_S: http.timeout_s: is 601"]);
    refused(file, &env, &[("http.timeout_s", "602")], &["flag http.timeout_s: http.timeout_s: is 602"]);
    let good = ("http.timeout_s", "9");
    refused(file, &env, &[good], &["muster-server.toml:6: retention.tenants: is 0"]);
    refused(
        "",
        &[],
        &[("retention.tenants.acme", "0")],
        &["flag retention.tenants.acme: retention.tenants: is 0"],
    );
    let segment = "[event_log]\nsegment_bytes = 1073741824";
    let error = load(segment, &[], &[("event_log.bytes_max", "4194304")]).unwrap_err();
    assert!(error.starts_with("flag event_log.bytes_max: event_log.bytes_max: is 4194304"), "{error}");
}

#[test]
fn the_example_file_holds_every_key_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/muster-server.example.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let config: Config = toml::from_str(&text).unwrap();
    config.validate().unwrap();
    assert_eq!(changed_keys(&Config::default(), &config), Vec::<String>::new());
    // Keys that are off by default stand in a comment; all others stand as they are.
    for key in ["dir", "plain_listen", "advertise_port"] {
        assert!(text.contains(&format!("# {key} = ")), "{key}");
    }
    let table: toml::Table = toml::from_str(&text).unwrap();
    assert_eq!(table, toml::Table::try_from(Config::default()).unwrap());
}

#[test]
fn a_reload_takes_what_it_may_and_names_the_rest() {
    let (_dir, sources) = sources("", &[], &[]);
    let live = Live::new(sources.load().unwrap());
    let file = sources.file.clone().unwrap();
    std::fs::write(
        &file,
        "[log]\nfilter = \"debug\"\n[http]\nlisten = \"127.0.0.1:9\"\n[quota]\nusers_max = 7",
    )
    .unwrap();
    let (applied, refused) = live.reload(&sources).unwrap();
    assert_eq!(applied, ["log.filter", "quota.users_max"]);
    assert_eq!(refused, ["http.listen"]);
    let now = live.get();
    assert_eq!((now.quota.users_max, now.http.listen.port()), (7, 8080));
    std::fs::write(&file, "[log]\nfilter = 7").unwrap();
    assert!(live.reload(&sources).is_err());
    assert_eq!(live.get().log.filter, "debug");
}

#[test]
fn a_file_of_the_bound_is_read_and_one_byte_more_is_not() {
    let file = |bytes: usize| format!("#{}", " ".repeat(bytes - 1));
    assert!(load(&file(1 << 20), &[], &[]).is_ok());
    refused(&file((1 << 20) + 1), &[], &[], &["muster-server.toml", "is larger than 1048576 bytes"]);
}

#[test]
fn every_number_is_taken_to_its_bounds_and_no_further() {
    let table = [
        ("http.body_bytes_max", 4_096, 64 << 20),
        ("http.timeout_s", 1, 600),
        ("enroll.attempts_per_minute", 1, 100_000),
        ("mqtt.connections_max", 1, 10_000_000),
        ("mqtt.worker_threads", 1, 256),
        ("pki.device_days", 1, 825),
        ("pki.server_days", 1, 825),
        ("auth.session_hours", 1, 24 * 31),
        ("auth.login_failures_max", 1, 1_000),
        ("auth.lockout_minutes", 1, 24 * 60),
        ("auth.token_days_max", 1, 3_660),
        ("event_log.segment_bytes", 1 << 20, 1 << 30),
        ("event_log.bytes_max", 4 * (64 << 20), 1_u64 << 50),
        ("event_log.disk_reserve_bytes", 0, 1 << 40),
        ("quota.devices_max", 1, 10_000_000),
        ("quota.claims_max", 1, 1_000_000),
        ("quota.api_tokens_max", 1, 100_000),
        ("quota.users_max", 1, 100_000),
        ("limits.device_messages_per_s", 1, 1_000_000),
        ("limits.device_messages_burst", 1, 10_000_000),
        ("retention.telemetry_days", 1, 36_500),
        ("retention.alerts_days", 1, 36_500),
    ];
    for (key, least, most) in table {
        for good in [least, most] {
            assert_eq!(load("", &[], &[(key, &good.to_string())]).err(), None, "{key} = {good}");
        }
        let told = format!("must be {least} to {most}");
        let below = least.checked_sub(1);
        for bad in below.into_iter().chain([most + 1]) {
            refused("", &[], &[(key, &bad.to_string())], &[key, &told]);
        }
    }
    let hosts = |count: usize| format!("{:?}", vec!["a.example"; count]);
    assert!(load("", &[], &[("pki.hosts", &hosts(64))]).is_ok());
    refused("", &[], &[("pki.hosts", &hosts(65))], &["pki.hosts", "1 to 64"]);
}

#[test]
fn quotas_have_bounds_and_a_soft_limit_is_at_most_the_hard_one() {
    let (most, per_s, burst) = (1_u64 << 53, 10_000_000_u64, 100_000_000_u64);
    for (key, most) in [
        ("quota.messages_per_s.hard", per_s),
        ("quota.messages_per_s.burst", burst),
        ("quota.messages_per_day.hard", most),
        ("quota.bytes_per_day.soft", most),
        ("quota.inference_ms_per_day.hard", most),
        ("quota.storage_bytes.soft", most),
        ("quota.connections.hard", most),
    ] {
        for good in [0, most] {
            assert_eq!(load("", &[], &[(key, &good.to_string())]).err(), None, "{key} = {good}");
        }
        let section = key.rsplit_once('.').unwrap().0;
        refused("", &[], &[(key, &(most + 1).to_string())], &[section, &format!("0 to {most}")]);
    }
    assert!(load("[quota]\nbytes_per_day = { soft = 5, hard = 5 }", &[], &[]).is_ok());
    refused(
        "[quota]\nbytes_per_day = { soft = 6, hard = 5 }",
        &[],
        &[],
        &["quota.bytes_per_day", "soft limit above"],
    );
    refused(
        "",
        &[],
        &[("quota.devices_max", "5"), ("quota.devices_soft", "6")],
        &["quota.devices_soft", "above"],
    );
}

#[test]
fn roles_are_a_list_or_a_text_with_commas() {
    let dir = [("registry.dir", "/srv/main")];
    for (file, env, flags) in [
        ("roles = [\"gateway\"]", &[][..], &[][..]),
        ("", &[("MUSTER_SERVER_ROLES", "gateway")][..], &[][..]),
        ("", &[][..], &[("roles", "gateway")][..]),
        ("", &[][..], &[("roles", "[\"gateway\", \"gateway\"]")][..]),
    ] {
        let flags: Vec<_> = flags.iter().chain(&dir).copied().collect();
        let config = load(file, env, &flags).unwrap();
        assert!(config.roles.is_gateway_alone() && !config.roles.is_all(), "{file} {env:?} {flags:?}");
        assert_eq!(config.registry.dir.as_deref(), Some(Path::new("/srv/main")));
    }
    for all in ["gateway,worker,api", "api, gateway, worker"] {
        assert!(load("", &[], &[("roles", all)]).unwrap().roles.is_all(), "{all}");
    }
    assert!(load("", &[], &[]).unwrap().roles.is_all());
}

#[test]
fn roles_that_nothing_is_built_for_are_refused_with_what_is_expected() {
    let expected = "must be [\"gateway\", \"worker\", \"api\"], [\"gateway\"] or [\"api\"]: ";
    let url = ("registry.url", "postgres://muster@localhost/fleet");
    for (other, why) in [
        ("worker", "a worker reads the event log of the gateway in its own process"),
        ("worker,api", "a worker reads the event log of the gateway in its own process"),
        ("gateway,api", "nobody would read its messages: an event log that processes share"),
        ("gateway,worker", "so it needs the role api as well"),
    ] {
        refused("", &[], &[("roles", other)], &["flag roles: roles: is [", expected, why]);
        refused("", &[], &[("roles", other), url], &["flag roles: roles: is [", expected, why]);
    }
    let file = "data_dir = \"x\"\nroles = [\"worker\"]";
    refused(file, &[], &[], &["muster-server.toml:2: roles: is [\"worker\"]", expected]);
    refused(
        "",
        &[],
        &[("roles", "inference")],
        &["flag roles", "no role \"inference\"", "gateway, worker, api"],
    );
    refused("roles = []", &[], &[], &["roles: is empty", "gateway, worker, api"]);
    refused("roles = 3", &[], &[], &["roles", "gateway, worker, api"]);
}

#[test]
fn a_gateway_alone_names_the_registry_that_it_reads_and_nobody_else_does() {
    let gateway = ("roles", "gateway");
    refused("", &[], &[gateway], &["registry.dir: is absent, must be the data directory"]);
    refused("", &[], &[("registry.dir", "/srv/main")], &["flag registry.dir", "must be absent or roles"]);
    let same = ("registry.dir", "/var/lib/muster-server");
    refused("", &[], &[gateway, same], &["flag registry.dir", "is data_dir"]);
    refused("", &[], &[gateway, ("registry.dir", "")], &["flag registry.dir", "is empty"]);
}

#[test]
fn an_api_alone_needs_a_registry_that_processes_share() {
    let (api, url) = (("roles", "api"), ("registry.url", "postgres://muster@localhost/fleet"));
    let config = load("", &[], &[api, url]).unwrap();
    assert!(config.roles.is_api_alone() && !config.roles.is_all());
    refused("", &[], &[api], &["registry.url: is absent, must be the PostgreSQL database"]);
    refused("", &[], &[api, url, ("registry.dir", "/srv/main")], &["flag registry.dir", "must be absent"]);
}

#[test]
fn a_registry_on_postgres_is_an_address_and_its_password_is_not_shown() {
    let url = ("registry.url", "postgres://muster:hidden@db.example:5433/fleet?sslmode=require");
    let config = load("", &[], &[url, ("registry.ca_file", "/etc/ca.pem")]).unwrap();
    let text = config.to_toml().unwrap();
    assert!(text.contains("postgres://muster:***@db.example:5433/fleet?sslmode=require"), "{text}");
    assert!(!text.contains("hidden") && !format!("{config:?}").contains("hidden"));
    let without = ("registry.url", "postgres://muster@db.example/fleet");
    assert!(load("", &[], &[without, ("registry.password_file", "/run/secret")]).is_ok());
    refused(
        "",
        &[],
        &[("registry.url", "sqlite:x")],
        &["flag registry.url", "expected postgres://user:password@"],
    );
    let two = ("registry.url", "postgres://muster@db/fleet?password=hidden");
    refused("", &[], &[two], &["flag registry.url", "a password stands before the @"]);
    let file = "[registry]\nurl = \"postgres://muster:hidden@db/fleet?sslmode=verify-full\"";
    let error = load(file, &[], &[]).unwrap_err().to_string();
    assert!(error.contains("line 2: expected postgres://") && !error.contains("hidden"), "{error}");
    for key in ["registry.password_file", "registry.ca_file"] {
        refused("", &[], &[(key, "/x")], &["flag", key, "is set without registry.url"]);
    }
    let alone = [("roles", "gateway"), ("registry.dir", "/srv/main"), without];
    refused("", &[], &alone, &["flag registry.url", "is set for a gateway alone"]);
}
