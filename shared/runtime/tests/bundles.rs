//! The committed demo bundles load and answer as promised; tampered ones are refused, with the difference.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::fs;
use std::path::Path;

use muster_runtime::{
    Bundle, BundleError, EngineKind, ImagePipeline, LABEL_ANOMALOUS, LABEL_NORMAL, LoadError,
    MANIFEST_BYTES_MAX, MODEL_BYTES_MAX, Model, PICTURE_BYTES_MAX, PipelineError, SeriesPipeline, TaskKind,
    Transition,
};
use support::{committed, copy_bundle};

const BUNDLE_BYTES_MAX: u64 = 1_000_000;

fn load(dir: &Path) -> Result<Model, LoadError> {
    Model::load(&Bundle::open(dir).unwrap())
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(
            |entry| {
                if entry.path().is_dir() {
                    bytes_below(&entry.path())
                } else {
                    entry.metadata().unwrap().len()
                }
            },
        )
        .sum()
}

#[test]
fn committed_bundles_pass_their_golden_samples_and_are_small() {
    for name in ["motion-anomaly", "meter-digits"] {
        let dir = committed(name);
        let model = load(&dir).unwrap();
        assert_eq!(model.self_test().samples, 4, "{name}");
        assert!(bytes_below(&dir) < BUNDLE_BYTES_MAX, "{name}");
        let quantization = model.manifest().quantization;
        let lost = quantization.float_accuracy.unwrap() - quantization.accuracy.unwrap();
        assert!(lost <= 0.01, "{name} lost {lost}");
    }
}

/// The rows of the demo's series with the activity of each.
fn motion_rows() -> Vec<(Vec<f64>, String)> {
    let text = fs::read_to_string(committed("motion-anomaly/demo/motion.csv")).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("time_s,accel_x,accel_y,accel_z,gyro_x,gyro_y,gyro_z,activity"));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let row = fields[1..7].iter().map(|field| field.parse().unwrap()).collect();
            (row, fields[7].to_owned())
        })
        .collect()
}

#[test]
fn motion_series_raises_in_sport_and_clears_after_it() {
    let mut pipeline = SeriesPipeline::new(load(&committed("motion-anomaly")).unwrap()).unwrap();
    let mut changes = Vec::new();
    let mut answers = 0;
    for (index, (row, activity)) in motion_rows().iter().enumerate() {
        let Some(inference) = pipeline.push(row).unwrap() else { continue };
        answers += 1;
        assert_eq!((inference.kind, inference.boxes.len(), inference.top.len()), (TaskKind::Anomaly, 0, 0));
        assert!(inference.latency_us > 0 && inference.score >= 0.0);
        if let Some(transition) = inference.transition {
            let label = if transition == Transition::Raised { LABEL_ANOMALOUS } else { LABEL_NORMAL };
            assert_eq!(inference.label, label);
            changes.push((index, transition, activity.clone()));
        }
    }
    assert_eq!(answers, (1000 - 20) / 5 + 1);
    let (raised, cleared) = (Transition::Raised, Transition::Cleared);
    let expected = [
        (214, raised, "running"),
        (329, cleared, "walking"),
        (519, raised, "badminton"),
        (614, cleared, "walking"),
    ];
    let expected = expected.map(|(index, transition, activity)| (index, transition, activity.to_owned()));
    assert_eq!(changes[..4], expected);
    assert_eq!(changes.len(), 6);
}

#[test]
fn reset_starts_over() {
    let mut pipeline = SeriesPipeline::new(load(&committed("motion-anomaly")).unwrap()).unwrap();
    let rows = motion_rows();
    let scores = |pipeline: &mut SeriesPipeline| -> Vec<f32> {
        rows[190..240]
            .iter()
            .filter_map(|(row, _)| pipeline.push(row).unwrap())
            .map(|inference| inference.score)
            .collect()
    };
    let first = scores(&mut pipeline);
    pipeline.reset();
    assert_eq!(scores(&mut pipeline), first);
}

#[test]
fn bad_rows_are_refused_and_not_taken() {
    let mut pipeline = SeriesPipeline::new(load(&committed("motion-anomaly")).unwrap()).unwrap();
    let short = pipeline.push(&[0.0; 5]).unwrap_err().to_string();
    assert_eq!(short, "the row has 5 values, expected 6");
    for value in [f64::NAN, f64::INFINITY] {
        let error = pipeline.push(&[0.0, 0.0, value, 0.0, 0.0, 0.0]).unwrap_err();
        assert!(
            matches!(error, PipelineError::NotFinite { ref column, .. } if column == "accel_z"),
            "{error}"
        );
    }
    let answers = (0..20).filter_map(|_| pipeline.push(&[0.0; 6]).unwrap()).count();
    assert_eq!(answers, 1, "refused rows are not in the window");
    // A value that leaves f32's range makes an error, not an answer.
    let error = (0..5).find_map(|_| pipeline.push(&[1e300; 6]).err()).unwrap();
    assert!(matches!(error, PipelineError::Run(_)), "{error}");
}

#[test]
fn digit_pictures_are_read() {
    let mut pipeline = ImagePipeline::new(load(&committed("meter-digits")).unwrap()).unwrap();
    let mut right = 0;
    let mut count = 0;
    for entry in fs::read_dir(committed("meter-digits/demo")).unwrap() {
        let path = entry.unwrap().path();
        let inference = pipeline.score_file(&path).unwrap();
        assert_eq!((inference.kind, inference.top.len()), (TaskKind::Classification, 3));
        assert_eq!((&inference.label, inference.score), (&inference.top[0].0, inference.top[0].1));
        count += 1;
        right += usize::from(
            path.file_stem().unwrap().to_str().unwrap().ends_with(&format!("-{}", inference.label)),
        );
    }
    assert_eq!((count, right), (40, 39));
}

#[test]
fn pixels_and_file_give_the_same_answer() {
    let mut pipeline = ImagePipeline::new(load(&committed("meter-digits")).unwrap()).unwrap();
    let path = committed("meter-digits/demo/00-digit-3.png");
    let pixels = image::open(&path).unwrap().into_rgb8();
    let (from_file, from_pixels) =
        (pipeline.score_file(&path).unwrap(), pipeline.score_rgb(64, 64, pixels.as_raw()).unwrap());
    assert_eq!((from_file.top, from_file.label.as_str()), (from_pixels.top, "3"));
    assert!(pipeline.score_rgb(64, 64, &pixels.as_raw()[1..]).is_err());
    assert!(pipeline.score_encoded(b"no picture").is_err());
    let missing = pipeline.score_file(Path::new("/nowhere/a.png")).unwrap_err();
    assert!(matches!(missing, PipelineError::File { .. }), "{missing}");
}

#[test]
fn pipelines_refuse_a_model_of_the_other_input() {
    let (motion, digits) =
        (load(&committed("motion-anomaly")).unwrap(), load(&committed("meter-digits")).unwrap());
    let error = SeriesPipeline::new(digits).unwrap_err().to_string();
    assert_eq!(error, "model `meter-digits` takes pictures, expected sensor rows");
    assert_eq!(
        ImagePipeline::new(motion).unwrap_err().to_string(),
        "model `motion-anomaly` takes sensor rows, expected pictures"
    );
}

#[test]
fn one_plan_serves_several_threads() {
    let model = load(&committed("meter-digits")).unwrap();
    let path = committed("meter-digits/demo/00-digit-3.png");
    let expected = ImagePipeline::new(model.clone()).unwrap().score_file(&path).unwrap().top;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut pipeline = ImagePipeline::new(model.clone()).unwrap();
            let (path, expected) = (&path, &expected);
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(&pipeline.score_file(path).unwrap().top, expected);
                }
            });
        }
    });
}

/// Where the first int8 weight of more than 1,024 bytes begins: after its name (`.._q`), tag 9 and a length of two bytes.
fn weights_start(onnx: &[u8]) -> usize {
    let length = |at: usize| (usize::from(onnx[at]) & 0x7f) | usize::from(onnx[at + 1]) << 7;
    let tag = b"_q\x4a";
    let found = (0..onnx.len() - 5)
        .find(|&at| onnx[at..].starts_with(tag) && onnx[at + 3] >= 0x80 && length(at + 3) > 1024);
    found.unwrap() + 5
}

#[test]
fn tampered_weights_are_refused_with_the_difference() {
    for name in ["motion-anomaly", "meter-digits"] {
        let dir = tempfile::tempdir().unwrap();
        copy_bundle(&committed(name), dir.path());
        let file = dir.path().join("model.onnx");
        let mut onnx = fs::read(&file).unwrap();
        let start = weights_start(&onnx);
        onnx[start..start + 256].fill(0x7f);
        fs::write(&file, onnx).unwrap();
        let error = load(dir.path()).unwrap_err();
        let text = error.to_string();
        let LoadError::SelfTest { difference, tolerance, .. } = error else { panic!("{text}") };
        assert!(difference > tolerance);
        for part in
            [name, "failed its self-test: golden sample `", "output[", &format!("difference {difference}")]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}

#[test]
fn changed_promise_is_refused_with_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    copy_bundle(&committed("meter-digits"), dir.path());
    let file = dir.path().join("model.toml");
    let text = fs::read_to_string(&file).unwrap();
    let start = text.find("expected = [").unwrap() + "expected = [".len();
    let end = start + text[start..].find(',').unwrap();
    fs::write(&file, format!("{}0.5{}", &text[..start], &text[end..])).unwrap();
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("golden sample `digit 4`, output[0] is 0.0001") && error.contains("expected 0.5"),
        "{error}"
    );
    assert!(error.contains("1 of 10 elements differ"), "{error}");
}

#[test]
fn other_window_or_picture_scaling_is_refused_by_the_golden_samples() {
    for (name, from, to) in [
        ("motion-anomaly", "mean = [0.31403,", "mean = [0.51403,"),
        ("meter-digits", "scale = 0.004166666666666667", "scale = 0.00392156862745098"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy_bundle(&committed(name), dir.path());
        let file = dir.path().join("model.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{name}");
        fs::write(&file, text.replace(from, to)).unwrap();
        let error = load(dir.path()).unwrap_err();
        assert!(matches!(error, LoadError::SelfTest { .. }), "{error}");
    }
}

#[test]
fn any_damaged_byte_is_an_error_or_the_same_answers() {
    let original = fs::read(committed("meter-digits/model.onnx")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    copy_bundle(&committed("meter-digits"), dir.path());
    let file = dir.path().join("model.onnx");
    let mut refused = 0;
    // A prime step meets headers, names, shapes and weights alike.
    for at in (0..original.len()).step_by(127) {
        let mut damaged = original.clone();
        damaged[at] ^= 0x55;
        fs::write(&file, damaged).unwrap();
        refused += usize::from(load(dir.path()).is_err());
    }
    assert!(refused > 20, "only {refused} were refused");
}

#[test]
fn every_prefix_of_a_model_is_refused() {
    let original = fs::read(committed("meter-digits/model.onnx")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    copy_bundle(&committed("meter-digits"), dir.path());
    for length in (0..original.len()).step_by(307) {
        fs::write(dir.path().join("model.onnx"), &original[..length]).unwrap();
        assert!(load(dir.path()).is_err(), "{length} bytes were taken");
    }
}

#[test]
fn shape_and_names_must_be_those_of_the_graph() {
    for (from, to, parts) in [
        ("name = \"x\"", "name = \"picture\"", ["`input.name`", "[\"x\"]"]),
        ("name = \"probabilities\"", "name = \"logit\"", ["`output.name`", "[\"probabilities\"]"]),
        ("shape = [1, 1, 8, 8]", "shape = [1, 64]", ["`input.shape`", "[1, 1, 8, 8]"]),
        ("shape = [1, 10]", "shape = [10]", ["`output.shape`", "10"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy_bundle(&committed("meter-digits"), dir.path());
        let file = dir.path().join("model.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from));
        fs::write(&file, text.replace(from, to)).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// A copy of the digits' bundle with another alternative, of which more is given, than its own.
fn with_alternative(more: &str) -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    copy_bundle(&committed("meter-digits"), dir.path());
    fs::copy(dir.path().join("model.onnx"), dir.path().join("other.onnx")).unwrap();
    let file = dir.path().join("model.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (head, rest) = text.split_once("[[alternative]]").unwrap();
    let text = format!("{head}{}", &rest[rest.find("[[golden]]").unwrap()..]);
    fs::write(&file, format!("{text}\n[[alternative]]\nfile = \"other.onnx\"\nform = \"none\"\n{more}"))
        .unwrap();
    let bundle = Bundle::open(dir.path()).unwrap();
    (dir, bundle)
}

#[test]
fn an_alternative_is_loaded_with_its_own_tolerance() {
    for (more, passes) in [("", true), ("tolerance = 0.5", true), ("tolerance = 0.0", false)] {
        let (_dir, bundle) = with_alternative(more);
        let candidates = bundle.manifest().candidates();
        assert_eq!(candidates.len(), 2 * EngineKind::ALL.len());
        for candidate in &candidates {
            let is_first = candidate.form.file == "model.onnx";
            match Model::load_candidate(&bundle, candidate) {
                Ok(model) => {
                    assert!(passes || is_first, "{candidate:?}");
                    assert_eq!((model.engine(), model.form()), (candidate.engine, &candidate.form));
                }
                Err(LoadError::SelfTest { tolerance, .. }) => {
                    assert!(!passes && !is_first && tolerance == 0.0, "{candidate:?}");
                }
                Err(error) => panic!("{candidate:?}: {error}"),
            }
        }
    }
    // A tolerance can be wider than the golden samples' own, too.
    let (dir, _) = with_alternative("tolerance = 2.0");
    let file = dir.path().join("model.toml");
    let text = fs::read_to_string(&file).unwrap();
    let start = text.find("expected = [").unwrap() + "expected = [".len();
    let end = start + text[start..].find(',').unwrap();
    fs::write(&file, format!("{}0.5{}", &text[..start], &text[end..])).unwrap();
    let bundle = Bundle::open(dir.path()).unwrap();
    for candidate in bundle.manifest().candidates() {
        let passes = Model::load_candidate(&bundle, &candidate).is_ok();
        assert_eq!(passes, candidate.form.file == "other.onnx", "{candidate:?}");
    }
}

#[test]
fn an_alternatives_file_is_read_when_it_is_loaded_and_not_before() {
    let (dir, bundle) = with_alternative("");
    let candidate =
        bundle.manifest().candidates().into_iter().find(|each| each.form.file == "other.onnx").unwrap();
    let file = dir.path().join("other.onnx");
    pad(&file, MODEL_BYTES_MAX + 1);
    let bundle = Bundle::open(dir.path()).unwrap();
    let error = Model::load_candidate(&bundle, &candidate).unwrap_err();
    let LoadError::File { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().ends_with("other.onnx: expected at most 268435456 bytes"), "{source}");
    pad(&file, MODEL_BYTES_MAX);
    assert_eq!(bundle.form_bytes(&candidate.form).unwrap().len() as u64, MODEL_BYTES_MAX);
    fs::remove_file(&file).unwrap();
    let error = Model::load_candidate(&bundle, &candidate).unwrap_err();
    let LoadError::File { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().ends_with("other.onnx"), "{source}");
    fs::write(&file, b"no graph").unwrap();
    let error = Model::load_candidate(&bundle, &candidate).unwrap_err().to_string();
    assert!(error.starts_with("model `meter-digits`, other.onnx: the file cannot be decoded"), "{error}");
}

/// Bytes behind a file's end that no decoder looks at.
fn pad(file: &Path, bytes: u64) {
    fs::File::options().append(true).open(file).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_picture_file_of_the_largest_size_is_scored_and_a_larger_one_is_not_read() {
    let mut pipeline = ImagePipeline::new(load(&committed("meter-digits")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.png");
    fs::copy(committed("meter-digits/demo/00-digit-3.png"), &file).unwrap();
    pad(&file, PICTURE_BYTES_MAX);
    assert_eq!(pipeline.score_file(&file).unwrap().label, "3");
    pad(&file, PICTURE_BYTES_MAX + 1);
    let error = pipeline.score_file(&file).unwrap_err();
    let PipelineError::File { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().ends_with("a.png: expected at most 33554432 bytes"), "{source}");
}

#[test]
fn a_golden_file_of_the_largest_size_is_taken_and_a_larger_one_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    copy_bundle(&committed("meter-digits"), dir.path());
    let file = dir.path().join("golden/digit-0-42.png");
    pad(&file, 64 << 20);
    assert_eq!(load(dir.path()).unwrap().self_test().samples, 4);
    pad(&file, (64 << 20) + 1);
    let error = load(dir.path()).unwrap_err();
    let LoadError::GoldenFile { sample, source, .. } = error else { panic!("{error}") };
    assert_eq!(sample, "digit 0");
    assert!(source.to_string().ends_with("digit-0-42.png: expected at most 67108864 bytes"), "{source}");
}

#[test]
fn a_manifest_of_the_largest_size_is_taken_and_a_larger_one_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    copy_bundle(&committed("meter-digits"), dir.path());
    let file = dir.path().join("model.toml");
    let mut text = fs::read_to_string(&file).unwrap() + "\n#";
    let missing = usize::try_from(MANIFEST_BYTES_MAX).unwrap() - text.len();
    text.push_str(&"x".repeat(missing));
    fs::write(&file, &text).unwrap();
    Bundle::open(dir.path()).unwrap();
    fs::write(&file, text + "x").unwrap();
    let error = Bundle::open(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("model.toml: expected at most 4194304 bytes"), "{error}");
}

#[test]
fn missing_and_oversized_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Bundle::open(dir.path()).unwrap_err();
    assert!(missing.to_string().contains("model.toml"), "{missing}");
    copy_bundle(&committed("meter-digits"), dir.path());
    fs::remove_file(dir.path().join("golden/digit-0-42.png")).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(matches!(error, LoadError::GoldenFile { ref sample, .. } if sample == "digit 0"), "{error}");
    fs::remove_file(dir.path().join("model.onnx")).unwrap();
    assert!(Bundle::open(dir.path()).unwrap_err().to_string().contains("model.onnx"));
    let large = fs::File::create(dir.path().join("model.onnx")).unwrap();
    large.set_len(MODEL_BYTES_MAX + 1).unwrap();
    let error = Bundle::open(dir.path()).unwrap_err();
    assert!(matches!(error, BundleError::TooLarge { .. }), "{error}");
    assert!(error.to_string().ends_with("model.onnx: expected at most 268435456 bytes"), "{error}");
    fs::write(dir.path().join("model.toml"), [0xff, 0xfe]).unwrap();
    assert!(matches!(Bundle::open(dir.path()), Err(BundleError::NotText { .. })));
    fs::write(dir.path().join("model.toml"), "format = 1\nname = 3").unwrap();
    let text = Bundle::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("model.toml") && text.contains("line 2") && text.contains("string"), "{text}");
}
