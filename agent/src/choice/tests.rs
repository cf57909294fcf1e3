use super::*;
use muster_runtime::{EngineKind, MODEL_FILE};
use std::path::Path;

/// A copy of a demo bundle with `model.onnx` in a second file, and what more stands in `model.toml`.
struct Rig {
    dir: tempfile::TempDir,
    choices: Choices,
}

const SECOND: &str = "second.onnx";

impl Rig {
    fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/motion-anomaly");
        let onnx = std::fs::read(from.join(MODEL_FILE)).unwrap();
        for file in [MODEL_FILE, SECOND] {
            std::fs::write(dir.path().join(file), &onnx).unwrap();
        }
        let manifest = std::fs::read_to_string(from.join("model.toml")).unwrap();
        let manifest = alone(&manifest);
        std::fs::write(dir.path().join("model.toml"), format!("{manifest}\n{more}")).unwrap();
        let choices = Choices::open(&dir.path().join("data"));
        Self { dir, choices }
    }

    fn bundle(&self) -> Bundle {
        Bundle::open(self.dir.path()).unwrap()
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(file), bytes).unwrap();
    }

    /// Chooses with each candidate's microseconds by its place among all; also how many were timed.
    fn choose(&mut self, median_us: impl Fn(usize) -> u64) -> (Result<Choice, ChoiceError>, usize) {
        let bundle = self.bundle();
        let candidates = bundle.manifest().candidates();
        let mut timed = 0;
        let chosen = choose_with(&bundle, &mut self.choices, |model, input| {
            assert_eq!(input.len(), model.manifest().input.elements());
            timed += 1;
            let at = candidates.iter().position(|candidate| runs(model) == of(candidate)).unwrap();
            Ok(Duration::from_micros(median_us(at)))
        });
        (chosen, timed)
    }
}

/// A bundle's text without its alternatives, which stand before its golden samples.
fn alone(manifest: &str) -> String {
    let (head, rest) = manifest.split_once("[[alternative]]").unwrap();
    format!("{head}{}", &rest[rest.find("[[golden]]").unwrap()..])
}

fn alternative(file: &str) -> String {
    format!("[[alternative]]\nfile = {file:?}\nform = \"none\"\n")
}

fn runs(model: &Model) -> (&str, &str) {
    (model.engine().as_str(), &model.form().file)
}

fn of(candidate: &Candidate) -> (&str, &str) {
    (candidate.engine.as_str(), &candidate.form.file)
}

#[test]
fn the_fastest_is_chosen_and_the_next_start_loads_it_without_measuring() {
    let mut rig = Rig::new(&alternative(SECOND));
    let candidates = rig.bundle().manifest().candidates();
    assert_eq!(candidates.len(), 2 * EngineKind::ALL.len());
    for fastest in [candidates.len() - 1, 1] {
        rig.choices = Choices::open(&rig.dir.path().join("other"));
        let (chosen, timed) = rig.choose(|at| if at == fastest { 40 } else { 41 + at as u64 });
        let Choice { model, median, passed_over } = chosen.unwrap();
        assert_eq!((runs(&model), timed), (of(&candidates[fastest]), candidates.len()));
        assert_eq!((median, passed_over), (Some(Duration::from_micros(40)), vec![]));
        rig.choices.save();
        rig.choices = Choices::open(&rig.dir.path().join("other"));
        let (chosen, timed) = rig.choose(|_| 1);
        let Choice { model, median, .. } = chosen.unwrap();
        assert_eq!((runs(&model), timed), (of(&candidates[fastest]), 0));
        assert_eq!(median, Some(Duration::from_micros(40)));
        std::fs::remove_dir_all(rig.dir.path().join("other")).unwrap();
    }
}

#[test]
fn another_content_is_measured_again() {
    let mut rig = Rig::new(&alternative(SECOND));
    let all = rig.bundle().manifest().candidates().len();
    assert_eq!(rig.choose(|_| 5).1, all);
    assert_eq!(rig.choose(|_| 5).1, 0);
    let toml = rig.dir.path().join("model.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    rig.write("model.toml", format!("{text}# another word\n").as_bytes());
    assert_eq!(rig.choose(|_| 5).1, all);
    rig.write(SECOND, b"broken");
    assert_eq!(rig.choose(|_| 5).1, all - EngineKind::ALL.len());
    std::fs::remove_file(rig.dir.path().join(SECOND)).unwrap();
    assert_eq!(rig.choose(|_| 5).1, all - EngineKind::ALL.len());
    assert_eq!(rig.choose(|_| 5).1, 0);
}

#[test]
fn a_candidate_that_fails_is_passed_over_with_its_reason() {
    let tight = format!("{}tolerance = 0.0\n{}", alternative(SECOND), alternative("missing.onnx"));
    let mut rig = Rig::new(&(tight + &alternative("broken.onnx")));
    rig.write("broken.onnx", b"no graph");
    let (chosen, timed) = rig.choose(|_| 5);
    let Choice { model, passed_over, .. } = chosen.unwrap();
    let engines = EngineKind::ALL.len();
    assert_eq!((runs(&model).1, timed, passed_over.len()), (MODEL_FILE, engines, 3 * engines));
    for (file, reason) in [
        (SECOND, "failed its self-test"),
        ("missing.onnx", "cannot read"),
        ("broken.onnx", "decoded as ONNX"),
    ] {
        let told: Vec<_> =
            passed_over.iter().filter(|each| each.candidate.ends_with(&format!("({file})"))).collect();
        assert_eq!(told.len(), engines, "{file}");
        for each in told {
            assert!(each.reason.contains(reason), "{file}: {each}");
            assert!(each.to_string().starts_with(&each.candidate), "{each}");
        }
    }
}

#[test]
fn a_bundle_of_which_nothing_passes_is_refused_with_every_reason() {
    let mut rig = Rig::new(&alternative("broken.onnx"));
    for file in [MODEL_FILE, "broken.onnx"] {
        rig.write(file, b"no graph");
    }
    let (chosen, timed) = rig.choose(|_| 5);
    let Err(ChoiceError::NonePasses(passed_over)) = chosen else { panic!("{chosen:?}") };
    assert_eq!((passed_over.len(), timed), (2 * EngineKind::ALL.len(), 0));
    let text = ChoiceError::NonePasses(passed_over).to_string();
    for engine in EngineKind::ALL {
        for form in ["weight-int8-per-channel (model.onnx)", "none (broken.onnx)"] {
            let part = format!("{} with {form}: model `motion-anomaly`", engine.as_str());
            assert!(text.contains(&part), "{part} is not in {text}");
        }
    }
}

#[test]
fn a_kept_choice_that_no_longer_passes_is_replaced() {
    let mut rig = Rig::new(&alternative("broken.onnx"));
    rig.write("broken.onnx", b"no graph");
    let bundle = rig.bundle();
    let candidates = bundle.manifest().candidates();
    let broken = candidates.iter().find(|candidate| candidate.form.file == "broken.onnx").unwrap();
    let content = fingerprint::bundle(&bundle);
    rig.choices.keep(KeptChoice::new(content.clone(), broken, Duration::ZERO));
    let (chosen, timed) = rig.choose(|_| 5);
    assert_eq!((runs(&chosen.unwrap().model).1, timed), (MODEL_FILE, EngineKind::ALL.len()));
    assert!(rig.choices.find(&content).unwrap().is(&candidates[0]), "and the new one is kept");
    // One that this bundle does not have is as good as none.
    let mut gone = broken.clone();
    gone.form.file = "gone.onnx".into();
    rig.choices.keep(KeptChoice::new(content, &gone, Duration::ZERO));
    assert_eq!(rig.choose(|_| 5).1, EngineKind::ALL.len());
}

#[test]
fn with_one_candidate_nothing_is_measured() {
    let mut rig = Rig::new("");
    let engines = EngineKind::ALL.len();
    let (chosen, timed) = rig.choose(|_| 5);
    assert_eq!(timed, if engines == 1 { 0 } else { engines });
    assert_eq!(chosen.unwrap().median.is_some(), engines > 1);
}

#[test]
fn a_real_choice_is_made_within_its_bounds() {
    let mut rig = Rig::new(&alternative(SECOND));
    let chosen = choose(&rig.bundle(), &mut rig.choices).unwrap();
    assert!(chosen.median.is_some_and(|median| median > Duration::ZERO));
    assert_eq!(chosen.model.self_test().samples, 4);
}

#[test]
fn of_equally_fast_candidates_the_first_counts() {
    let rig = Rig::new(&format!("{}{}", alternative(SECOND), alternative("third.onnx")));
    let candidates = rig.bundle().manifest().candidates();
    let mut times = [Err("broken"), Ok(7), Ok(7)].into_iter().chain(std::iter::repeat(Ok(8)));
    let tried = fastest(&candidates, |candidate| {
        let time = times.next().unwrap().map_err(str::to_owned)?;
        Ok((candidate.form.file.clone(), Duration::from_micros(time)))
    });
    assert_eq!(tried.found, Some((1, SECOND.to_owned(), Duration::from_micros(7))));
    assert_eq!(
        tried.passed_over,
        [PassedOver { candidate: in_words(&candidates[0]), reason: "broken".into() }]
    );
    let none = fastest(&candidates, |_| Err::<((), _), _>("no".to_owned()));
    assert_eq!((none.found, none.passed_over.len()), (None, candidates.len()));
}
