use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const VARIABLES: [Variable; 5] = [
    Variable { name: "value", keys: Keys::Scalar },
    Variable { name: "device", keys: Keys::Scalar },
    Variable { name: "labels", keys: Keys::Any },
    Variable { name: "last", keys: Keys::Named },
    Variable { name: "event", keys: Keys::Fields(&["label", "score"]) },
];

struct Facts {
    value: CelDouble,
    labels: CelMap<'static>,
    last: CelMap<'static>,
    event: CelMap<'static>,
}

impl VariableResolver for Facts {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        Some(match variable {
            "value" => CowVal::Borrowed(&self.value),
            "device" => CowVal::owned(CelString::from("pump-7")),
            "labels" => CowVal::Borrowed(&self.labels),
            "last" => CowVal::Borrowed(&self.last),
            "event" => CowVal::Borrowed(&self.event),
            _ => return None,
        })
    }
}

fn text(value: &str) -> Box<dyn Val> {
    Box::new(CelString::from(value.to_owned()))
}

fn number(value: f64) -> Box<dyn Val> {
    Box::new(CelDouble::from(value))
}

fn map(entries: Vec<(&str, Box<dyn Val>)>) -> CelMap<'static> {
    let entries: HashMap<CelMapKey<'static>, Box<dyn Val>> =
        entries.into_iter().map(|(key, value)| (CelMapKey::from(key.to_owned()), value)).collect();
    CelMap::from(entries)
}

fn facts(value: f64) -> Facts {
    Facts {
        value: CelDouble::from(value),
        labels: map(vec![("site", text("north"))]),
        last: map(vec![("temp_c", number(21.5))]),
        event: map(vec![("label", text("anomaly")), ("score", number(0.9))]),
    }
}

fn answer(source: &str) -> Result<bool, EvalError> {
    compile(source, &VARIABLES).unwrap_or_else(|error| panic!("{source}: {error}")).eval_bool(&facts(30.0))
}

fn refused(source: &str) -> String {
    compile(source, &VARIABLES).err().unwrap_or_else(|| panic!("{source} was accepted")).to_string()
}

#[test]
fn conditions_answer() {
    for (source, expect) in [
        ("value > 20", true),
        ("value > 29.5 && value <= 30", true),
        ("value < 20 || device == 'pump-7'", true),
        ("labels.site == 'north' && labels['site'].startsWith('n')", true),
        ("has(labels.zone) ? labels.zone == 'x' : true", true),
        ("'zone' in labels", false),
        ("last.temp_c > 21 && last['temp_c'] < 22", true),
        ("has(last.missing) || 'temp_c' in last", true),
        ("event.label == 'anomaly' && event.score >= 0.5", true),
        ("event.label in ['anomaly', 'fault']", true),
        ("math.abs(value - 20.0) > 5.0", true),
        ("math.greatest(value, last.temp_c) == value", true),
        ("device.matches('^pump-[0-9]+$')", true),
        ("size(device) == 6 && device.size() == 6", true),
        ("double(string(value)) == 30.0", true),
    ] {
        assert_eq!(answer(source), Ok(expect), "{source}");
    }
}

#[test]
fn errors_are_told_apart() {
    assert_eq!(answer("last.nothing > 1"), Err(EvalError::MissingKey("nothing".into())));
    assert_eq!(answer("value"), Err(EvalError::NotBool("double".into())));
    let Err(EvalError::Failed(why)) = answer("value * 2 > 10.0") else { panic!("arithmetic mixes types") };
    assert!(why.contains("mul") && why.contains("write 2.0"), "{why}");
    let Err(EvalError::Failed(why)) = answer("value > 'x'") else { panic!("compares with text") };
    assert!(why.contains("'>'"), "{why}");
    assert!(matches!(answer("device.matches('(')"), Err(EvalError::Failed(_))));
}

#[test]
fn what_is_kept_of_an_error_is_bounded() {
    let missing = |chars: usize| answer(&format!("labels[\"{}\"] == 'x'", "é".repeat(chars)));
    let kept = Err(EvalError::MissingKey("é".repeat(MESSAGE_CHARS_MAX)));
    assert_eq!((missing(MESSAGE_CHARS_MAX), missing(MESSAGE_CHARS_MAX + 1)), (kept.clone(), kept));
    let why = refused(&format!("value > {}", "é".repeat(400)));
    let place = why.split_once(": ").unwrap().0.chars().count() + 2;
    assert!(why.chars().count() - place <= MESSAGE_CHARS_MAX, "{why}");
}

#[test]
fn refusals_name_the_place() {
    let refusals = [
        "",
        "value >",
        "value > 1 &&\n  valeu < 3",
        "\"é\" == device && nope > 1",
        "size(last) > 1",
        "last[device] > 1.0",
        "value.x > 1",
        "event.nope == 1",
        "event == event",
        "labels.all(k, k == 'x')",
        "[1].exists(x, x > 0)",
        "labels.map(k, k) == []",
        "f(value)",
        "value.f()",
        "math.ln(value) > 1.0",
        "timestamp('x') > 1",
        "Msg{a: 1} == 1",
        "type(value) == double",
        "value > 1 ; true",
        "optional.of(1) == 1",
        "labels.?x == 1",
    ]
    .map(|source| format!("{source:?} => {}", refused(source)))
    .join("\n");
    insta::assert_snapshot!(refusals);
}

#[test]
fn sizes_are_bounded() {
    let list = |n: usize| format!("value in [{}]", vec!["1"; n].join(","));
    assert!(compile(&list(LIST_ITEMS_MAX), &VARIABLES).is_ok());
    assert!(refused(&list(LIST_ITEMS_MAX + 1)).contains("65 items"));
    let deep = |n: usize| format!("{}true{}", "(".repeat(n), ")".repeat(n));
    assert!(compile(&deep(NESTING_MAX), &VARIABLES).is_ok());
    assert!(refused(&deep(NESTING_MAX + 1)).contains("nest"));
    // The comparison is the root, and of a sum of n the deepest is the n-th below it.
    let sum = |n: usize| format!("value == {}", vec!["1"; n].join("+"));
    assert!(compile(&sum(AST_DEPTH_MAX - 1), &VARIABLES).is_ok());
    assert!(refused(&sum(AST_DEPTH_MAX)).contains("at most 48 operations deep"));
    // A list of lists compared with an empty one: three, and each list with its items.
    let lists = |last: usize| {
        let list = |n: usize| format!("[{}]", vec!["1"; n].join(","));
        format!("[{},{}]==[]", vec![list(64); 6].join(","), list(last))
    };
    let last = AST_NODES_MAX - 3 - 6 * 65 - 1;
    assert!(compile(&lists(last), &VARIABLES).is_ok());
    assert!(refused(&lists(last + 1)).contains("at most 400 operations and values"));
    let spaces = |bytes: usize| format!("value > 1{}", " ".repeat(bytes - 9));
    assert!(compile(&spaces(SOURCE_BYTES_MAX), &VARIABLES).is_ok());
    assert!(refused(&spaces(SOURCE_BYTES_MAX + 1)).contains("at most 1024 bytes"));
    let keys = |n: usize| (0..n).map(|k| format!("last.m{k} > 1.0")).collect::<Vec<_>>().join("||");
    let expression = compile(&keys(KEYS_MAX), &VARIABLES).unwrap();
    assert_eq!(expression.keys().count(), KEYS_MAX);
    assert!(expression.uses("last") && !expression.uses("value"));
    assert!(refused(&keys(KEYS_MAX + 1)).contains("more than 16"));
}

#[test]
fn hostile_nesting_is_refused_in_bounded_time_and_stack() {
    let mut nested = "[1,2,3]".to_owned();
    for _ in 0..6 {
        nested = format!("[1,2,3].all(x, {nested}.all(y, true))");
    }
    refused(&nested);
    for unit in ["!", "-", "a.", "true?", "[", "((", "{1:", "a[", "f(", "has(", "x&&", "'", "\\", "a?b:"] {
        for count in [10, 200, SOURCE_BYTES_MAX / unit.len()] {
            if let Ok(expression) = compile(&unit.repeat(count), &VARIABLES) {
                let _ = expression.eval_bool(&facts(1.0));
            }
            let closed = format!("{}true", unit.repeat(count));
            if let Ok(expression) = compile(&closed, &VARIABLES) {
                let _ = expression.eval_bool(&facts(1.0));
            }
        }
    }
}

fn tokens() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "value",
        "device",
        "labels",
        "last",
        "event",
        ".score",
        ".label",
        "[\"a\"]",
        "[0]",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        " && ",
        " || ",
        "!",
        " == ",
        " < ",
        " > ",
        " in ",
        " + ",
        " - ",
        " * ",
        " / ",
        " % ",
        "-",
        "1",
        "0",
        "2.5",
        "-9223372036854775808",
        "9223372036854775807",
        "18446744073709551615u",
        "'x'",
        "\"é\"",
        "b'\\xff'",
        "true",
        "null",
        " ? ",
        " : ",
        ",",
        "size(",
        ".matches('a+')",
        ".contains(",
        "int(",
        "double(",
        "string(",
        "has(",
        "math.abs(",
        "math.greatest(",
        ".all(x, ",
        ".map(",
        "\n",
        "r'\\'",
    ]);
    prop::collection::vec(token, 1..24).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_tokens_never_panic(source in tokens(), value in any::<f64>()) {
        if let Ok(expression) = compile(&source, &VARIABLES) {
            prop_assert_ne!(expression.eval_bool(&facts(value)), Err(EvalError::Panicked), "{}", source);
        }
    }

    #[test]
    fn random_text_never_panics(source in ".{0,80}", value in any::<f64>()) {
        if let Ok(expression) = compile(&source, &VARIABLES) {
            prop_assert_ne!(expression.eval_bool(&facts(value)), Err(EvalError::Panicked), "{}", source);
        }
    }
}
