use super::*;
use crate::clock::{Clock, ManualClock};
use crate::metrics::Metrics;
use crate::supervisor::stop_pair;
use tokio::sync::mpsc;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.csv");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn config(path: &Path, more: &str) -> CsvSource {
    toml::from_str(&format!("name = \"c\"\npath = {:?}\n{more}", path.display().to_string())).unwrap()
}

fn number(name: &str, number: f64) -> (Arc<str>, Value) {
    (name.into(), Value::Number(number))
}

#[test]
fn cells_are_numbers_flags_and_text() {
    let (_dir, path) = file("t,a,b,c\n10,1.5,true,\"x, \"\"y\"\"\"\n\n11,,nan,z\r\n");
    let mut rows = CsvReader::open(&path, &[], Some("t")).unwrap();
    let row = rows.next_row().unwrap().unwrap();
    assert_eq!(row.time_us, Some(10_000_000));
    let text = Value::Text("x, \"y\"".into());
    assert_eq!(row.values, [number("a", 1.5), ("b".into(), Value::Bool(true)), ("c".into(), text)]);
    let row = rows.next_row().unwrap().unwrap();
    assert_eq!(row.values.len(), 2, "an empty cell is left out");
    assert!(matches!(row.values[0].1, Value::Number(number) if number.is_nan()), "the pipeline refuses it");
    assert_eq!(rows.next_row().unwrap(), None);
}

#[test]
fn columns_are_chosen_by_name() {
    let (_dir, path) = file("a,b,serial\n1,2,3\n");
    let columns = ["serial".to_owned(), "a".to_owned()];
    let row = CsvReader::open(&path, &columns, None).unwrap().next_row().unwrap().unwrap();
    assert_eq!(row.values, [number("serial", 3.0), number("a", 1.0)]);
}

#[test]
fn errors_name_file_line_and_expectation() {
    let check = |text: &str, time: Option<&str>, parts: &[&str]| {
        let (_dir, path) = file(text);
        let read_all = || {
            let mut rows = CsvReader::open(&path, &["a".to_owned()], time)?;
            while rows.next_row()?.is_some() {}
            Ok::<_, CsvError>(())
        };
        let error = read_all().unwrap_err().to_string();
        for part in parts.iter().chain(&["rows.csv"]) {
            assert!(error.contains(part), "{error}");
        }
    };
    check("", None, &[":1:", "a header line"]);
    check("b\n1\n", None, &[":1:", "a column \"a\""]);
    check("a\n1\n\"2\n", None, &[":3:", "closed quotes"]);
    check("a,t\n1,x\n", Some("t"), &[":2:", "a timestamp"]);
    check(&format!("a\n{}\n", "1".repeat(70_000)), None, &[":2:", "less than 65536 bytes"]);
}

#[test]
fn a_bad_line_leaves_the_reader_at_the_next() {
    let (_dir, path) = file("");
    let long = "1".repeat(3 * LINE_BYTES_MAX as usize);
    let text = [b"a,t\n1,1\n\"2,2\n\xff,3\n".as_slice(), long.as_bytes(), b",4\n5,x\n6,6"].concat();
    std::fs::write(&path, text).unwrap();
    let mut rows = CsvReader::open(&path, &[], Some("t")).unwrap();
    let mut found = Vec::new();
    loop {
        match rows.next_row() {
            Ok(None) => break,
            Ok(Some(row)) => found.push(format!("{:?}", row.time_us.unwrap() / 1_000_000)),
            Err(error) => found.push(error.to_string().split_once("rows.csv").unwrap().1.to_owned()),
        }
    }
    let bad =
        [":3: expected closed quotes", ":4: expected UTF-8", ":5: expected a line of less than 65536 bytes"];
    assert_eq!(found, ["1", bad[0], bad[1], bad[2], ":6: expected a timestamp", "6"]);
}

#[test]
fn a_line_of_the_largest_size_is_read_and_a_longer_one_is_not() {
    let longest = LINE_BYTES_MAX as usize - 1;
    for (bytes, end, fits) in [(longest, "\n", true), (longest, "", true), (longest + 1, "\n", false)] {
        let (_dir, path) = file(&format!("a\n{}{end}", "1".repeat(bytes)));
        let read = CsvReader::open(&path, &[], None).unwrap().next_row();
        assert_eq!(read.is_ok(), fits, "{bytes} bytes");
    }
}

#[test]
fn a_thousand_columns_are_read_and_more_are_refused() {
    let header = |columns: usize| (0..columns).map(|at| format!("c{at},")).collect::<String>() + "t\n";
    let (_dir, path) = file(&header(1_000));
    CsvReader::open(&path, &[], Some("t")).unwrap();
    let error = CsvReader::open(&path, &[], None).unwrap_err().to_string();
    assert!(error.ends_with("rows.csv:1: expected at most 1000 columns"), "{error}");
    let named = |count: usize| vec!["c1".to_owned(); count];
    CsvReader::open(&path, &named(1_000), None).unwrap();
    assert!(CsvReader::open(&path, &named(1_001), None).is_err());
}

#[test]
fn a_check_ends_after_its_lines_blank_ones_too() {
    let (_dir, path) = file("a\n1\n2\n\n\n\"6\n");
    let config = config(&path, "");
    assert_eq!(check_lines(&config, 3).unwrap(), 2);
    assert_eq!(check_lines(&config, 5).unwrap(), 2);
    assert!(check_lines(&config, 6).is_err(), "the sixth line is bad");
    let mut rows = CsvReader::open(&path, &[], None).unwrap();
    while rows.next_row_within(4).unwrap().is_some() {}
    assert_eq!(rows.line, 4, "nothing behind the bound is read");
}

#[test]
fn the_first_bad_rows_are_told_and_the_last_of_them_says_so() {
    let words: Vec<_> = (1..=1_000).map_while(told).collect();
    assert_eq!((words.len(), (11..=1_000).find_map(told)), (10, None));
    assert_eq!(words.iter().filter(|words| words.contains("only counted")).count(), 1);
    assert!(words[9].contains("only counted"));
}

#[test]
fn a_check_reads_the_whole_file() {
    let (_dir, path) = file("a\n1\n2\n\"3\n");
    let error = check(&config(&path, "")).unwrap_err().to_string();
    assert!(error.ends_with("rows.csv:4: expected closed quotes"), "{error}");
    std::fs::write(&path, "a\n1\n2\n").unwrap();
    assert_eq!(check(&config(&path, "")).unwrap(), 2);
}

#[test]
fn the_schedule_keeps_original_timing_rate_and_speed() {
    let check = |more: &str, times: &[Option<i64>], expect_ms: &[u128]| {
        let mut schedule = Schedule::new(&config(Path::new("x"), more));
        let due: Vec<_> = times.iter().map(|time| schedule.next_due(*time).as_millis()).collect();
        assert_eq!(due, expect_ms, "{more}");
    };
    let seconds = |list: &[i64]| list.iter().map(|second| Some(second * 1_000_000)).collect::<Vec<_>>();
    check("timestamp_column = \"t\"", &seconds(&[100, 101, 103, 103]), &[0, 1000, 3000, 3000]);
    check("timestamp_column = \"t\"\nspeed = 10.0", &seconds(&[100, 110, 130]), &[0, 1000, 3000]);
    check("timestamp_column = \"t\"", &seconds(&[100, 90, 91]), &[0, 0, 1000]);
    check("timestamp_column = \"t\"", &seconds(&[0, 100_000]), &[0, 3_600_000]);
    check("rate_hz = 4.0", &[None, None, None], &[0, 250, 500]);
    check("rate_hz = 4.0\npace = \"fastest\"", &[None, None, None], &[0, 0, 0]);
}

async fn replay_all(config: CsvSource, clock: Arc<ManualClock>, take: usize) -> Vec<Sample> {
    replay_counted(config, clock, take, &Metrics::new()).await
}

async fn replay_counted(
    config: CsvSource,
    clock: Arc<ManualClock>,
    take: usize,
    metrics: &Metrics,
) -> Vec<Sample> {
    let (_sender, stop) = stop_pair();
    let (sink, mut samples) = mpsc::channel(4);
    let context = SourceContext { clock, metrics: metrics.clone(), stop, sinks: vec![sink] };
    let task = tokio::spawn(run(config, context));
    let mut got = Vec::new();
    while got.len() < take {
        match samples.recv().await {
            Some(sample) => got.push(sample),
            None => break,
        }
    }
    drop(samples);
    task.await.unwrap().unwrap();
    got
}

#[tokio::test(start_paused = true)]
async fn a_replay_takes_as_long_as_the_rows_say_and_is_stamped_by_the_clock() {
    let (_dir, path) = file("t,a\n0,1\n2,2\n5,3\n");
    let clock = Arc::new(ManualClock::at(77));
    let before = Instant::now();
    let got = replay_all(config(&path, "timestamp_column = \"t\""), Arc::clone(&clock), 10).await;
    assert_eq!(before.elapsed().as_secs(), 5);
    assert_eq!(got.len(), 3);
    assert!(got.iter().all(|sample| sample.measured_at_us == clock.now_us()));
    let got = replay_all(config(&path, "timestamp_column = \"t\"\nstamp = \"original\""), clock, 10).await;
    assert_eq!(got[2].measured_at_us, 5_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_loop_numbers_rows_on_and_ends_when_nobody_reads() {
    let (_dir, path) = file("a\n1\n2\n");
    let got = replay_all(config(&path, "pace = \"fastest\"\nwrap = \"loop\""), Arc::default(), 5).await;
    assert_eq!(numbers(&got), [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn bad_rows_are_counted_and_the_others_replayed_once() {
    let (_dir, path) = file("t,a\n1,1\nx,2\n3,3\n4,\"4\n5,5\n");
    let metrics = Metrics::new();
    let once = config(&path, "timestamp_column = \"t\"\npace = \"fastest\"\nstamp = \"original\"");
    let got = replay_counted(once, Arc::default(), 100, &metrics).await;
    let seconds: Vec<_> = got.iter().map(|sample| sample.measured_at_us / 1_000_000).collect();
    assert_eq!((seconds, numbers(&got)), (vec![1, 3, 5], vec![1, 2, 3]));
    assert_eq!(metrics.refusals(Refusal::BadRow), 2);
}

fn numbers(samples: &[Sample]) -> Vec<u64> {
    let number = |sample: &Sample| match &sample.content {
        Content::Row { number, .. } => *number,
        Content::Image { .. } | Content::Audio { .. } => 0,
    };
    samples.iter().map(number).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_takes_nothing_makes_its_source_wait() {
    let (_dir, path) = file("a\n1\n2\n");
    let (metrics, (_sender, stop)) = (Metrics::new(), stop_pair());
    let (sink, mut samples) = super::super::sample_channel();
    let context = SourceContext {
        clock: Arc::new(ManualClock::default()),
        metrics: metrics.clone(),
        stop,
        sinks: vec![sink],
    };
    let task = tokio::spawn(run(config(&path, "pace = \"fastest\"\nwrap = \"loop\""), context));
    // The paused clock moves on only once nothing else can.
    let idle = || tokio::time::sleep(Duration::from_secs(1));
    idle().await;
    assert_eq!((samples.len(), metrics.samples.get()), (64, 65), "the last one waits for room");
    let first = samples.recv().await.unwrap();
    idle().await;
    assert_eq!((samples.len(), metrics.samples.get()), (64, 66));
    let mut got = vec![first];
    while got.len() < 65 {
        got.push(samples.recv().await.unwrap());
    }
    assert_eq!(numbers(&got), (1..=65).collect::<Vec<_>>(), "none is left out");
    drop(samples);
    task.await.unwrap().unwrap();
}
