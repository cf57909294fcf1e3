//! Photos and sound from their sources to events, by third-party models, against what ONNX Runtime's answers come to.
//!
//! The models and photos are not part of the project: they lie in `shared` beside the workspace, or below
//! `MUSTER_SHARED`. Whether the engines give a model's own outputs is the runtime's conformance test; here the golden
//! sample lets everything pass.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

mod support;

use muster_agent::choice::Choices;
use muster_agent::clock::{AgentClock, ManualClock};
use muster_agent::config::{self, SourceConfig};
use muster_agent::memory::LowMemory;
use muster_agent::metrics::Metrics;
use muster_agent::pipeline::{self, Feed, ModelError, Pipeline};
use muster_agent::queue::{Body, Bounds, Queue, QueueClass};
use muster_agent::source::{self, Content, Sample, SourceContext, sample_channel};
use muster_agent::supervisor::{Exit, chain, stop_pair};
use muster_wire::{BoundingBox, Event, EventKind, Telemetry, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder with third-party models; None is noted for `cargo xtask test`, and the test skipped.
fn shared(test: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MUSTER_SHARED") {
        return Some(path.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let found = workspace
        .ancestors()
        .map(|dir| dir.join("shared"))
        .find(|dir| dir.join("models/fdet_wq8.onnx").is_file());
    if found.is_none() {
        support::skip(test, "no reference models; set MUSTER_SHARED to the folder that holds `models`");
    }
    found
}

/// Writes a bundle with a golden sample of zeros that any answer passes.
fn bundle(dir: &Path, head: &str, onnx: &Path, elements: [usize; 2]) {
    std::fs::copy(onnx, dir.join("model.onnx")).unwrap();
    for (name, count) in ["x.f32", "y.f32"].iter().zip(elements) {
        std::fs::write(dir.join(name), vec![0; 4 * count]).unwrap();
    }
    let golden =
        "[[golden]]\nname = \"any\"\ntensor = \"x.f32\"\nexpected_file = \"y.f32\"\ntolerance = 1e6\n";
    let common = "format = 1\nversion = \"1\"\nlicence = \"see shared/models\"\n";
    std::fs::write(dir.join("model.toml"), format!("{common}{head}{golden}")).unwrap();
}

struct Bench {
    _dir: tempfile::TempDir,
    queue: Queue,
    pipeline: Pipeline,
}

fn load(model: &Path, feed: Feed, more: &str) -> Result<Bench, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds::from_config(&config::Queue::default());
    let queue = Queue::open_dir(dir.path(), bounds, Arc::new(AgentClock::default())).unwrap();
    let model = model.display().to_string();
    let config: config::Pipeline =
        toml::from_str(&format!("name = \"p\"\nsource = \"s\"\nmodel = {model:?}\n{more}")).unwrap();
    let scorer = pipeline::load(&config, feed, &mut Choices::open(dir.path()))?;
    let (_sender, stop) = stop_pair();
    let pipeline = Pipeline::new(config, scorer, queue.clone(), Metrics::new(), Arc::default(), stop);
    Ok(Bench { _dir: dir, queue, pipeline })
}

impl Bench {
    /// Runs a source to its end.
    async fn feed(&mut self, source: &str) {
        let config: SourceConfig = toml::from_str(source).unwrap();
        let (_sender, stop) = stop_pair();
        let (sink, mut samples) = sample_channel();
        let clock = Arc::new(ManualClock::at(10_000_000));
        let context = SourceContext { clock, metrics: Metrics::new(), stop, sinks: vec![sink] };
        let task = tokio::spawn(source::run(config, context));
        while let Some(sample) = samples.recv().await {
            self.pipeline.take(sample).unwrap();
        }
        assert!(matches!(task.await.unwrap(), Exit::Done));
    }

    /// Time and body of each record.
    fn stored<T>(&self, class: QueueClass, decode: impl Fn(&[u8]) -> T) -> Vec<(i64, T)> {
        let (next, mut found) = (self.queue.next_seq(class), Vec::new());
        assert!(next > 1, "nothing was accepted");
        self.queue.wait_accepted(class, next - 1).unwrap();
        let mut reader = self.queue.reader(class, 1).unwrap();
        while found.len() as u64 + 1 < next {
            let batch = reader.next_batch(1 << 20, |record| {
                let body = Body::read(record.payload).unwrap();
                found.push((body.measured_at_us, decode(body.bytes)));
            });
            batch.unwrap();
        }
        found
    }

    fn events(&self) -> Vec<(i64, Event)> {
        self.stored(QueueClass::Event, |body| Event::decode(body).unwrap())
    }
}

/// COCO's 80 classes in the model's order.
const LABELS: &str = "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign \
    parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase \
    frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle \
    wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch \
    potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink \
    refrigerator book clock vase scissors teddy_bear hair_drier toothbrush";

fn detector(dir: &Path, shared: &Path, iou_max: f32) {
    let labels: Vec<&str> = LABELS.split(' ').collect();
    let head = format!(
        "name = \"fastestdet\"\ntask = \"detection\"\n\
         [input]\nname = \"input.1\"\nshape = [1, 3, 352, 352]\ntype = \"f32\"\n\
         [output]\nname = \"758\"\nshape = [1, 85, 22, 22]\n[quantization]\nform = \"weight-int8-per-channel\"\n\
         [image]\nwidth = 352\nheight = 352\nchannels = \"bgr\"\nlayout = \"nchw\"\nresize = \"bilinear\"\n\
         scale = 0.00392156862745098\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n\
         [detection]\ndecode = \"grid\"\nlabels = {labels:?}\nscore_min = 0.5\niou_max = {iou_max:?}\nboxes_max = 100\n"
    );
    bundle(dir, &head, &shared.join("models/fdet_wq8.onnx"), [3 * 352 * 352, 85 * 22 * 22]);
}

/// Label, score, left, top, width and height: ONNX Runtime 1.32.0 without its optimiser on the same model and photos,
/// resized in f64, decoded as FastestDet does (objectness^0.6 x class^0.4; tanh and logistic boxes), best of each class
/// where boxes overlap by more than 0.45.
type Expected = (&'static str, [f32; 5]);
const CARS: [Expected; 3] = [
    ("car", [0.9228, 0.2007, 0.5794, 0.2929, 0.1960]),
    ("car", [0.8487, 0.8267, 0.5632, 0.1733, 0.1890]),
    ("car", [0.7751, 0.9166, 0.7257, 0.0834, 0.1327]),
];
const CAT: [Expected; 4] = [
    ("cat", [0.7248, 0.0862, 0.1344, 0.6590, 0.8656]),
    ("cat", [0.5295, 0.3596, 0.1047, 0.6404, 0.8953]),
    ("bed", [0.5199, 0.0657, 0.0804, 0.9343, 0.9196]),
    ("couch", [0.5078, 0.0629, 0.1227, 0.9371, 0.8773]),
];
const HOPPER: [Expected; 6] = [
    ("person", [0.8799, 0.0306, 0.0240, 0.9694, 0.9714]),
    ("tie", [0.8503, 0.4511, 0.7119, 0.1086, 0.1735]),
    ("clock", [0.8014, 0.3880, 0.0444, 0.2675, 0.1193]),
    ("tie", [0.8010, 0.4486, 0.9487, 0.0578, 0.0513]),
    ("person", [0.5311, 0.1263, 0.0000, 0.1502, 0.3689]),
    ("person", [0.5263, 0.0000, 0.0968, 0.1365, 0.6168]),
];
/// Largest difference of a score or a side, as a part of the picture.
const BOX_TOLERANCE: f32 = 0.001;

fn assert_boxes(found: &[BoundingBox], expected: &[Expected], photo: &str) {
    assert_eq!(found.len(), expected.len(), "{photo}: {found:?}");
    for (found, (label, numbers)) in found.iter().zip(expected) {
        assert_eq!(found.label, *label, "{photo}");
        let sides = [found.score, found.x, found.y, found.width, found.height];
        let near =
            sides.iter().zip(numbers).all(|(found, expected)| (found - expected).abs() <= BOX_TOLERANCE);
        assert!(near, "{photo}: {found:?}, expected {numbers:?}");
    }
}

#[tokio::test]
async fn photos_become_events_with_the_boxes_of_what_is_in_them() {
    let Some(shared) = shared("photos_become_events_with_the_boxes_of_what_is_in_them") else { return };
    let dir = tempfile::tempdir().unwrap();
    detector(dir.path(), &shared, 0.45);
    let grey = dir.path().join("grey.png");
    image::RgbImage::from_pixel(64, 64, image::Rgb([128; 3])).save(&grey).unwrap();
    let photos = ["0001.bmp", "cat.bmp", "grace_hopper.bmp"];
    let mut files: Vec<_> = photos.iter().map(|photo| shared.join("data/photos").join(photo)).collect();
    files.push(grey);
    let source = format!("kind = \"images\"\nname = \"s\"\ninterval_ms = 1\nfiles = {files:?}");
    let mut bench = load(dir.path(), Feed::Pictures, "").unwrap();
    bench.feed(&source).await;
    let events = bench.events();
    assert_eq!(events.len(), 4);
    let expected: [&[Expected]; 3] = [&CARS, &CAT, &HOPPER];
    for ((photo, expected), (_, event)) in photos.iter().zip(expected).zip(&events) {
        assert_eq!((event.kind, event.subject.as_deref()), (EventKind::Detection, Some(*photo)));
        assert_boxes(&event.boxes, expected, photo);
        assert_eq!((event.label.as_str(), event.score), (expected[0].0, f64::from(event.boxes[0].score)));
    }
    let (_, nothing) = &events[3];
    assert_eq!((nothing.label.as_str(), nothing.score, nothing.boxes.len()), ("nothing", 0.0, 0));
    assert_eq!(nothing.subject.as_deref(), Some("grey.png"), "a picture without objects is an event too");
}

#[tokio::test]
async fn boxes_that_overlap_more_than_iou_max_are_one() {
    let Some(shared) = shared("boxes_that_overlap_more_than_iou_max_are_one") else { return };
    let photo = shared.join("data/photos/0001.bmp");
    let source = format!("kind = \"images\"\nname = \"s\"\nfiles = [{photo:?}]");
    // 19 cells of the grid see a car; without suppression each keeps its box.
    for (iou_max, count) in [(1.0, 19), (0.45, 3)] {
        let dir = tempfile::tempdir().unwrap();
        detector(dir.path(), &shared, iou_max);
        let mut bench = load(dir.path(), Feed::Pictures, "").unwrap();
        bench.feed(&source).await;
        let boxes = bench.events()[0].1.boxes.clone();
        assert_eq!(boxes.len(), count, "iou_max {iou_max}: {boxes:?}");
        assert!(boxes.is_sorted_by(|a, b| a.score >= b.score), "best first: {boxes:?}");
    }
}

/// A second of a hum of two triangle waves in a little noise, then a second of loud noise: 16 bits, 16,000 a second.
fn hum_and_hiss() -> Vec<u8> {
    let triangle = |at: usize, period: usize, height: usize| {
        let place = at % period;
        let rise = if 2 * place < period { 2 * place } else { 2 * (period - place) };
        (height * rise / period) as i32 - (height / 2) as i32
    };
    let mut state = 1u32;
    let sample = |at: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = ((state >> 16) & 0x7fff) as i32 - 16_384;
        let hum = noise.div_euclid(16) + triangle(at, 37, 8_000) + triangle(at, 200, 12_000);
        (if at < 16_000 { hum } else { noise }) as i16
    };
    (0..32_000).map(sample).flat_map(i16::to_le_bytes).collect()
}

/// The anomaly detection model of MLPerf Tiny with its reference's features, an answer every ten frames.
fn machine_sound(dir: &Path, shared: &Path) {
    let head = "name = \"machine-sound\"\ntask = \"anomaly\"\n\
        [input]\nname = \"input_1\"\nshape = [1, 640]\ntype = \"f32\"\n[output]\nname = \"Identity\"\nshape = [1, 640]\n\
        [quantization]\nform = \"weight-int8-per-channel\"\n\
        [audio]\nsample_rate_hz = 16000\nwindow_samples = 1024\nhop_samples = 512\nmels = 128\n\
        frequency_min_hz = 0\nfrequency_max_hz = 8000\nmel_scale = \"slaney\"\nnorm = \"slaney\"\nlog = \"db\"\n\
        floor = 2.220446049250313e-16\nframes = 5\nstride_frames = 10\nlayout = \"frames\"\n\
        [anomaly]\nscore = \"reconstruction\"\nraise_at = 200\nclear_below = 100\nraise_after = 2\nclear_after = 2\n";
    bundle(dir, head, &shared.join("models/ad01_wq8.onnx"), [640, 640]);
}

/// librosa 0.11.0's features of the same sound, ONNX Runtime 1.32.0's reconstruction without its optimiser, mean
/// squared difference.
const SCORES: [f64; 6] = [63.8651, 60.6193, 63.3230, 439.6787, 446.4574, 452.9922];
/// Largest difference of a score, as a part of it.
const SCORE_TOLERANCE: f64 = 1e-4;

#[tokio::test]
async fn sound_becomes_scores_and_a_raised_anomaly_at_the_right_times() {
    let Some(shared) = shared("sound_becomes_scores_and_a_raised_anomaly_at_the_right_times") else { return };
    let dir = tempfile::tempdir().unwrap();
    machine_sound(dir.path(), &shared);
    let sound = dir.path().join("sound.raw");
    std::fs::write(&sound, hum_and_hiss()).unwrap();
    let raw = "format = \"s16le\"\nrate_hz = 16000\nchannels = 1\npace = \"fastest\"";
    for block_ms in [1_000u32, 100, 37] {
        let mut bench =
            load(dir.path(), Feed::Sound { rate_hz: Some(16_000) }, "telemetry = [\"level_dbfs\"]").unwrap();
        bench
            .feed(&format!("kind = \"pcm\"\nname = \"s\"\npath = {sound:?}\n{raw}\nblock_ms = {block_ms}"))
            .await;
        let events = bench.events();
        assert_eq!(events.len(), SCORES.len(), "blocks of {block_ms} ms");
        let block = 16 * u64::from(block_ms);
        for (at, ((time_us, event), expected)) in events.iter().zip(SCORES).enumerate() {
            assert!(
                (event.score / expected - 1.0).abs() <= SCORE_TOLERANCE,
                "{} for {expected}",
                event.score
            );
            assert_eq!((event.kind, event.label == "anomaly"), (EventKind::Anomaly, at >= 4));
            // The answer's last frame ends here; its block ended when it was measured.
            let heard = (5 + 10 * at as u64 - 1) * 512 + 1_024;
            let number = heard.div_ceil(block);
            let behind = (number * block).min(32_000) - heard;
            assert_eq!(*time_us, 10_000_000 - (behind * 1_000_000 / 16_000).cast_signed());
            assert_eq!(event.subject, Some(number.to_string()));
        }
        let records = bench.stored(QueueClass::Telemetry, |body| Telemetry::decode(body).unwrap().readings);
        let of = |metric: &str| {
            let named =
                records.iter().flat_map(|(_, readings)| readings).filter(|reading| reading.metric == metric);
            named.map(|reading| reading.value.clone()).collect::<Vec<_>>()
        };
        assert_eq!((of("p.score").len(), of("p.label").len()), (6, 6));
        assert_eq!(of("level_dbfs").len() as u64, 32_000u64.div_ceil(block));
        if block_ms == 1_000 {
            for (value, expected) in of("level_dbfs").iter().zip([-17.8311, -10.7585]) {
                assert!(
                    matches!(value, Value::Number(level) if (level - expected).abs() < 1e-4),
                    "{value:?}"
                );
            }
        }
    }
}

#[test]
fn sound_whose_inferences_are_shed_leaves_no_gap() {
    let Some(shared) = shared("sound_whose_inferences_are_shed_leaves_no_gap") else { return };
    let dir = tempfile::tempdir().unwrap();
    machine_sound(dir.path(), &shared);
    let mut bench =
        load(dir.path(), Feed::Sound { rate_hz: Some(16_000) }, "telemetry = [\"level_dbfs\"]").unwrap();
    let low_memory = LowMemory::default();
    bench.pipeline = bench.pipeline.with_low_memory(low_memory.clone());
    let sound = hum_and_hiss();
    let (words, _) = sound.as_chunks::<2>();
    let samples: Vec<f32> =
        words.iter().map(|word| f32::from(i16::from_le_bytes(*word)) / 32_768.0).collect();
    // The first half second has one answer; the next is due in the middle of what would else be a first window.
    for (number, block) in (1..).zip(samples.chunks(8_000)) {
        low_memory.set(number == 1);
        let content = Content::Audio { samples: block.into(), rate_hz: 16_000, number };
        bench.pipeline.take(Sample { measured_at_us: 10_000_000, content }).unwrap();
    }
    let events = bench.events();
    let scores: Vec<f64> = events.iter().map(|(_, event)| event.score).collect();
    assert_eq!(scores.len(), 5);
    for (score, expected) in scores.iter().zip(&SCORES[1..]) {
        assert!((score / expected - 1.0).abs() <= SCORE_TOLERANCE, "{score} for {expected}");
    }
    let records = bench.stored(QueueClass::Telemetry, |body| Telemetry::decode(body).unwrap().readings);
    let levels = records.iter().flat_map(|(_, readings)| readings).filter(|r| r.metric == "level_dbfs");
    assert_eq!(levels.count(), 4, "telemetry is never shed");
}

#[test]
fn sound_of_another_rate_and_other_sources_are_refused_at_load() {
    let Some(shared) = shared("sound_of_another_rate_and_other_sources_are_refused_at_load") else { return };
    let dir = tempfile::tempdir().unwrap();
    machine_sound(dir.path(), &shared);
    let refused = |feed| chain(&load(dir.path(), feed, "").err().expect("it was taken"));
    let error = refused(Feed::Sound { rate_hz: Some(44_100) });
    let expected = "model `machine-sound` takes 16000 samples a second, the source gives 44100";
    assert!(error.contains(expected) && error.starts_with("pipeline \"p\""), "{error}");
    assert!(refused(Feed::Rows).contains("takes sound, expected sensor rows"));
    assert!(refused(Feed::Pictures).contains("takes sound, expected pictures"));
    assert!(load(dir.path(), Feed::Sound { rate_hz: None }, "").is_ok(), "the first block tells the rate");
    detector(dir.path(), &shared, 0.45);
    assert!(refused(Feed::Sound { rate_hz: None }).contains("takes pictures, expected sound"));
}

#[tokio::test]
async fn blocks_of_another_rate_are_counted_and_not_scored() {
    let Some(shared) = shared("blocks_of_another_rate_are_counted_and_not_scored") else { return };
    let dir = tempfile::tempdir().unwrap();
    machine_sound(dir.path(), &shared);
    let sound = dir.path().join("sound.raw");
    std::fs::write(&sound, hum_and_hiss()).unwrap();
    let mut bench = load(dir.path(), Feed::Sound { rate_hz: None }, "telemetry = \"all\"").unwrap();
    let raw = "format = \"s16le\"\nrate_hz = 8000\nchannels = 1\npace = \"fastest\"";
    bench.feed(&format!("kind = \"pcm\"\nname = \"s\"\npath = {sound:?}\n{raw}")).await;
    assert_eq!(bench.queue.next_seq(QueueClass::Event), 1, "no event");
    let records = bench.stored(QueueClass::Telemetry, |body| Telemetry::decode(body).unwrap().readings.len());
    assert_eq!(
        records.iter().map(|(_, readings)| *readings).collect::<Vec<_>>(),
        [2; 4],
        "its levels all the same"
    );
}
