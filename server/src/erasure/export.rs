//! Writes an export: files of lines of JSON, compressed, one file a step.
//!
//! The worker calls it, with a job whose device or tenant is shut out and whose records the store has read. A file and
//! the place behind it are one commit; a file that a crash cut off from its commit is written again under its name.

use super::model::{FILE_BYTES_MAX, FILE_ROWS_MAX, File, Job, Place};
use super::service::{ErasureError, Erasures};
use super::{store, tables};
use crate::platform::blob::{BlobError, Key};
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::telemetry::{Part, TelemetryError, TelemetryStore};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use muster_wire::DeviceId;
use serde_json::{Value as Json, json};
use std::io::Write as _;

/// Rows read at once.
const PIECE_ROWS: usize = 2_000;
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

    fn add(&mut self, row: &Json) {
        self.text.extend_from_slice(row.to_string().as_bytes());
        self.text.push(b'\n');
        self.rows += 1;
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
        manifest(erasures, job).await?;
        return Ok(true);
    };
    let (lines, next) = gather(erasures, telemetry, job, source).await?;
    let mut file = None;
    if lines.rows > 0 {
        let name = format!("{}-{:05}.ndjson.gz", source.file(), job.place.files + 1);
        let rows = lines.rows as i64;
        let packed = pack(&lines.text)?;
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

fn pack(text: &[u8]) -> Result<Vec<u8>, ErasureError> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let packed = encoder.write_all(text).and_then(|()| encoder.finish());
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

/// The last file names all others, so that the folder explains itself.
async fn manifest(erasures: &Erasures, job: &mut Job) -> Result<(), ErasureError> {
    let (mut files, mut after) = (Vec::new(), String::new());
    loop {
        let (scope, id, from) = (Scope::Tenant(job.tenant.clone()), job.id.clone(), after.clone());
        let page =
            erasures.db.read(move |tx| store::file_list(tx, &scope, &id, &from, PIECE_ROWS as i64)).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.name);
        files.extend(page.iter().filter(|file| file.name != MANIFEST).map(|file| {
            json!({ "name": file.name, "bytes": file.bytes, "rows": file.rows,
                    "sha256": hex::encode(file.sha256) })
        }));
    }
    let manifest = json!({
        "version": 1, "tenant": job.tenant, "device": job.device, "erasure": job.id,
        "requested_by": job.requested_by, "requested_at_us": job.requested_at_us,
        "exported_at_us": erasures.clock.now_us(), "rows": job.rows_exported, "files": files,
    });
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|_| DbError::Column { column: "manifest".into() })?;
    let file = put(erasures, job, MANIFEST.to_owned(), text, 1).await?;
    commit(erasures, job, Some(file)).await
}

const MANIFEST: &str = "manifest.json";

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
    let mut skip: i64 = job.place.after.as_deref().and_then(|after| after.parse().ok()).unwrap_or(0);
    let mut lines = Lines::default();
    loop {
        let (scope, device) = (Scope::Tenant(job.tenant.clone()), job.device.clone());
        let read = move |tx: &mut Tx<'_>| {
            let device = device.as_ref().map(DeviceId::as_str);
            tables::read(tx, &scope, table, device, (skip, PIECE_ROWS as i64))
        };
        let rows = erasures.db.read(read).await?;
        rows.iter().for_each(|row| lines.add(row));
        skip += rows.len() as i64;
        if rows.len() < PIECE_ROWS {
            return Ok((lines, None));
        }
        if lines.is_full() {
            return Ok((lines, Some(Place { after: Some(skip.to_string()), ..job.place.clone() })));
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
            let piece =
                telemetry.read_out(&scope, &place.device, part, place.after.as_deref(), PIECE_ROWS)?;
            for mut row in piece.rows {
                if let Some(object) = row.as_object_mut() {
                    object.insert("device".to_owned(), place.device.clone().into());
                }
                lines.add(&row);
            }
            place.after = piece.next;
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
