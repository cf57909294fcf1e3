use super::*;
use crate::clock::ManualClock;
use crate::metrics::Metrics;
use crate::supervisor::{Exit, StopSender, Supervisor, stop_pair};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longer than anything here takes; what is waited for is seen before.
const DEADLINE: Duration = Duration::from_secs(60);

/// A source with a shell as its command.
fn config(script: &str, more: &str) -> ExecSource {
    toml::from_str(&format!("name = \"e\"\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\n{more}")).unwrap()
}

struct Bench {
    metrics: Metrics,
    stop: StopSender,
    samples: mpsc::Receiver<Sample>,
    task: JoinHandle<Result<(), ExecError>>,
}

fn start(config: ExecSource) -> Bench {
    let (metrics, (stop, stopped)) = (Metrics::new(), stop_pair());
    let (sink, samples) = mpsc::channel(4);
    let clock = Arc::new(ManualClock::at(77));
    let context = SourceContext { clock, metrics: metrics.clone(), stop: stopped, sinks: vec![sink] };
    Bench { metrics, stop, samples, task: tokio::spawn(run(config, context)) }
}

impl Bench {
    async fn next(&mut self) -> Option<(u64, String)> {
        let sample =
            tokio::time::timeout(DEADLINE, self.samples.recv()).await.expect("the source is silent")?;
        assert_eq!(sample.measured_at_us, 77);
        let Content::Row { values, number } = sample.content else { panic!("a row") };
        let words = values.iter().map(|(name, value)| match value {
            Value::Number(number) => format!("{name}={number}"),
            other => format!("{name}={other:?}"),
        });
        let mut words: Vec<_> = words.collect();
        words.sort();
        Some((number, words.join(" ")))
    }

    async fn rest(&mut self) -> Vec<String> {
        let mut rows = Vec::new();
        while let Some((number, row)) = self.next().await {
            rows.push(row);
            assert_eq!(number, rows.len() as u64, "rows are numbered from 1");
        }
        rows
    }

    async fn ended(self) -> Result<(), ExecError> {
        tokio::time::timeout(DEADLINE, self.task).await.expect("the source goes on").unwrap()
    }
}

#[tokio::test]
async fn numbers_and_objects_become_rows_and_bad_lines_are_counted() {
    let mut bench = start(config(
        "printf '1 2.5\\n3,4\\n\\n ,5\\n6\\n7 x\\n\\3778 9\\n-1e3 0'",
        "columns = [\"a\", \"b\"]",
    ));
    assert_eq!(bench.rest().await, ["a=1 b=2.5", "a=3 b=4", "b=5", "a=-1000 b=0"]);
    assert_eq!(bench.metrics.refusals(Refusal::BadRow), 3);
    let error = bench.ended().await.unwrap_err().to_string();
    assert_eq!(error, "/bin/sh ended: exit status: 0");

    let lines = [
        r#"{"on": true, "t": 20.5, "who": "x", "none": null, "in": {"a": 1, "b": {"c": 2}}}"#,
        r#"{"list": [1]}"#,
        "[1]",
        "5",
        r#"{"t": 1e999}"#,
        "{",
        r#"{"t": 2}"#,
    ];
    let mut bench = start(config(&format!("cat <<'END'\n{}\nEND", lines.join("\n")), ""));
    let first = "in.a=1 in.b.c=2 on=Bool(true) t=20.5 who=Text(\"x\")";
    assert_eq!(bench.rest().await, [first, "t=2"]);
    assert_eq!(bench.metrics.refusals(Refusal::BadRow), 5);
}

#[test]
fn a_bad_line_is_told_by_what_was_expected() {
    let columns = [Arc::from("a"), Arc::from("b")];
    let check = |line: &str, columns: &[Arc<str>], expected: &str| {
        let found = row(line.as_bytes(), columns).unwrap_err();
        assert!(found.starts_with(expected), "{line}: {found}");
    };
    check("1", &columns, "2 numbers, as many as columns, found 1");
    check("1,2,", &columns, "2 numbers, as many as columns, found 3");
    check("1 b", &columns, "a number under \"b\"");
    check("1", &[], "a JSON object (invalid type");
    check("{\"a\": {\"b\": []}}", &[], "no list under \"a.b\"");
}

#[test]
fn a_thousand_fields_are_taken_and_more_refused() {
    let line = |count: usize| {
        let fields: Vec<_> = (0..count).map(|at| format!("\"f{at}\": 1")).collect();
        row(format!("{{\"in\": {{{}}}}}", fields.join(", ")).as_bytes(), &[])
    };
    assert_eq!(line(1_000).unwrap().len(), 1_000);
    assert_eq!(line(1_001).unwrap_err(), "at most 1000 fields");
}

#[tokio::test]
async fn a_line_of_the_largest_size_is_read_and_a_longer_one_passed_over() {
    let longest = LINE_BYTES_MAX as usize - 1;
    let text =
        [vec![b'1'; longest + 1], vec![b'2'; longest], vec![b'3'; 3 * longest], b"4".to_vec()].join(&b'\n');
    let (mut reader, mut line) = (BufReader::new(text.as_slice()), Vec::new());
    let mut found = Vec::new();
    loop {
        match next_line(&mut reader, &mut line, longest).await.unwrap() {
            Line::End => break,
            read => found.push((read, line[0], line.len())),
        }
    }
    let expected = [
        (Line::TooLong, b'1', longest),
        (Line::Whole, b'2', longest),
        (Line::TooLong, b'3', longest),
        (Line::Whole, b'4', 1),
    ];
    assert_eq!(found, expected);
    let script = "head -c 70000 /dev/zero | tr '\\0' 1; echo; echo 2";
    let mut bench = start(config(script, "columns = [\"a\"]"));
    assert_eq!(bench.rest().await, ["a=2"]);
    assert_eq!(bench.metrics.refusals(Refusal::BadRow), 1);
}

#[tokio::test]
async fn a_child_that_ends_is_started_again() {
    let (metrics, (stop, stopped)) = (Metrics::new(), stop_pair());
    let (sink, mut samples) = mpsc::channel(4);
    let clock = Arc::new(ManualClock::default());
    let context = SourceContext { clock, metrics: metrics.clone(), stop: stopped.clone(), sinks: vec![sink] };
    let config = config("echo 1; exit 3", "columns = [\"a\"]");
    let supervisor = Supervisor::new(metrics.clone(), stopped);
    let task = supervisor.spawn("source e".into(), move || {
        let run = run(config.clone(), context.clone());
        async move { Exit::from(run.await) }
    });
    for _ in 0..3 {
        tokio::time::timeout(DEADLINE, samples.recv()).await.unwrap().unwrap();
    }
    assert!(metrics.restarts.get() >= 2 && metrics.exec_ends(ExecEnd::Failure) >= 2);
    stop.stop();
    task.await.unwrap();
}

#[tokio::test]
async fn with_an_interval_the_command_runs_again_and_again() {
    let mut bench = start(config("echo $$; echo x >&2; exit 1", "columns = [\"a\"]\ninterval_ms = 200"));
    let mut children = Vec::new();
    for number in 1..=3 {
        let (found, child) = bench.next().await.unwrap();
        assert_eq!(found, number);
        assert!(!children.contains(&child), "{child} again");
        children.push(child);
    }
    assert!(bench.metrics.exec_ends(ExecEnd::Failure) >= 2);
    bench.stop.stop();
    bench.ended().await.unwrap();
}

/// The process's state letter; None where it is gone.
fn state(process: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits until a process that is nobody's child here is gone; one that init has yet to reap is.
async fn gone(process: &str) {
    let wait = async {
        while !matches!(state(process), None | Some('Z')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the process goes on");
}

/// Tells the shell's number and that of the process that it started, and waits for that one.
const SLEEPER: &str = "sleep 1000 & echo $$ $!; wait";

fn numbers_of(row: &str) -> Vec<String> {
    row.split(' ').map(|word| word.split_once('=').unwrap().1.to_owned()).collect()
}

#[tokio::test]
async fn a_stop_leaves_no_process_of_the_group() {
    for (script, more) in [
        (SLEEPER.to_owned(), ""),
        (SLEEPER.to_owned(), "interval_ms = 1000\ntimeout_ms = 86400000"),
        // Those that do not listen are killed.
        (format!("trap '' TERM; {SLEEPER}"), ""),
    ] {
        let mut bench = start(config(&script, &format!("columns = [\"shell\", \"sleep\"]\n{more}")));
        let processes = numbers_of(&bench.next().await.unwrap().1);
        assert!(processes.iter().all(|process| state(process).is_some()), "{processes:?}");
        bench.stop.stop();
        let ends = bench.metrics.clone();
        bench.ended().await.unwrap();
        assert_eq!(state(&processes[0]), None, "the child is reaped");
        gone(&processes[1]).await;
        let counted: u64 = ExecEnd::ALL.iter().map(|end| ends.exec_ends(*end)).sum();
        assert_eq!(counted, 0, "a stop is no end of the child's own");
    }
}

#[tokio::test]
async fn an_aborted_source_leaves_no_process_of_the_group() {
    let mut bench = start(config(SLEEPER, "columns = [\"shell\", \"sleep\"]"));
    let processes = numbers_of(&bench.next().await.unwrap().1);
    bench.task.abort();
    for process in &processes {
        gone(process).await;
    }
}

#[tokio::test]
async fn what_a_child_leaves_behind_is_killed() {
    let script = "sleep 1000 >/dev/null 2>&1 & echo $$ $!";
    let mut bench = start(config(script, "columns = [\"shell\", \"sleep\"]"));
    let processes = numbers_of(&bench.next().await.unwrap().1);
    let error = bench.ended().await.unwrap_err().to_string();
    assert_eq!(error, "/bin/sh ended: exit status: 0", "it was not killed itself");
    gone(&processes[1]).await;
}

#[tokio::test]
async fn a_child_that_takes_too_long_is_killed_and_the_next_one_started() {
    let more = "columns = [\"shell\", \"sleep\"]\ninterval_ms = 200\ntimeout_ms = 100";
    let mut bench = start(config(SLEEPER, more));
    let first = numbers_of(&bench.next().await.unwrap().1);
    let (number, _) = bench.next().await.unwrap();
    assert_eq!((number, state(&first[0])), (2, None));
    gone(&first[1]).await;
    assert!(bench.metrics.exec_ends(ExecEnd::Timeout) >= 1);
    bench.stop.stop();
    bench.ended().await.unwrap();

    let mut bench = start(config(SLEEPER, "columns = [\"shell\", \"sleep\"]\ntimeout_ms = 100"));
    let silent = numbers_of(&bench.next().await.unwrap().1);
    let metrics = bench.metrics.clone();
    let error = bench.ended().await.unwrap_err().to_string();
    assert_eq!(error, "/bin/sh was silent for 100 ms, it was killed");
    assert_eq!((state(&silent[0]), metrics.exec_ends(ExecEnd::Timeout)), (None, 1));
}

#[tokio::test]
async fn a_child_that_floods_is_held_back_and_loses_nothing() {
    let script = "i=0; while :; do i=$((i+1)); echo $i; done";
    let mut bench = start(config(script, "columns = [\"a\"]"));
    for number in 1..=2_000u64 {
        assert_eq!(bench.next().await.unwrap(), (number, format!("a={number}")));
        // Four wait in the channel, the fifth for room.
        assert!(bench.metrics.samples.get() <= number + 5);
    }
    bench.stop.stop();
    bench.ended().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let refused = |command: &str| {
        let config: ExecSource = toml::from_str(&format!("name = \"e\"\ncommand = [{command:?}]")).unwrap();
        (check(&config).unwrap_err().to_string(), config)
    };
    let (error, config) = refused("no-such-program-here");
    assert_eq!(error, "command: expected a program in PATH or a path to one, found \"no-such-program-here\"");
    let bench = start(config);
    let metrics = bench.metrics.clone();
    let error = bench.ended().await.unwrap_err().to_string();
    assert_eq!(
        (error.as_str(), metrics.exec_ends(ExecEnd::Failure)),
        ("cannot start no-such-program-here", 1)
    );
    assert!(refused("./no-such-program").0.contains("or a path to one"));
    assert_eq!(
        refused("/dev/null").0,
        "command: expected a file that this user may execute, found /dev/null"
    );
    let sh: ExecSource = toml::from_str("name = \"e\"\ncommand = [\"sh\"]").unwrap();
    assert!(check(&sh).unwrap().is_absolute());
    assert!(check(&config_of_folder()).unwrap().ends_with("bin/sh"));
}

/// A program that counts from the configuration's folder.
fn config_of_folder() -> ExecSource {
    let mut config: ExecSource = toml::from_str("name = \"e\"\ncommand = [\"bin/sh\"]").unwrap();
    config.folder = "/".into();
    config
}
