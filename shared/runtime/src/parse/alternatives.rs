//! Checks of `[[alternative]]`: the model's other forms.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::check_inner_path;
use super::checks::{Checked, ensure};
use crate::forms::{ALTERNATIVES_MAX, Form, MODEL_FILE};

pub(super) fn check_alternatives(alternatives: &[Form]) -> Checked {
    let count = alternatives.len();
    ensure(count <= ALTERNATIVES_MAX, "alternative", format!("at most {ALTERNATIVES_MAX} forms"), count)?;
    let mut files = BTreeSet::from([components(MODEL_FILE)]);
    for (index, form) in alternatives.iter().enumerate() {
        let at = |field: &str| format!("alternative[{index}].{field}");
        check_inner_path(&at("file"), &form.file)?;
        let is_new = files.insert(components(&form.file));
        ensure(is_new, at("file"), "a file that no other form has", format!("{:?}", form.file))?;
        let accuracy = form.accuracy.unwrap_or(0.0);
        ensure((0.0..=1.0).contains(&accuracy), at("accuracy"), "0 to 1", accuracy)?;
        let tolerance = form.tolerance.unwrap_or(0.0);
        let is_bound = tolerance.is_finite() && tolerance >= 0.0;
        ensure(is_bound, at("tolerance"), "a number of at least 0", tolerance)?;
    }
    Ok(())
}

/// The path without what does not count: `a//b` is `a/b`.
fn components(file: &str) -> Vec<Component<'_>> {
    Path::new(file).components().collect()
}

#[cfg(test)]
mod tests {
    use super::super::parse_manifest;
    use super::super::tests::SERIES;
    use super::*;
    use crate::engine::EngineKind;
    use crate::forms::QuantizationForm;

    fn parse(alternatives: &str) -> Result<Vec<Form>, String> {
        let text = SERIES.replacen("[series]", &format!("{alternatives}\n[series]"), 1);
        parse_manifest(&text).map(|manifest| manifest.forms()).map_err(|error| error.to_string())
    }

    /// The text is refused with all of `parts`.
    #[track_caller]
    fn check(alternatives: &str, parts: &[&str]) {
        let error = parse(alternatives).expect_err(alternatives);
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn every_form_is_read_behind_the_first() {
        let text = "[[alternative]]\nfile = \"a.onnx\"\nform = \"qoperator-int8\"\naccuracy = 0.98\ntolerance = 0.02\n\
                    [[alternative]]\nfile = \"forms/b.onnx\"\nform = \"qdq-int8\"\n\
                    [[alternative]]\nfile = \"c.onnx\"\nform = \"weight-int8-per-channel\"";
        let form = |file: &str, quantization, accuracy, tolerance| Form {
            file: file.into(),
            quantization,
            accuracy,
            tolerance,
        };
        let expected = [
            form(MODEL_FILE, QuantizationForm::None, None, None),
            form("a.onnx", QuantizationForm::QoperatorInt8, Some(0.98), Some(0.02)),
            form("forms/b.onnx", QuantizationForm::QdqInt8, None, None),
            form("c.onnx", QuantizationForm::WeightInt8PerChannel, None, None),
        ];
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), expected[..1]);
        let manifest = parse_manifest(&SERIES.replacen("[series]", &format!("{text}\n[series]"), 1)).unwrap();
        let candidates = manifest.candidates();
        assert_eq!(candidates.len(), EngineKind::ALL.len() * expected.len());
        assert_eq!((candidates[0].engine, &candidates[0].form), (EngineKind::ALL[0], &expected[0]));
        for quantization in QuantizationForm::ALL {
            let name = quantization.as_str();
            let forms = parse(&format!("[[alternative]]\nfile = \"x\"\nform = {name:?}")).unwrap();
            assert_eq!(forms[1].quantization, quantization);
        }
    }

    #[test]
    fn an_alternative_names_the_field_that_is_wrong() {
        let with = |more: &str| format!("[[alternative]]\nfile = \"a.onnx\"\nform = \"none\"\n{more}");
        check("[[alternative]]\nform = \"none\"", &["missing field `file`"]);
        check("[[alternative]]\nfile = \"a.onnx\"", &["missing field `form`"]);
        check(&with("weights = 1"), &["unknown field `weights`", "tolerance"]);
        check("[[alternative]]\nfile = \"a\"\nform = \"int4\"", &["unknown variant `int4`", "qdq-int8"]);
        for path in ["", "/etc/passwd", "../a.onnx", "a/../../b.onnx"] {
            let text = format!("[[alternative]]\nfile = {path:?}\nform = \"none\"");
            check(&text, &["`alternative[0].file`", "inside the bundle", path]);
        }
        let again = with("") + &with("").replace("a.onnx", "model.onnx");
        check(&again, &["`alternative[1].file`", "no other form", "model.onnx"]);
        check(&(with("") + &with("")), &["`alternative[1].file`", "no other form"]);
        check(&with("accuracy = 98"), &["`alternative[0].accuracy`", "0 to 1", "98"]);
        check(&with("accuracy = nan"), &["`alternative[0].accuracy`", "0 to 1"]);
        check(&with("tolerance = -0.5"), &["`alternative[0].tolerance`", "at least 0", "-0.5"]);
        check(&with("tolerance = inf"), &["`alternative[0].tolerance`", "at least 0"]);
    }

    #[test]
    fn alternatives_are_bounded() {
        let some = |count: usize| -> String {
            let one = |at: usize| format!("[[alternative]]\nfile = \"{at}.onnx\"\nform = \"none\"\n");
            (0..count).map(one).collect()
        };
        assert_eq!(parse(&some(ALTERNATIVES_MAX)).unwrap().len(), 1 + ALTERNATIVES_MAX);
        check(&some(ALTERNATIVES_MAX + 1), &["`alternative`", "at most 8 forms", "found 9"]);
        let named =
            |bytes: usize| format!("[[alternative]]\nfile = {:?}\nform = \"none\"", "x".repeat(bytes));
        assert!(parse(&named(256)).is_ok());
        check(&named(257), &["`alternative[0].file`", "at most 256 bytes"]);
    }
}
