use super::*;

const BASE: &str = "version = 1\ndata_dir = \"data\"\n";

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::from_text(text, Path::new("/etc/muster/agent.toml"))
}

#[track_caller]
fn refused(more: &str, parts: &[&str]) {
    let error = load(&format!("{BASE}{more}")).expect_err(more).to_string();
    for part in parts.iter().chain(&["/etc/muster/agent.toml"]) {
        assert!(error.contains(part), "{more:?} gave {error:?}, which lacks {part:?}");
    }
}

#[test]
fn errors_name_file_field_and_expectation() {
    refused("colour = 1", &["agent.toml:3: colour", "unknown field", "expected one of"]);
    refused("[uplink]\nport = \"x\"", &["agent.toml:4: uplink.port", "expected u16"]);
    refused("[uplink]\nkeep_alive_s = 5", &["uplink.keep_alive_s", "expected 10 to 3600", "found 5"]);
    refused("[uplink]\ntransport = \"tsl\"", &["uplink.transport", "unknown variant", "`tls`"]);
    refused("[identity]\nclaim = \"muster-claim:h\"", &["identity.claim", "expected muster-claim:<host>"]);
    refused("[identity]\ndevice = \"d\"", &["identity.tenant", "together"]);
    refused("[queue]\nsegment_bytes = 1", &["queue.segment_bytes", "expected 131072 to"]);
    refused("[metrics]\nlisten = \"0.0.0.0:1\"", &["metrics.listen", "loopback"]);
    refused("[[source]]\nkind = \"host\"\nname = \"a b\"", &["source.name", "found \"a b\""]);
    refused("[[source]]\nkind = \"tape\"\nname = \"a\"", &["unknown variant `tape`", "`csv`"]);
    refused("[[source]]\nkind = \"host\"\nname = \"a\"\nbeat = 1", &["unknown field `beat`"]);
    refused("[[source]]\nkind = \"csv\"\nname = \"a\"\npath = \"x\"", &["source \"a\".rate_hz"]);
    refused(
        "[[source]]\nkind = \"csv\"\nname = \"a\"\npath = \"x\"\nrate_hz = -1.0",
        &["above 0", "found -1"],
    );
    refused("[[source]]\nkind = \"images\"\nname = \"a\"", &["source \"a\".folder", "found neither"]);
    refused("[[pipeline]]\nname = \"p\"\nsource = \"q\"", &["pipeline \"p\".source", "found \"q\""]);
    let host = "[[source]]\nkind = \"host\"\nname = \"h\"\n";
    refused(&format!("{host}{host}"), &["source.name", "no other source"]);
    refused(
        &format!("{host}[[pipeline]]\nname = \"p\"\nsource = \"h\"\nserial = \"a b\""),
        &["serial", "1 to 64"],
    );
    let images = "[[source]]\nkind = \"images\"\nname = \"i\"\nfolder = \"f\"\n";
    refused(&format!("{images}[[pipeline]]\nname = \"p\"\nsource = \"i\""), &["model", "a model bundle"]);
    assert!(load("version = 2\ndata_dir = \"d\"").unwrap_err().to_string().contains("version: expected 1"));
    assert!(load("version = 1").unwrap_err().to_string().contains("data_dir"));
}

#[test]
fn relative_paths_count_from_the_file() {
    let config =
        load(&format!("{BASE}[[source]]\nkind=\"csv\"\nname=\"c\"\npath=\"x.csv\"\nrate_hz=1.0")).unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/muster/data"));
    let SourceConfig::Csv(csv) = &config.sources[0] else { panic!("a csv source") };
    assert_eq!(csv.path, Path::new("/etc/muster/x.csv"));
}

#[test]
fn the_example_file_is_valid() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/muster-agent.example.toml");
    let config = Config::load(&file).unwrap();
    assert!(!config.pipelines.is_empty());
}

#[test]
fn an_oversized_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("big.toml");
    std::fs::write(&file, vec![b'#'; usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1]).unwrap();
    assert!(matches!(Config::load(&file), Err(ConfigError::NotText { .. })));
}
