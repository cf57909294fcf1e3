//! Gives pictures of a folder or a list at an interval, as a camera would.
//!
//! Limit: [`IMAGES_MAX`] pictures of a folder, the first by name; a round that leaves some out says how many.

use super::{Content, Ended, Sample, SourceContext};
use crate::config::{ImagesSource, Wrap};
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Pictures that are taken of one folder.
const IMAGES_MAX: usize = 100_000;

/// Why there are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The folder cannot be read.
    #[error("cannot read folder {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No jpg, png or bmp file is in it.
    #[error("folder {} has no jpg, png or bmp file", folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png", "bmp"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The files in the order of their names, read anew for each round so that new ones are seen.
fn list(config: &ImagesSource) -> Result<Vec<PathBuf>, ImagesError> {
    let Some(folder) = &config.folder else { return Ok(config.files.clone()) };
    let fail = |source| ImagesError::Folder { folder: folder.clone(), source };
    let mut names = FirstNames::new(IMAGES_MAX);
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if is_image(&path) {
            names.add(path);
        }
    }
    if names.left_out > 0 {
        let (folder, left_out) = (folder.display(), names.left_out);
        tracing::warn!(%folder, left_out, taken = IMAGES_MAX, "folder has more pictures than are taken");
    }
    let files = names.files.into_sorted_vec();
    if files.is_empty() {
        return Err(ImagesError::Empty { folder: folder.clone() });
    }
    Ok(files)
}

/// The first files by name, however many there are and in whatever order they come.
struct FirstNames {
    max: usize,
    files: BinaryHeap<PathBuf>,
    left_out: usize,
}

impl FirstNames {
    fn new(max: usize) -> Self {
        Self { max, files: BinaryHeap::new(), left_out: 0 }
    }

    fn add(&mut self, file: PathBuf) {
        self.files.push(file);
        if self.files.len() > self.max {
            self.files.pop();
            self.left_out += 1;
        }
    }
}

pub(super) async fn run(config: ImagesSource, mut context: SourceContext) -> Result<(), ImagesError> {
    let interval = Duration::from_millis(config.interval_ms);
    let mut due = Instant::now();
    loop {
        for path in list(&config)? {
            let wait = due.saturating_duration_since(Instant::now());
            // A picture that waited for room does not make the next ones hurry.
            due = Instant::now() + wait + interval;
            let sent = async {
                context.pause(wait).await?;
                let measured_at_us = context.clock.now_us();
                context.send(Sample { measured_at_us, content: Content::Image { path } }).await
            };
            if sent.await == Err(Ended) {
                return Ok(());
            }
        }
        if config.wrap == Wrap::Once {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::metrics::Metrics;
    use crate::supervisor::stop_pair;
    use std::sync::Arc;
    use tokio::sync::mpsc;

    fn config(folder: &Path) -> ImagesSource {
        let text = format!("name = \"i\"\nfolder = {:?}\ninterval_ms = 500", folder.display().to_string());
        toml::from_str(&text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn pictures_come_by_name_at_the_interval() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.PNG", "a.jpg", "notes.txt", "c.bmp"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let (_sender, stop) = stop_pair();
        let (sink, mut samples) = mpsc::channel(8);
        let clock = Arc::new(ManualClock::default());
        let context = super::super::SourceContext { clock, metrics: Metrics::new(), stop, sinks: vec![sink] };
        let before = Instant::now();
        run(config(dir.path()), context).await.unwrap();
        assert_eq!(before.elapsed().as_millis(), 1000);
        let mut names = Vec::new();
        while let Some(sample) = samples.recv().await {
            let Content::Image { path } = sample.content else { panic!("a picture") };
            names.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
        assert_eq!(names, ["a.jpg", "b.PNG", "c.bmp"]);
    }

    #[test]
    fn a_folder_over_the_bound_gives_its_first_names_and_counts_the_others() {
        let mut names = FirstNames::new(3);
        ["e", "b", "d", "a", "c"].into_iter().for_each(|name| names.add(name.into()));
        assert_eq!(names.left_out, 2);
        assert_eq!(names.files.into_sorted_vec(), ["a", "b", "c"].map(PathBuf::from));
    }

    #[test]
    fn a_folder_without_pictures_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(list(&config(dir.path())), Err(ImagesError::Empty { .. })));
    }
}
