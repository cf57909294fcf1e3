//! SenML packs: the examples of RFC 8428 and the ways a pack can be wrong.
#![allow(clippy::unwrap_used, reason = "a test")]

use muster_wire::Value;
use muster_wire::senml::{Moment, Resolved, SENML_BYTES_MAX, decode};
use proptest::prelude::*;

fn refused(pack: &str) -> String {
    decode(pack.as_bytes()).unwrap_err().to_string()
}

fn reading(metric: &str, value: Value, unit: Option<&str>, moment: Moment) -> Resolved {
    Resolved { metric: metric.into(), value, unit: unit.map(Into::into), moment }
}

#[test]
fn one_value_is_enough() {
    let pack = br#"[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]"#;
    let expect =
        reading("urn:dev:ow:10e2073a01080063", Value::Number(23.1), Some("Cel"), Moment::Relative(0));
    assert_eq!(decode(pack).unwrap(), [expect]);
}

#[test]
fn base_fields_hold_until_replaced() {
    let pack = br#"[{"bn":"dev:","bt":1.276020076001e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
        {"n":"current","t":-5,"v":1.2},{"bv":10,"n":"current","t":-4,"v":1.3},{"bn":"b:","bt":0,"n":"on","t":-2,"vb":true},
        {"n":"note","vs":"ok","bu":"x"},{"n":"energy","bs":100,"s":5}]"#;
    let absolute = |us: i64| Moment::Absolute(1_276_020_076_001_000 + us);
    let expect = [
        reading("dev:voltage", Value::Number(120.1), Some("V"), absolute(0)),
        reading("dev:current", Value::Number(1.2), Some("A"), absolute(-5_000_000)),
        reading("dev:current", Value::Number(11.3), Some("A"), absolute(-4_000_000)),
        reading("b:on", Value::Bool(true), Some("A"), Moment::Relative(-2_000_000)),
        reading("b:note", Value::Text("ok".into()), Some("x"), Moment::Relative(0)),
        reading("b:energy:sum", Value::Number(105.0), Some("x"), Moment::Relative(0)),
    ];
    assert_eq!(decode(pack).unwrap(), expect);
}

#[test]
fn the_cbor_example_of_the_rfc_decodes() {
    // RFC 8428, 6, cut to its first two records.
    let pack = "82a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b00106223614120050067\
        766f6c7461676501615602fb405e066666666666a3006763757272656e74062402fb3ff3333333333333";
    let at = |us: i64| Moment::Absolute(1_276_020_076_001_000 + us);
    let expect = [
        reading("urn:dev:ow:10e2073a0108006:voltage", Value::Number(120.1), Some("V"), at(0)),
        reading("urn:dev:ow:10e2073a0108006:current", Value::Number(1.2), Some("A"), at(-5_000_000)),
    ];
    assert_eq!(decode(&hex::decode(pack).unwrap()).unwrap(), expect);
}

#[test]
fn indefinite_cbor_and_unknown_labels_are_read() {
    // [_ {_ 0: "a", 2: 1.5 (f16), 99: [1, {}], "x": null}]
    let pack = hex::decode("9fbf00616102f93e0018638201a06178f6ffff").unwrap();
    assert_eq!(decode(&pack).unwrap(), [reading("a", Value::Number(1.5), None, Moment::Relative(0))]);
}

#[test]
fn a_wrong_pack_is_refused_with_its_record() {
    let long = "x".repeat(65);
    for (pack, expect) in [
        (r"[]".to_owned(), "1 to 1000 records"),
        (r#"[{"bn":"a"}]"#.into(), "1 to 1000 values"),
        (r#"[{"n":"a","v":1,"vb":true}]"#.into(), "only value"),
        (r#"[{"n":"a","v":"1"}]"#.into(), "[0].v must be a number"),
        (r#"[{"n":"a","v":1},{"v":2,"n":"a b"}]"#.into(), "[1].n must be 1 to 64"),
        (format!(r#"[{{"n":"{long}","v":1}}]"#), "must be 1 to 64"),
        (r#"[{"n":"a","v":1,"must_":0}]"#.into(), "must be understood"),
        (r#"[{"n":"a","bver":11,"v":1}]"#.into(), "bver must be at most 10"),
        (r#"[{"n":"a","vd":"aGk"}]"#.into(), "vd is not stored"),
        (r#"[{"n":"a","v":1e999}]"#.into(), "number out of range"),
        (r#"[{"n":"a","v":1,"t":1e300}]"#.into(), "t is out of range"),
        (r#"[{"n":"a","v":1}"#.into(), "EOF"),
        (r#"{"n":"a","v":1}"#.into(), "malformed"),
        (format!("[{}]", vec![r#"{"n":"a","v":1}"#; 1001].join(",")), "1 to 1000"),
        (format!(r#"[{{"n":"a","vs":"{}"}}]"#, "x".repeat(SENML_BYTES_MAX)), "more than 65536"),
    ] {
        let error = refused(&pack);
        assert!(error.contains(expect), "{}: {error}", &pack[..pack.len().min(60)]);
    }
    let infinite = hex::decode("81a200616102f97c00").unwrap();
    assert!(decode(&infinite).unwrap_err().to_string().contains("finite"));
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn any_object_never_panics(text in r#"\[(\{"(bn|bt|bv|n|v|vs|vb|t|s|u)":(-?[0-9]{1,20}(e[0-9]{1,3})?|"[a-z é]{0,9}"|true|null)\},?){0,4}\]"#) {
        let _ = decode(text.as_bytes());
    }
}
