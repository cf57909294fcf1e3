use super::*;

fn bundle() -> Bundle {
    Bundle::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/motion-anomaly")).unwrap()
}

fn ask() -> Ask {
    Ask { bundle: PathBuf::new(), engine: None, form: None, runs: None, json: false }
}

#[test]
fn an_engine_or_form_that_is_not_there_is_told_with_those_that_are() {
    for &kind in EngineKind::ALL {
        assert_eq!(engine(kind.as_str()), Ok(kind));
        assert!(engine("onnxruntime").unwrap_err().contains(kind.as_str()));
    }
    for each in QuantizationForm::ALL {
        assert_eq!(form(each.as_str()), Ok(each));
        assert!(form("int4").unwrap_err().contains(each.as_str()));
    }
    let asked = Ask { form: Some(QuantizationForm::QdqInt8), ..ask() };
    let error = asked_for(&bundle(), &asked).unwrap_err().to_string();
    assert!(error.contains("(weight-int8-per-channel, qoperator-int8), found qdq-int8"), "{error}");
}

#[test]
fn only_what_is_asked_for_is_measured() {
    let bundle = bundle();
    assert_eq!(asked_for(&bundle, &ask()).unwrap(), bundle.manifest().candidates());
    let asked = Ask { engine: Some(EngineKind::ALL[0]), ..ask() };
    let one = asked_for(&bundle, &asked).unwrap();
    assert_eq!(one.len(), 2, "its two forms");
    assert!(one.iter().all(|candidate| candidate.engine == EngineKind::ALL[0]));
    let asked = Ask { form: Some(QuantizationForm::QoperatorInt8), ..asked };
    let one = asked_for(&bundle, &asked).unwrap();
    assert_eq!((one.len(), one[0].form.quantization), (1, QuantizationForm::QoperatorInt8));
    assert_eq!(bounds(None), RUNS_DEFAULT);
    assert_eq!(bounds(Some(7)).runs_max, 7);
    assert_eq!(bounds(Some(RUNS_MAX + 1)).runs_max, RUNS_MAX as usize);
}

#[test]
fn a_candidate_is_measured_whole() {
    let bundle = bundle();
    let candidate = bundle.manifest().candidates().remove(0);
    let row = measure::candidate(bundle, &candidate, bounds(Some(20)));
    assert_eq!((row.error.as_deref(), row.runs), (None, Some(20)));
    let figures = [
        row.load_ms,
        row.first_inference_cpu_ms,
        row.min_us,
        row.median_us,
        row.p95_us,
        row.rss_mib,
        row.difference_max,
    ];
    assert!(figures.iter().all(|figure| figure.is_some_and(f64::is_finite)), "{row:?}");
    assert!(row.min_us <= row.median_us && row.median_us <= row.p95_us);
    let keys = [
        "engine",
        "form",
        "file",
        "load_ms",
        "first_inference_cpu_ms",
        "runs",
        "min_us",
        "median_us",
        "p95_us",
    ];
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&row.json()).unwrap();
    let mut expected: Vec<&str> = keys.into_iter().chain(["rss_mib", "difference_max", "error"]).collect();
    expected.sort_unstable();
    let mut found: Vec<&str> = json.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!((found, &json["error"]), (expected, &serde_json::Value::Null));
    // Figures that decimals hold exactly.
    let (short, long) = (Some(0.5), Some(12.75));
    let row = Row { load_ms: long, first_inference_cpu_ms: long, min_us: short, median_us: short, ..row };
    let row = Row { p95_us: long, rss_mib: long, difference_max: short, ..row };
    assert_eq!(serde_json::from_str::<Row>(&row.json()).unwrap().json(), row.json());
}

#[test]
fn the_fastest_row_without_an_error_is_picked() {
    let mut candidates = bundle().manifest().candidates();
    candidates.truncate(1);
    for file in ["b.onnx", "c.onnx"] {
        let mut next = candidates[0].clone();
        next.form.file = file.into();
        candidates.push(next);
    }
    let row = |at: usize, median_us, error: Option<&str>| Row {
        median_us,
        error: error.map(str::to_owned),
        ..Row::of(&candidates[at])
    };
    let rows = [row(0, Some(9.5), None), row(1, Some(1.0), Some("differs")), row(2, Some(9.25), None)];
    let picked = pick(&candidates, &rows);
    assert_eq!(picked, Some(&candidates[2]));
    let json = chosen(picked);
    let engine = EngineKind::ALL[0].as_str();
    assert_eq!(
        json,
        serde_json::json!({"chosen": {"engine": engine, "form": "weight-int8-per-channel", "file": "c.onnx"}})
    );
    let rows = [row(0, None, Some("no")), row(1, None, Some("no")), row(2, None, Some("no"))];
    assert_eq!((pick(&candidates, &rows), chosen(None)["chosen"].is_null()), (None, true));
}
