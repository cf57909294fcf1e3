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
    refused(
        "[[source]]\nkind = \"host\"\nname = \"a\"\nbeat = 1",
        &["agent.toml:6: source.beat", "unknown field `beat`"],
    );
    refused(
        "[[source]]\nname = \"a\"\nkind = \"images\"\n# comment\nwrap = true\n[metrics]\nlisten = \"x\"",
        &["agent.toml:7: source.wrap", "wanted string or table"],
    );
    for kind in ["host", "csv", "images", "exec", "pcm"] {
        let beside = "path = \"x\"\nfolder = \"x\"\ncommand = [\"x\"]\n";
        let more = format!("[[source]]\n\"kind\" = \"{kind}\"\nname = \"a\"\nbeat = 1\n{beside}");
        refused(&more, &["agent.toml:6: source.beat", "unknown field `beat`"]);
    }
    refused(
        "[[source]]\n# rows\nkind = \"csv\"\nname = \"a\"",
        &["agent.toml:3: source: missing field `path`"],
    );
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
fn errors_of_exec_and_pcm_name_field_and_expectation() {
    let exec = "[[source]]\nkind = \"exec\"\nname = \"e\"\n";
    refused(exec, &["missing field `command`"]);
    refused(&format!("{exec}command = []"), &["source \"e\".command", "1 to 256", "found 0"]);
    refused(&format!("{exec}command = [\"\"]"), &["source \"e\".command", "a program first"]);
    refused(
        &format!("{exec}command = [\"a\", \"b\\u0000\"]"),
        &["source \"e\".command", "words without NUL"],
    );
    refused(&format!("{exec}command = \"a b\""), &["expected a sequence"]);
    let twice = "command = [\"a\"]\ncolumns = [\"c\", \"c\"]";
    refused(&format!("{exec}{twice}"), &["source \"e\".columns", "names that differ", "\"c\" twice"]);
    let pcm = "[[source]]\nkind = \"pcm\"\nname = \"p\"\npath = \"x\"\n";
    refused(&format!("{pcm}rate_hz = 8000"), &["source \"p\".rate_hz", "a WAV file tells it"]);
    refused(&format!("{pcm}channels = 1"), &["source \"p\".channels", "a WAV file tells them"]);
    refused(&format!("{pcm}format = \"s16le\""), &["source \"p\".rate_hz", "s16le has no header"]);
    let raw = format!("{pcm}format = \"s16le\"\nrate_hz = 8000\n");
    refused(&raw, &["source \"p\".channels", "s16le has no header"]);
    refused(&format!("{pcm}format = \"mp3\""), &["unknown variant `mp3`", "`s16le`"]);
    refused(&format!("{pcm}speed = 0.0"), &["source \"p\".speed", "above 0"]);
    let pipeline = "[[pipeline]]\nname = \"p\"\nsource = \"p\"\nmodel = \"m\"\ninputs = [\"a\"]";
    refused(&format!("{pcm}{pipeline}"), &["pipeline \"p\".inputs", "the source gives columns"]);
}

#[test]
fn exec_and_pcm_are_bounded() {
    let exec = |more: String| format!("[[source]]\nkind = \"exec\"\nname = \"e\"\n{more}");
    bounded("source \"e\".command", 1, 256, |count| {
        exec(format!("command = [{}]", list(|_| "\"a\", ".into(), count)))
    });
    let key = |key: &'static str| move |value| exec(format!("command = [\"a\"]\n{key} = {value}"));
    bounded("source \"e\".interval_ms", 200, 86_400_000, key("interval_ms"));
    bounded("source \"e\".timeout_ms", 1, 86_400_000, key("timeout_ms"));
    bounded("source \"e\".columns", 0, 1_000, |count| {
        exec(format!("command = [\"a\"]\ncolumns = [{}]", list(|at| format!("\"c{at}\", "), count)))
    });
    let pcm = |more: String| format!("[[source]]\nkind = \"pcm\"\nname = \"p\"\npath = \"x\"\n{more}");
    bounded("source \"p\".block_ms", 10, 1_000, |value| pcm(format!("block_ms = {value}")));
    bounded("source \"p\".rate_hz", 1_000, 192_000, |value| {
        pcm(format!("format = \"s16le\"\nchannels = 1\nrate_hz = {value}"))
    });
    bounded("source \"p\".channels", 1, 8, |value| {
        pcm(format!("format = \"s16le\"\nrate_hz = 8000\nchannels = {value}"))
    });
}

#[test]
fn a_program_with_a_slash_counts_from_the_file_and_another_does_not() {
    for (program, found) in
        [("./read.sh", "/etc/muster/./read.sh"), ("python3", "python3"), ("/bin/sh", "/bin/sh")]
    {
        let text = format!("{BASE}[[source]]\nkind = \"exec\"\nname = \"e\"\ncommand = [{program:?}]");
        let config = load(&text).unwrap();
        let SourceConfig::Exec(exec) = &config.sources[0] else { panic!("an exec source") };
        assert_eq!(exec.program(), Path::new(found));
    }
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

/// A value at either end is taken, one beyond is refused by its field and its range.
#[track_caller]
fn bounded(field: &str, min: u64, max: u64, text: impl Fn(u64) -> String) {
    for value in [min, max] {
        load(&format!("{BASE}{}", text(value))).unwrap_or_else(|error| panic!("{error}"));
    }
    let expected = format!("{field}: expected ");
    refused(&text(max + 1), &[&expected, &max.to_string(), &format!("found {}", max + 1)]);
    if let Some(below) = min.checked_sub(1) {
        refused(&text(below), &[&expected, &format!("found {below}")]);
    }
}

fn list(item: impl Fn(u64) -> String, count: u64) -> String {
    (0..count).map(item).collect()
}

#[test]
fn lists_are_bounded() {
    let host = |at| format!("[[source]]\nkind = \"host\"\nname = \"h{at}\"\n");
    bounded("source", 0, SOURCES_MAX as u64, |count| list(host, count));
    let pipeline = |at| format!("[[pipeline]]\nname = \"p{at}\"\nsource = \"h0\"\n");
    bounded("pipeline", 0, PIPELINES_MAX as u64, |count| format!("{}{}", host(0), list(pipeline, count)));
    let columns = |count| list(|at| format!("\"c{at}\", "), count);
    bounded("source \"c\".columns", 0, 1_000, |count| {
        let csv = "[[source]]\nkind = \"csv\"\nname = \"c\"\npath = \"x\"\nrate_hz = 1.0\n";
        format!("{csv}columns = [{}]", columns(count))
    });
    bounded("pipeline \"p0\".telemetry", 0, 1_000, |count| {
        format!("{}{}telemetry = [{}]", host(0), pipeline(0), columns(count))
    });
}

#[test]
fn numbers_are_bounded() {
    let uplink = |key: &'static str| move |value| format!("[uplink]\n{key} = {value}");
    bounded("uplink.keep_alive_s", 10, 3_600, uplink("keep_alive_s"));
    bounded("uplink.reconnect_delay_ms_min", 10, 60_000, uplink("reconnect_delay_ms_min"));
    bounded("uplink.reconnect_delay_ms_max", 500, 3_600_000, uplink("reconnect_delay_ms_max"));
    bounded("uplink.state_interval_s", 1, 3_600, uplink("state_interval_s"));
    let queue = |key: &'static str| move |value| format!("[queue]\nsegment_bytes = 131072\n{key} = {value}");
    bounded("queue.telemetry_bytes_max", 1 << 20, 1 << 40, queue("telemetry_bytes_max"));
    bounded("queue.event_bytes_max", 1 << 20, 1 << 40, queue("event_bytes_max"));
    bounded("queue.telemetry_age_s_max", 60, 3_162_240_000, queue("telemetry_age_s_max"));
    bounded("queue.event_age_s_max", 60, 3_162_240_000, queue("event_age_s_max"));
    bounded("queue.sync_interval_ms", 0, 60_000, queue("sync_interval_ms"));
    bounded("queue.written_bytes_day_max", 1 << 20, 1 << 40, queue("written_bytes_day_max"));
    bounded("device.memory_available_mib_min", 1, 1 << 20, |value| {
        format!("[device]\nmemory_available_mib_min = {value}")
    });
    let classes = "telemetry_bytes_max = 1073741824\nevent_bytes_max = 1073741824";
    bounded("queue.segment_bytes", 128 << 10, 64 << 20, |value| {
        format!("[queue]\n{classes}\nsegment_bytes = {value}")
    });
    let small = "telemetry_bytes_max = 4194304\nevent_bytes_max = 8388608";
    bounded("queue.segment_bytes", 128 << 10, 1 << 20, |value| {
        format!("[queue]\n{small}\nsegment_bytes = {value}")
    });
    let source =
        |kind: &str, value| format!("[[source]]\nkind = {kind}\nname = \"s\"\ninterval_ms = {value}");
    bounded("source \"s\".interval_ms", 200, 86_400_000, |value| source("\"host\"", value));
    bounded("source \"s\".interval_ms", 1, 86_400_000, |value| source("\"images\"\nfolder = \"f\"", value));
    let csv = |key: &'static str| {
        move |value| format!("[[source]]\nkind = \"csv\"\nname = \"c\"\npath = \"x\"\n{key} = {value}.0")
    };
    bounded("source \"c\".rate_hz", 1, 100_000, csv("rate_hz"));
    let speed = |value| csv("rate_hz = 1.0\nspeed")(value);
    bounded("source \"c\".speed", 1, 1_000_000_000, speed);
}

#[test]
fn a_budget_is_a_share_of_one_core_and_needs_a_model() {
    let pipeline = |more: &str| {
        format!(
            "[[source]]\nkind = \"host\"\nname = \"h\"\n[[pipeline]]\nname = \"p\"\nsource = \"h\"\n{more}"
        )
    };
    for percent in ["0.01", "25.0", "100.0"] {
        let text = pipeline(&format!("model = \"m\"\ncpu_percent_max = {percent}"));
        assert!(load(&format!("{BASE}{text}")).is_ok(), "{percent}");
    }
    for percent in ["0.0", "-1.0", "100.1", "nan", "inf"] {
        let text = pipeline(&format!("model = \"m\"\ncpu_percent_max = {percent}"));
        refused(&text, &["pipeline \"p\".cpu_percent_max: expected above 0 and up to 100"]);
    }
    refused(
        &pipeline("cpu_percent_max = 25.0"),
        &["pipeline \"p\".cpu_percent_max", "only beside a model, since telemetry is never shed"],
    );
}

#[test]
fn names_are_bounded() {
    let long = |bytes| "n".repeat(bytes);
    let host = |bytes| format!("[uplink]\nhost = {:?}", long(bytes));
    assert!(load(&format!("{BASE}{}", host(253))).is_ok());
    refused(&host(254), &["uplink.host", "1 to 253 bytes"]);
    let source = |bytes| format!("[[source]]\nkind = \"host\"\nname = {:?}\n", long(bytes));
    assert!(load(&format!("{BASE}{}", source(64))).is_ok());
    refused(&source(65), &["source.name", "1 to 64"]);
    // The readings of a model are named after its pipeline.
    let scored = |bytes, more: &str| {
        let images = "[[source]]\nkind = \"images\"\nname = \"i\"\nfolder = \"f\"\n";
        format!("{images}[[pipeline]]\nname = {:?}\nsource = \"i\"\nmodel = \"m\"\n{more}", long(bytes))
    };
    for fits in [scored(58, ""), scored(54, "prefix = \"p/a.\""), scored(64, "scores = false")] {
        assert!(load(&format!("{BASE}{fits}")).is_ok(), "{fits}");
    }
    for over in [scored(59, ""), scored(55, "prefix = \"p/a.\"")] {
        refused(&over, &[".scores: expected false, or a prefix and a name", "at most 64 bytes", ".score\""]);
    }
}

#[test]
fn a_file_of_the_largest_size_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("big.toml");
    let missing = usize::try_from(CONFIG_BYTES_MAX).unwrap() - BASE.len();
    std::fs::write(&file, format!("{BASE}{}", "#".repeat(missing))).unwrap();
    assert!(Config::load(&file).is_ok());
    std::fs::write(&file, format!("{BASE}{}", "#".repeat(missing + 1))).unwrap();
    let error = Config::load(&file).unwrap_err().to_string();
    assert!(error.ends_with("big.toml: expected UTF-8 text of at most 1048576 bytes"), "{error}");
}
