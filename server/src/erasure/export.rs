//! Writes an export: files of lines of JSON, compressed, one file a step.
//!
//! The worker calls it, with a job whose device or tenant is shut out and whose records the store has read. A file and
//! the place behind it are one commit; a file that a crash cut off from its commit is written again under its name.

use super::model::{FILE_BYTES_MAX, FILE_ROWS_MAX, File, Job, MANIFEST_FILES_MAX, Place};
use super::service::{ErasureError, Erasures};
use super::{rows, store, tables};
use crate::platform::blob::{BlobError, Key};
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::telemetry::{Part, TelemetryError, TelemetryStore};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use muster_wire::DeviceId;
use serde_json::{Value as Json, json};
use std::io::Write as _;

/// Rows read at once; the first time, before it is known how large they are, fewer.
const PIECE_ROWS: usize = 2_000;
const PIECE_ROWS_FIRST: usize = 100;
/// Devices looked through in one step that yield nothing.
const DEVICES_PER_STEP: usize = 500;

/// Where rows come from.
#[derive(Clone, Copy)]
enum Source {
    Registry(&'static tables::Table),
    Members,
    Telemetry(Part),
}

impl Source {
    fn all() -> Vec<Self> {
        let registry = tables::EXPORTED.iter().map(Self::Registry);
        registry.chain([Self::Members]).chain(Part::ALL.into_iter().map(Self::Telemetry)).collect()
    }

    fn file(self) -> &'static str {
        match self {
            Self::Registry(table) => table.file,
            Self::Members => "members",
            Self::Telemetry(part) => part.as_str(),
        }
    }
}

/// A file being gathered.
#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    rows: usize,
}

impl Lines {
    fn is_full(&self) -> bool {
        self.rows >= FILE_ROWS_MAX || self.text.len() >= FILE_BYTES_MAX
    }

    /// How many rows to read next: about as many as the file takes yet.
    fn wanted(&self) -> usize {
        let mean = self.text.len().checked_div(self.rows).map(|mean| mean.max(1));
        let fit = mean.map_or(PIECE_ROWS_FIRST, |mean| FILE_BYTES_MAX.saturating_sub(self.text.len()) / mean);
        fit.clamp(1, PIECE_ROWS).min(FILE_ROWS_MAX.saturating_sub(self.rows).max(1))
    }

    fn add(&mut self, row: &Json) {
        self.text.extend_from_slice(row.to_string().as_bytes());
        self.text.push(b'\n');
        self.rows += 1;
    }

    /// Takes back what was added since there were so many bytes and rows.
    fn cut(&mut self, (bytes, rows): (usize, usize)) {
        self.text.truncate(bytes);
        self.rows = rows;
    }
}

/// Does one step. Says whether the export is whole.
pub(super) async fn step(
    erasures: &Erasures,
    telemetry: &TelemetryStore,
    job: &mut Job,
) -> Result<bool, ErasureError> {
    let sources = Source::all();
    let Some(source) = sources.get(job.place.part).copied() else {
        return manifest(erasures, job).await;
    };
    let (lines, next) = gather(erasures, telemetry, job, source).await?;
    let mut file = None;
    if lines.rows > 0 {
        let name = format!("{}-{:05}.ndjson.gz", source.file(), job.place.files + 1);
        let rows = lines.rows as i64;
        let packed = pack(lines.text).await?;
        file = Some(put(erasures, job, name, packed, rows).await?);
        job.rows_exported += rows;
    }
    job.place = match next {
        Some(place) => Place { files: job.place.files + u32::from(file.is_some()), ..place },
        None => Place { part: job.place.part + 1, ..Place::default() },
    };
    commit(erasures, job, file).await?;
    Ok(false)
}

async fn commit(erasures: &Erasures, job: &Job, file: Option<File>) -> Result<(), ErasureError> {
    let (scope, job) = (Scope::Tenant(job.tenant.clone()), job.clone());
    let write = move |tx: &mut Tx<'_>| {
        if let Some(file) = &file {
            store::file_put(tx, &scope, &job.id, file)?;
        }
        store::update(tx, &scope, &job).map(drop)
    };
    Ok(erasures.db.write(write).await?)
}

/// Compresses, on a thread that may be busy for a while.
async fn pack(text: Vec<u8>) -> Result<Vec<u8>, ErasureError> {
    let pack = move || {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&text).and_then(|()| encoder.finish())
    };
    let packed = tokio::task::spawn_blocking(pack).await.map_err(|_| DbError::Closed)?;
    packed.map_err(|error| BlobError::Failed(format!("cannot compress: {error}")).into())
}

async fn put(
    erasures: &Erasures,
    job: &Job,
    name: String,
    content: Vec<u8>,
    rows: i64,
) -> Result<File, ErasureError> {
    let key = Key::new(&job.tenant, &format!("{}/{name}", job.folder()))?;
    let stored = erasures.blobs()?.put(&key, Bytes::from(content)).await?;
    Ok(File { name, bytes: stored.bytes.cast_signed(), sha256: stored.sha256, rows })
}

const MANIFEST: &str = "manifest.json";

/// The last file names all others, so that the folder explains itself. Where they are many, pages are written before
/// that name them, one a step, and the last file names the pages. Says whether it is written.
async fn manifest(erasures: &Erasures, job: &mut Job) -> Result<bool, ErasureError> {
    let (pages, after) = (job.place.files, job.place.after.clone().unwrap_or_default());
    let mut files = named(erasures, job, (false, after), MANIFEST_FILES_MAX + 1).await?;
    let is_one = pages == 0 && files.len() <= MANIFEST_FILES_MAX;
    files.truncate(MANIFEST_FILES_MAX);
    if !is_one && let Some(last) = files.last() {
        (job.place.after, job.place.files) = (Some(last.name.clone()), pages + 1);
        let page = put_manifest(erasures, job, format!("manifest-{:05}.json", pages + 1), &files).await?;
        commit(erasures, job, Some(page)).await?;
        return Ok(false);
    }
    if !is_one {
        files = named(erasures, job, (true, String::new()), MANIFEST_FILES_MAX).await?;
    }
    let file = put_manifest(erasures, job, MANIFEST.to_owned(), &files).await?;
    commit(erasures, job, Some(file)).await?;
    Ok(true)
}

async fn named(
    erasures: &Erasures,
    job: &Job,
    (pages, after): (bool, String),
    limit: usize,
) -> Result<Vec<File>, ErasureError> {
    let (scope, id) = (Scope::Tenant(job.tenant.clone()), job.id.clone());
    let read = move |tx: &mut Tx<'_>| store::files_named(tx, &scope, &id, (pages, &after), limit as i64);
    Ok(erasures.db.read(read).await?)
}

async fn put_manifest(
    erasures: &Erasures,
    job: &Job,
    name: String,
    files: &[File],
) -> Result<File, ErasureError> {
    let shown = files.iter().map(|file| {
        json!({ "name": file.name, "bytes": file.bytes, "rows": file.rows, "sha256": hex::encode(file.sha256) })
    });
    let manifest = json!({
        "version": 1, "tenant": job.tenant, "device": job.device, "erasure": job.id,
        "requested_by": job.requested_by, "requested_at_us": job.requested_at_us,
        "exported_at_us": erasures.clock.now_us(), "rows": job.rows_exported,
        "files": shown.collect::<Vec<_>>(),
    });
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|_| DbError::Column { column: "manifest".into() })?;
    put(erasures, job, name, text, 1).await
}

/// Gathers a file's rows; the second is the place behind them, none at the source's end.
async fn gather(
    erasures: &Erasures,
    telemetry: &TelemetryStore,
    job: &Job,
    source: Source,
) -> Result<(Lines, Option<Place>), ErasureError> {
    match source {
        Source::Registry(table) => registry(erasures, job, table).await,
        Source::Members => {
            let mut lines = Lines::default();
            for member in &job.members {
                lines.add(&json!(member));
            }
            Ok((lines, None))
        }
        Source::Telemetry(part) => {
            let (store, job) = (telemetry.clone(), job.clone());
            let gathered = tokio::task::spawn_blocking(move || stored(&store, &job, part)).await;
            Ok(gathered.map_err(|_| DbError::Closed)??)
        }
    }
}

async fn registry(
    erasures: &Erasures,
    job: &Job,
    table: &'static tables::Table,
) -> Result<(Lines, Option<Place>), ErasureError> {
    let mut after = job.place.after.clone();
    let mut lines = Lines::default();
    loop {
        let (scope, device) = (Scope::Tenant(job.tenant.clone()), job.device.clone());
        let (behind, wanted) = (after.clone(), lines.wanted());
        let read = move |tx: &mut Tx<'_>| {
            let device = device.as_ref().map(DeviceId::as_str);
            rows::read(tx, &scope, table, device, (behind.as_deref(), wanted as i64))
        };
        let piece = erasures.db.read(read).await?;
        let is_last = piece.len() < wanted;
        let mut is_taken = true;
        for (place, row) in piece {
            if lines.is_full() {
                is_taken = false;
                break;
            }
            lines.add(&row);
            after = Some(place);
        }
        if is_last && is_taken {
            return Ok((lines, None));
        }
        if lines.is_full() {
            return Ok((lines, Some(Place { after, ..job.place.clone() })));
        }
    }
}

/// Reads on where the place stands: device by device, each in pieces.
fn stored(
    telemetry: &TelemetryStore,
    job: &Job,
    part: Part,
) -> Result<(Lines, Option<Place>), TelemetryError> {
    let scope = Scope::Tenant(job.tenant.clone());
    let (mut lines, mut place) = (Lines::default(), job.place.clone());
    for _ in 0..DEVICES_PER_STEP {
        if place.after.is_none() {
            // The next device begins.
            let next = match &job.device {
                Some(device) if place.device.is_empty() => Some(device.to_string()),
                Some(_) => None,
                None => telemetry.stored_devices(&scope, &place.device, 1)?.pop(),
            };
            let Some(next) = next else { return Ok((lines, None)) };
            place.device = next;
        }
        loop {
            place.after = piece(telemetry, &scope, (&place, part), &mut lines)?;
            if lines.is_full() || place.after.is_none() {
                break;
            }
        }
        if lines.is_full() {
            break;
        }
    }
    Ok((lines, Some(place)))
}

/// Adds a piece; gives where the next one begins. A piece with more than the file takes is read again up to there,
/// since only the place behind its last row is known.
fn piece(
    telemetry: &TelemetryStore,
    scope: &Scope,
    (place, part): (&Place, Part),
    lines: &mut Lines,
) -> Result<Option<String>, TelemetryError> {
    let (before, mut wanted) = ((lines.text.len(), lines.rows), lines.wanted());
    loop {
        let read = telemetry.read_out(scope, &place.device, part, place.after.as_deref(), wanted)?;
        let found = read.rows.len();
        for mut row in read.rows {
            if lines.is_full() {
                break;
            }
            if let Some(object) = row.as_object_mut() {
                object.insert("device".to_owned(), place.device.clone().into());
            }
            lines.add(&row);
        }
        let taken = lines.rows - before.1;
        if taken == found {
            return Ok(read.next);
        }
        lines.cut(before);
        wanted = taken;
    }
}
