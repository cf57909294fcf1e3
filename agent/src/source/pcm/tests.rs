use super::*;
use crate::clock::ManualClock;
use crate::metrics::Metrics;
use crate::supervisor::stop_pair;
use tokio::sync::mpsc;

struct Wav {
    tag: u16,
    channels: u16,
    rate_hz: u32,
    bits: u16,
    data: Vec<u8>,
}

impl Wav {
    fn of(data: &[u8]) -> Self {
        Self { tag: 1, channels: 1, rate_hz: 1_000, bits: 16, data: data.to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        let align = self.channels * self.bits / 8;
        let format = [
            self.tag.to_le_bytes().as_slice(),
            &self.channels.to_le_bytes(),
            &self.rate_hz.to_le_bytes(),
            &(self.rate_hz * u32::from(align)).to_le_bytes(),
            &align.to_le_bytes(),
            &self.bits.to_le_bytes(),
        ]
        .concat();
        riff(&[(b"fmt ", &format), (b"data", &self.data)])
    }
}

fn riff(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut bytes = b"RIFF\0\0\0\0WAVE".to_vec();
    for (name, content) in chunks {
        bytes.extend_from_slice(*name);
        bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + content.len() % 2, 0);
    }
    bytes
}

fn shorts(samples: impl IntoIterator<Item = i16>) -> Vec<u8> {
    samples.into_iter().flat_map(i16::to_le_bytes).collect()
}

fn file(bytes: &[u8], more: &str) -> (tempfile::TempDir, PcmSource) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.wav");
    std::fs::write(&path, bytes).unwrap();
    let text = format!("name = \"p\"\npath = {:?}\n{more}", path.display().to_string());
    (dir, toml::from_str(&text).unwrap())
}

fn all(bytes: &[u8], more: &str) -> Vec<f32> {
    let (_dir, config) = file(bytes, more);
    let mut reader = PcmReader::open(&config).unwrap();
    let mut samples = Vec::new();
    while let Some(block) = reader.next_block(3).unwrap() {
        samples.extend(block);
    }
    samples
}

#[test]
fn every_encoding_has_the_same_scale() {
    let check = |tag, bits, data: &[u8], expected: &[f32]| {
        let wav = Wav { tag, bits, ..Wav::of(data) };
        assert_eq!(all(&wav.bytes(), ""), expected, "tag {tag}, {bits} bits");
    };
    check(1, 8, &[0, 128, 192], &[-1.0, 0.0, 0.5]);
    check(1, 16, &shorts([i16::MIN, 0, 16_384]), &[-1.0, 0.0, 0.5]);
    check(1, 24, &[0, 0, 0x80, 0, 0, 0, 0, 0, 0x40, 0xff, 0xff, 0xff], &[-1.0, 0.0, 0.5, -1.0 / 8_388_608.0]);
    check(1, 32, &[0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x40], &[-1.0, 0.0, 0.5]);
    check(3, 32, &[-1.0f32, 0.0, 0.5].map(f32::to_le_bytes).concat(), &[-1.0, 0.0, 0.5]);
    assert_eq!(all(&shorts([1, -1, 8_192]), "format = \"s16le\"\nrate_hz = 1000\nchannels = 1")[2], 0.25);
}

#[test]
fn channels_become_their_mean_and_half_a_moment_is_left_out() {
    let stereo = Wav { channels: 2, ..Wav::of(&shorts([16_384, 0, -16_384, 16_384, 9])) };
    assert_eq!(all(&stereo.bytes(), ""), [0.25, 0.0]);
    let raw = shorts([4_096, 4_096, 4_096, 20_480, 7]);
    assert_eq!(all(&raw, "format = \"s16le\"\nrate_hz = 1000\nchannels = 4"), [0.25]);
}

#[test]
fn other_chunks_are_skipped_and_open_lengths_read_to_the_end() {
    let plain = Wav::of(&shorts([1, 2])).bytes();
    let format = &plain[20..36];
    let bytes = riff(&[(b"LIST", b"odd"), (b"fmt ", format), (b"junk", b""), (b"data", &shorts([16_384]))]);
    assert_eq!(all(&bytes, ""), [0.5]);
    // What stands behind the samples is none of them.
    let bytes = riff(&[(b"fmt ", format), (b"data", &shorts([16_384])), (b"LIST", b"odd")]);
    assert_eq!(all(&bytes, ""), [0.5]);
    for length in [0u32, u32::MAX] {
        let mut bytes = plain.clone();
        bytes[40..44].copy_from_slice(&length.to_le_bytes());
        assert_eq!(all(&bytes, "").len(), 2, "a length of {length}");
    }
    let mut cut = plain.clone();
    cut[40..44].copy_from_slice(&100u32.to_le_bytes());
    assert_eq!(all(&cut, "").len(), 2, "the file ends first");
    // The tag in SubFormat's first bytes.
    let mut extensible = format.to_vec();
    extensible[..2].copy_from_slice(&0xfffeu16.to_le_bytes());
    extensible.extend_from_slice(&[22, 0, 16, 0, 4, 0, 0, 0, 1, 0]);
    extensible.extend_from_slice(&[0; 14]);
    assert_eq!(all(&riff(&[(b"fmt ", &extensible), (b"data", &shorts([16_384]))]), ""), [0.5]);
}

#[test]
fn errors_name_the_field_and_what_was_expected() {
    let check = |bytes: &[u8], expected: &str| {
        let (_dir, config) = file(bytes, "");
        let error = super::check(&config).unwrap_err().to_string();
        let found = error.split_once("x.wav: ").unwrap_or_else(|| panic!("{error}")).1;
        assert_eq!(found, expected);
    };
    let good = || Wav::of(&[0, 0]);
    check(b"", "RIFF: expected more bytes, found the file's end");
    check(b"RIFX\0\0\0\0WAVE", "RIFF: expected \"RIFF\" at the file's start, found RIFX");
    check(b"RIFF\0\0\0\0AVI ", "WAVE: expected \"WAVE\" at byte 8, found AVI ");
    check(&riff(&[]), "data: expected more bytes, found the file's end");
    check(&riff(&[(b"data", b"")]), "fmt: expected a chunk \"fmt \" before \"data\", found none");
    check(&riff(&[(b"fmt ", b"short")]), "fmt: expected at least 16 bytes, found 5");
    check(&Wav { tag: 2, ..good() }.bytes(), "format tag: expected 1 (integers) or 3 (floats), found 2");
    check(&Wav { bits: 12, ..good() }.bytes(), "bits: expected 8, 16, 24 or 32, found 12");
    check(&Wav { tag: 3, bits: 64, ..good() }.bytes(), "bits: expected 32, found 64");
    check(&Wav { channels: 0, ..good() }.bytes(), "channels: expected 1 to 8, found 0");
    check(&Wav { channels: 9, ..good() }.bytes(), "channels: expected 1 to 8, found 9");
    check(&Wav { rate_hz: 999, ..good() }.bytes(), "rate: expected 1000 to 192000 Hz, found 999");
    check(&Wav { rate_hz: 192_001, ..good() }.bytes(), "rate: expected 1000 to 192000 Hz, found 192001");
    check(&Wav { data: vec![0], ..good() }.bytes(), "data: expected samples, found none");
    let mut align = good().bytes();
    align[32] = 3;
    check(&align, "block align: expected 2 bytes, found 3");
    let many = vec![(b"junk", b"".as_slice()); 64];
    check(&riff(&many), "data: expected a chunk \"data\" among the first 64, found none");
    let mut large = riff(&[(b"LIST", b"")]);
    large[16..20].copy_from_slice(&(64 << 20 | 1u32).to_le_bytes());
    check(&large, "chunk: expected at most 67108864 bytes, found 67108865");
    let (_dir, config) = file(&good().bytes(), "");
    let expected = PcmShape { rate_hz: 1_000, channels: 1, encoding: Encoding::Int16 };
    assert_eq!(super::check(&config).unwrap(), expected);
}

/// Numbers and lengths of the first `take` blocks.
async fn replayed(config: PcmSource, take: usize) -> Vec<(u64, usize)> {
    let (_sender, stop) = stop_pair();
    let (sink, mut samples) = mpsc::channel(4);
    let clock = Arc::new(ManualClock::at(77));
    let context = SourceContext { clock, metrics: Metrics::new(), stop, sinks: vec![sink] };
    let task = tokio::spawn(run(config, context));
    let mut blocks = Vec::new();
    while blocks.len() < take
        && let Some(sample) = samples.recv().await
    {
        let Content::Audio { samples, rate_hz, number } = sample.content else { panic!("sound") };
        assert_eq!((sample.measured_at_us, rate_hz), (77, 1_000));
        blocks.push((number, samples.len()));
    }
    drop(samples);
    task.await.unwrap().unwrap();
    blocks
}

#[tokio::test(start_paused = true)]
async fn blocks_come_when_they_end_and_the_last_is_shorter() {
    for (more, ms) in [("", 500), ("speed = 5.0", 100), ("pace = \"fastest\"", 0)] {
        let (_dir, config) =
            file(&Wav::of(&shorts(vec![0; 500])).bytes(), &format!("block_ms = 200\n{more}"));
        let before = Instant::now();
        assert_eq!(replayed(config, 100).await, [(1, 200), (2, 200), (3, 100)]);
        assert_eq!(before.elapsed().as_millis(), ms, "{more}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_numbers_blocks_on_and_silent_files_end() {
    let (_dir, config) = file(&Wav::of(&shorts(vec![0; 1_500])).bytes(), "wrap = \"loop\"");
    assert_eq!(replayed(config, 5).await, [(1, 1_000), (2, 500), (3, 1_000), (4, 500), (5, 1_000)]);
    let (_dir, config) = file(&Wav::of(&[]).bytes(), "wrap = \"loop\"");
    assert_eq!(replayed(config, 5).await, []);
}

#[test]
fn levels_are_those_of_full_scale() {
    let check = |samples: &[f32], level: f64, peak: f64| {
        let [(first, found), (second, highest)] = levels(samples);
        assert_eq!((&*first, &*second), ("level_dbfs", "peak_dbfs"));
        assert!((found - level).abs() < 1e-3 && (highest - peak).abs() < 1e-3, "{found}, {highest}");
    };
    check(&[1.0, -1.0, 1.0, -1.0], 0.0, 0.0);
    check(&[0.5, 0.0, -0.5, 0.0], -9.0309, -6.0206);
    let sine: Vec<f32> = (0..1_000).map(|at| (at as f32 * std::f32::consts::TAU / 100.0).sin()).collect();
    check(&sine, -3.0103, 0.0);
    check(&[0.0; 10], SILENCE_DBFS, SILENCE_DBFS);
    assert!(levels(&[0.0, f32::NAN]).iter().all(|(_, level)| level.is_nan()), "the pipeline refuses it");
}
