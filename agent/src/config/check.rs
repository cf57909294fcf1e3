//! The rules that a type alone does not carry.

use super::{
    CONFIG_VERSION, Config, ConfigError, CsvSource, ExecSource, Identity, ImagesSource, PIPELINES_MAX, Pace,
    PcmFormat, PcmSource, Pipeline, SOUND_CHANNELS_MAX, SOUND_RATE_HZ_MAX, SOUND_RATE_HZ_MIN, SOURCES_MAX,
    Selection, SourceConfig, Stamp, Transport, Uplink,
};
use crate::identity::Claim;
use muster_wire::{DeviceId, TenantId, check_metric_name};
use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;

/// A broken rule; the file is added where it is known.
pub(super) struct Problem {
    field: String,
    expected: String,
    found: String,
}

/// Most words of a command.
const WORDS_MAX: usize = 256;

type Checked = Result<(), Problem>;

impl Problem {
    pub(super) fn in_file(self, file: &Path) -> ConfigError {
        ConfigError::Rule {
            file: file.to_owned(),
            field: self.field,
            expected: self.expected,
            found: self.found,
        }
    }
}

fn problem(field: impl Into<String>, expected: impl Into<String>, found: impl Display) -> Problem {
    Problem { field: field.into(), expected: expected.into(), found: found.to_string() }
}

fn within<T: PartialOrd + Display>(field: impl Into<String>, value: T, min: T, max: T) -> Checked {
    if value >= min && value <= max { Ok(()) } else { Err(problem(field, format!("{min} to {max}"), value)) }
}

fn name_ok(field: impl Into<String>, name: &str) -> Checked {
    DeviceId::check(name).map_err(|_| {
        let expected = "1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', starting with a letter or digit";
        problem(field, expected, format!("{name:?}"))
    })
}

pub(super) fn check(config: &Config) -> Checked {
    if config.version != CONFIG_VERSION {
        return Err(problem("version", CONFIG_VERSION.to_string(), config.version));
    }
    check_identity(&config.identity)?;
    check_uplink(&config.uplink, &config.identity)?;
    check_queue(&config.queue)?;
    if let Some(mib) = config.device.memory_available_mib_min {
        within("device.memory_available_mib_min", mib, 1, 1 << 20)?;
    }
    check_listen(config.metrics.listen.as_deref())?;
    within("source", config.sources.len(), 0, SOURCES_MAX)?;
    within("pipeline", config.pipelines.len(), 0, PIPELINES_MAX)?;
    let mut names = HashSet::new();
    for source in &config.sources {
        check_source(source)?;
        if !names.insert(source.name()) {
            return Err(problem(
                "source.name",
                "a name that no other source has",
                format!("{:?}", source.name()),
            ));
        }
    }
    let mut names = HashSet::new();
    for pipeline in &config.pipelines {
        check_pipeline(pipeline, &config.sources)?;
        if !names.insert(pipeline.name.as_str()) {
            let expected = "a name that no other pipeline has";
            return Err(problem("pipeline.name", expected, format!("{:?}", pipeline.name)));
        }
    }
    Ok(())
}

fn check_identity(identity: &Identity) -> Checked {
    if let Some(claim) = &identity.claim {
        let expected = "muster-claim:<host>:<port>:<token>:<sha256 hex>";
        Claim::parse(claim).map_err(|error| problem("identity.claim", expected, error))?;
    }
    if identity.claim.is_some() && identity.claim_file.is_some() {
        return Err(problem("identity.claim_file", "either claim or claim_file", "both"));
    }
    if let Some(name) = &identity.device_name {
        name_ok("identity.device_name", name)?;
    }
    let token_parts = [
        ("identity.tenant", identity.tenant.is_some()),
        ("identity.device", identity.device.is_some()),
        ("identity.token_file", identity.token_file.is_some()),
    ];
    let missing = token_parts.iter().find(|part| !part.1);
    if let Some(missing) = missing.filter(|_| token_parts.iter().any(|part| part.1)) {
        return Err(problem(missing.0, "tenant, device and token_file together", "nothing"));
    }
    if let Some(tenant) = &identity.tenant {
        let expected = "1 to 36 of a-z, 0-9 and '-'";
        TenantId::check(tenant).map_err(|_| problem("identity.tenant", expected, format!("{tenant:?}")))?;
    }
    identity.device.as_deref().map_or(Ok(()), |device| name_ok("identity.device", device))
}

fn check_uplink(uplink: &Uplink, identity: &Identity) -> Checked {
    within("uplink.keep_alive_s", uplink.keep_alive_s, 10, 3_600)?;
    within("uplink.reconnect_delay_ms_min", uplink.reconnect_delay_ms_min, 10, 60_000)?;
    let (min, max) = (uplink.reconnect_delay_ms_min, 3_600_000);
    within("uplink.reconnect_delay_ms_max", uplink.reconnect_delay_ms_max, min, max)?;
    within("uplink.state_interval_s", uplink.state_interval_s, 1, 3_600)?;
    if uplink.host.as_deref().is_some_and(|host| host.is_empty() || host.len() > 253) {
        return Err(problem("uplink.host", "1 to 253 bytes", "another length"));
    }
    if uplink.port == Some(0) {
        return Err(problem("uplink.port", "1 to 65535", 0));
    }
    if identity.token_file.is_none() {
        return Ok(());
    }
    if uplink.host.is_none() || uplink.port.is_none() {
        return Err(problem("uplink.host", "a host and a port, since a token is no enrolment", "nothing"));
    }
    if uplink.transport == Transport::Tls && uplink.ca_file.is_none() {
        return Err(problem("uplink.ca_file", "a PEM file, since a token is no enrolment", "nothing"));
    }
    Ok(())
}

fn check_queue(queue: &super::Queue) -> Checked {
    within("queue.telemetry_bytes_max", queue.telemetry_bytes_max, 1 << 20, 1 << 40)?;
    within("queue.event_bytes_max", queue.event_bytes_max, 1 << 20, 1 << 40)?;
    within("queue.telemetry_age_s_max", queue.telemetry_age_s_max, 60, 100 * 366 * 86_400)?;
    within("queue.event_age_s_max", queue.event_age_s_max, 60, 100 * 366 * 86_400)?;
    within("queue.segment_bytes", queue.segment_bytes, 128 << 10, 64 << 20)?;
    let bound = queue.telemetry_bytes_max.min(queue.event_bytes_max) / 4;
    within("queue.segment_bytes", queue.segment_bytes, 128 << 10, bound)?;
    within("queue.sync_interval_ms", queue.sync_interval_ms, 0, 60_000)?;
    let Some(bytes) = queue.written_bytes_day_max else { return Ok(()) };
    within("queue.written_bytes_day_max", bytes, 1 << 20, 1 << 40)
}

fn check_listen(listen: Option<&str>) -> Checked {
    let Some(listen) = listen else { return Ok(()) };
    let unix = listen.strip_prefix("unix:").is_some_and(|path| path.starts_with('/'));
    let loopback = listen.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    if unix || loopback {
        return Ok(());
    }
    Err(problem("metrics.listen", "a loopback address with a port, or unix:/path", format!("{listen:?}")))
}

fn check_source(source: &SourceConfig) -> Checked {
    name_ok("source.name", source.name())?;
    let field = |key: &str| format!("source {:?}.{key}", source.name());
    match source {
        SourceConfig::Host(host) => within(field("interval_ms"), host.interval_ms, 200, 86_400_000),
        SourceConfig::Csv(csv) => check_csv(csv, field),
        SourceConfig::Images(images) => check_images(images, field),
        SourceConfig::Exec(exec) => check_exec(exec, field),
        SourceConfig::Pcm(pcm) => check_pcm(pcm, field),
    }
}

fn check_csv(csv: &CsvSource, field: impl Fn(&str) -> String) -> Checked {
    check_speed(csv.speed, &field)?;
    if let Some(rate) = csv.rate_hz.filter(|rate| !(rate.is_finite() && *rate > 0.0 && *rate <= 100_000.0)) {
        return Err(problem(field("rate_hz"), "above 0 and up to 100000", rate));
    }
    if csv.pace == Pace::Timed && csv.timestamp_column.is_none() && csv.rate_hz.is_none() {
        return Err(problem(field("rate_hz"), "rate_hz, timestamp_column or pace = \"fastest\"", "nothing"));
    }
    if csv.stamp == Stamp::Original && csv.timestamp_column.is_none() {
        return Err(problem(field("timestamp_column"), "a column, since stamp is \"original\"", "nothing"));
    }
    within(field("columns"), csv.columns.len(), 0, muster_wire::METRICS_PER_DEVICE_MAX)
}

fn check_images(images: &ImagesSource, field: impl Fn(&str) -> String) -> Checked {
    within(field("interval_ms"), images.interval_ms, 1, 86_400_000)?;
    if images.folder.is_none() == images.files.is_empty() {
        let found = if images.files.is_empty() { "neither" } else { "both" };
        return Err(problem(field("folder"), "either folder or files", found));
    }
    Ok(())
}

fn check_speed(speed: f64, field: impl Fn(&str) -> String) -> Checked {
    if speed.is_finite() && speed > 0.0 && speed <= 1e9 {
        return Ok(());
    }
    Err(problem(field("speed"), "above 0 and up to 1000000000", speed))
}

fn check_exec(exec: &ExecSource, field: impl Fn(&str) -> String) -> Checked {
    within(field("command"), exec.command.len(), 1, WORDS_MAX)?;
    if let Some(word) = exec.command.iter().find(|word| word.contains('\0')) {
        return Err(problem(field("command"), "words without NUL", format!("{word:?}")));
    }
    if exec.command[0].is_empty() {
        return Err(problem(field("command"), "a program first", "\"\""));
    }
    within(field("columns"), exec.columns.len(), 0, muster_wire::METRICS_PER_DEVICE_MAX)?;
    let mut names = HashSet::new();
    if let Some(twice) = exec.columns.iter().find(|name| !names.insert(name.as_str())) {
        return Err(problem(field("columns"), "names that differ", format!("{twice:?} twice")));
    }
    exec.interval_ms.map_or(Ok(()), |interval| within(field("interval_ms"), interval, 200, 86_400_000))?;
    exec.timeout_ms.map_or(Ok(()), |timeout| within(field("timeout_ms"), timeout, 1, 86_400_000))
}

fn check_pcm(pcm: &PcmSource, field: impl Fn(&str) -> String) -> Checked {
    within(field("block_ms"), pcm.block_ms, 10, 1_000)?;
    check_speed(pcm.speed, &field)?;
    match (pcm.format, pcm.rate_hz, pcm.channels) {
        (PcmFormat::Wav, None, None) => Ok(()),
        (PcmFormat::Wav, Some(_), _) => {
            Err(problem(field("rate_hz"), "nothing, since a WAV file tells it", "a rate"))
        }
        (PcmFormat::Wav, None, Some(_)) => {
            Err(problem(field("channels"), "nothing, since a WAV file tells them", "a number"))
        }
        (PcmFormat::S16le, Some(rate), Some(channels)) => {
            within(field("rate_hz"), rate, SOUND_RATE_HZ_MIN, SOUND_RATE_HZ_MAX)?;
            within(field("channels"), channels, 1, SOUND_CHANNELS_MAX)
        }
        (PcmFormat::S16le, rate, _) => {
            let missing = if rate.is_none() { "rate_hz" } else { "channels" };
            Err(problem(field(missing), "a number, since s16le has no header", "nothing"))
        }
    }
}

fn check_pipeline(pipeline: &Pipeline, sources: &[SourceConfig]) -> Checked {
    name_ok("pipeline.name", &pipeline.name)?;
    let field = |key: &str| format!("pipeline {:?}.{key}", pipeline.name);
    let source = sources.iter().find(|source| source.name() == pipeline.source).ok_or_else(|| {
        let known: Vec<_> = sources.iter().map(SourceConfig::name).collect();
        problem(field("source"), format!("one of {known:?}"), format!("{:?}", pipeline.source))
    })?;
    if matches!(source, SourceConfig::Images(_)) && pipeline.model.is_none() {
        return Err(problem(field("model"), "a model bundle, since pictures are no readings", "nothing"));
    }
    if matches!(source, SourceConfig::Images(_) | SourceConfig::Pcm(_)) && !pipeline.inputs.is_empty() {
        return Err(problem(field("inputs"), "inputs only where the source gives columns", "inputs"));
    }
    if pipeline.model.is_none() && !pipeline.inputs.is_empty() {
        return Err(problem(field("inputs"), "inputs only beside a model", "inputs alone"));
    }
    if let Some(percent) = pipeline.cpu_percent_max {
        if !(percent.is_finite() && percent > 0.0 && percent <= 100.0) {
            return Err(problem(field("cpu_percent_max"), "above 0 and up to 100", percent));
        }
        if pipeline.model.is_none() {
            // It would bound nothing.
            let expected = "it only beside a model, since telemetry is never shed";
            return Err(problem(field("cpu_percent_max"), expected, "it alone"));
        }
    }
    for (key, name) in [("serial", pipeline.serial.as_deref()), ("prefix", Some(pipeline.prefix.as_str()))] {
        let Some(name) = name.filter(|name| key == "serial" || !name.is_empty()) else { continue };
        check_metric_name(name).map_err(|expected| problem(field(key), expected, format!("{name:?}")))?;
    }
    if pipeline.model.is_some() && pipeline.scores {
        let metric = format!("{}{}.score", pipeline.prefix, pipeline.name);
        let expected = "false, or a prefix and a name that make a metric of at most 64 bytes";
        check_metric_name(&metric).map_err(|_| problem(field("scores"), expected, format!("{metric:?}")))?;
    }
    if let Some(Selection::Columns(columns)) = &pipeline.telemetry {
        within(field("telemetry"), columns.len(), 0, muster_wire::METRICS_PER_DEVICE_MAX)?;
    }
    Ok(())
}
