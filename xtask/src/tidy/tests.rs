use super::*;

fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), bytes: text.len() as u64, text: Some(text.to_owned()) }
}

/// Checks one file and answers its problems as `line: message`.
fn problems(path: &str, text: &str) -> Vec<String> {
    let (problems, _) = check(&[file(path, text)], &Exceptions::default());
    problems.into_iter().map(|problem| format!("{}: {}", problem.line, problem.message)).collect()
}

fn check_one(path: &str, text: &str, expect: &str) {
    let text = format!("//! Doc.\n{text}");
    let found = problems(path, &text);
    if expect.is_empty() {
        assert!(found.is_empty(), "{path}: {text}\n{found:?}");
    } else {
        assert!(found.iter().any(|problem| problem.contains(expect)), "{path}: {text}\n{found:?}");
    }
}

#[test]
fn code_strings_and_comments_are_told_apart() {
    let text = "let a = \"// no\"; // yes \"x\"\nlet b = r#\"\"#; /* a /* b */ c */ let c = '\"'; let d: &'static str = b\"z\\\"\";";
    let source = Source::scan(text, false);
    assert_eq!(source.code.len(), text.len());
    for hidden in ["no", "yes", "x", "/*", "z"] {
        assert!(!source.code.contains(hidden), "{hidden}: {}", source.code);
    }
    assert_eq!(source.code.split_whitespace().filter(|word| *word == "let").count(), 4);
    assert!(source.code.contains("&'static str"));
    let strings: Vec<&str> = source.strings.iter().map(|(_, literal)| literal.as_str()).collect();
    assert_eq!(strings, ["\"// no\"", "r#\"\"#", "'\"'", "\"z\\\"\""]);
    assert!(source.comments.contains("yes \"x\"") && source.comments.contains("a /* b */ c"));
}

#[test]
fn functions_are_measured_with_their_signature() {
    let text = "fn short() {}\ntrait T { fn none(&self); }\nasync fn long<T>(\n  a: [u8; 3],\n) -> T\nwhere T: Fn(u8) -> u8 {\n  if a { b } else { \"}\" }\n}\ntype F = fn(u8);\n";
    let functions = Source::scan(text, false).functions();
    let found: Vec<(&str, usize, usize)> =
        functions.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
    assert_eq!(found, [("short", 1, 1), ("long", 3, 6)]);
}

#[test]
fn a_slice_uses_lower_ranks_only() {
    let cases = [
        ("server/src/devices/service.rs", "use crate::tenants::service::Directory;", ""),
        ("server/src/devices/service.rs", "use crate::devices::store;", ""),
        (
            "server/src/devices/service.rs",
            "use crate::alerts::service;",
            "`devices` (rank 3) uses `alerts` (rank 3)",
        ),
        ("server/src/tenants/mod.rs", "use crate::{platform::db, rules::{a, b}};", "uses `rules` (rank 4)"),
        (
            "server/src/platform/db/mod.rs",
            "fn f() { crate::tenants::x() }",
            "`platform` (rank 1) uses `tenants`",
        ),
        ("server/src/rules/service.rs", "use crate::devices::store;", "call `devices::service`"),
        ("server/src/rules/service.rs", "use crate::app::App;", "uses `app` (rank 6)"),
        ("server/src/app.rs", "use crate::{rules, gateway};", ""),
        ("server/src/novel/mod.rs", "", "slice `novel` has no rank"),
        ("server/src/devices/service.rs", "#[cfg(test)]\nmod tests { use crate::rules::x; }", ""),
    ];
    for (path, text, expect) in cases {
        check_one(path, text, expect);
    }
}

#[test]
fn the_files_of_a_slice_keep_to_their_layer() {
    let cases = [
        ("server/src/devices/api.rs", "fn f(db: &Db) {}", "`Db` in a slice's api"),
        ("server/src/devices/api.rs", "fn f(own: &DbStuff) { DevicesError::Db(_) } // Db", ""),
        ("server/src/page/api.rs", "fn f() { state.telemetry.db() }", "`db` in a slice's api"),
        ("server/src/page/api.rs", "use crate::platform::db::Scope;", "`Scope` in a slice's api"),
        (
            "server/src/page/api/mod.rs",
            "struct S { store: TelemetryStore }",
            "`TelemetryStore` in a slice's api",
        ),
        ("server/src/devices/store.rs", "use axum::Json;", "`axum` in a slice's store"),
        ("server/src/devices/model.rs", "use tokio::time;", "`tokio` in a slice's model"),
        ("server/src/rules/eval.rs", "use axum::Json;", "HTTP belongs to a slice's api"),
        ("agent/src/source/host.rs", "use rumqttc::Client;", "only the uplink speaks MQTT"),
        ("agent/src/uplink/mod.rs", "use rumqttc::Client;", ""),
        ("loadtest/src/lib.rs", "use muster_server::x;", "only end-to-end tests link both"),
        ("shared/journal/src/lib.rs", "use tokio::sync;", "free of async"),
    ];
    for (path, text, expect) in cases {
        check_one(path, text, expect);
    }
}

#[test]
fn banned_words_name_their_replacement() {
    let cases = [
        ("agent/src/a.rs", "fn f() { todo!() }", "`todo!` is banned"),
        ("agent/src/a.rs", "fn f() { SystemTime::now(); }", "the Clock"),
        ("agent/src/clock.rs", "fn f() { SystemTime::now(); }", ""),
        ("agent/src/a.rs", concat!("// FIX", "ME later"), "an issue"),
        ("agent/src/a.rs", "// todo! in a comment, \"dbg!\" in a string\nconst A: &str = \"dbg!\";", ""),
        ("agent/src/a.rs", concat!("const A: &str = \"mus", "ter/a/b\";"), "muster_wire::Topic"),
        ("shared/wire/src/a.rs", concat!("const A: &str = \"mus", "ter/a/b\";"), ""),
        ("agent/src/a.rs", concat!("#[cfg(test)] mod tests { const A: &str = \"mus", "ter/a/b\"; }"), ""),
        ("agent/src/a.rs", "#[test] #[ignore = \"slow\"] fn f() {}", "tests/skips.txt"),
        ("agent/src/a.rs", "fn f() { mpsc::unbounded_channel(); }", "named capacity"),
        ("agent/tests/a.rs", "fn f() { mpsc::unbounded_channel(); }", ""),
        ("docs/a.md", concat!("see /ho", "me/me/x"), "a path of one machine"),
        ("docs/a.md", concat!("see ~/a/ho", "me/x"), ""),
        ("docs/a.md", concat!("from crates", ".io"), "package registry"),
    ];
    for (path, text, expect) in cases {
        check_one(path, text, expect);
    }
}

#[test]
fn files_that_a_parent_declares_for_tests_are_test_code() {
    let parent = file("agent/src/queue/mod.rs", "//! Doc.\n#[cfg(test)]\nmod trials;\n");
    let child = file("agent/src/queue/trials.rs", concat!("const A: &str = \"mus", "ter/a\";"));
    let (problems, _) = check(&[parent, child], &Exceptions::default());
    assert_eq!(problems, []);
}

#[test]
fn lengths_have_a_limit_and_exceptions_shrink() {
    let long = format!("//! Doc.\nfn f() {{\n{}}}\n", "    g();\n".repeat(600));
    let found = problems("agent/src/a.rs", &long);
    assert!(found.iter().any(|problem| problem.contains("603 lines, at most 500")), "{found:?}");
    assert!(found.iter().any(|problem| problem.contains("fn f has 602 lines, at most 70")), "{found:?}");

    let allow = |lines: usize| Exceptions {
        file_lines: [("agent/src/a.rs".to_owned(), lines)].into(),
        function_lines: [("agent/src/a.rs::f".to_owned(), 602)].into(),
        ..Exceptions::default()
    };
    assert_eq!(check(&[file("agent/src/a.rs", &long)], &allow(603)).0, []);
    let (loose, _) = check(&[file("agent/src/a.rs", &long)], &allow(900));
    assert!(loose[0].message.contains("lower it"), "{loose:?}");
    let (gone, _) = check(&[], &allow(603));
    assert_eq!(gone.len(), 2, "{gone:?}");
}

#[test]
fn reasons_to_cross_tenants_are_listed() {
    let text = "//! Doc.\nfn f() { g(&Scope::System(\"login\")); match s { Scope::System(_) => {} } }";
    let listed = |reasons: &[&str]| {
        let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
        let exceptions = Exceptions { scope_system: ScopeSystem { reasons }, ..Exceptions::default() };
        check(&[file("server/src/tenants/service.rs", text)], &exceptions).0.len()
    };
    assert_eq!(listed(&["login"]), 0);
    assert_eq!(listed(&[]), 1);
    assert_eq!(listed(&["login", "outbox"]), 1);
}

#[test]
fn members_take_dependencies_from_the_workspace() {
    let text = "[package]\nname = \"x\"\n[dev-dependencies]\nrand = \"0.9\"\ntoml.workspace = true\n";
    assert_eq!(
        problems("agent/Cargo.toml", text),
        ["4: list it in [workspace.dependencies]: rand = \"0.9\""]
    );
}

#[test]
fn big_files_and_missing_docs_are_refused() {
    let big = File { path: "a.png".to_owned(), bytes: FILE_BYTES_MAX + 1, text: None };
    assert_eq!(check(&[big], &Exceptions::default()).0.len(), 1);
    assert!(problems("agent/src/a.rs", "fn f() {}")[0].contains("no module doc"));
}

#[test]
fn a_file_that_is_no_text_is_a_picture_or_a_model() {
    let of = |path: &str| {
        let file = File { path: path.to_owned(), bytes: 9, text: None };
        check(&[file], &Exceptions::default()).0.len()
    };
    assert_eq!((of("agent/models/a/model.onnx"), of("docs/a.png"), of("a.npy"), of("core")), (0, 0, 1, 1));
}
