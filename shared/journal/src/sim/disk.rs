//! The simulated disk: what is synced, what is cached, what a power cut leaves.

use super::{Loss, Rng};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

#[derive(Default)]
struct Inode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Pages of `cached` that a sync would write.
    dirty: BTreeSet<usize>,
}

#[derive(Clone)]
enum NameChange {
    Add(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

pub(super) struct Disk {
    rng: Rng,
    boot: u64,
    cut: bool,
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced_names: Vec<NameChange>,
    locks: BTreeMap<u64, u64>,
    numbers: u64,
    pub(super) operations: u64,
    pub(super) cut_in: Option<u64>,
    pub(super) budget: Option<u64>,
    pub(super) failing_syncs: (u32, u32),
}

/// How an operation goes on.
enum Step {
    Go,
    /// The power goes; the operation's effect may or may not have reached the disk's cache.
    CutBefore,
    CutAfter,
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed ^ 0xD15C),
            boot: 0,
            cut: false,
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            locks: BTreeMap::new(),
            numbers: 0,
            operations: 0,
            cut_in: None,
            budget: None,
            failing_syncs: (0, 0),
        }
    }

    pub(super) fn check(&self, boot: u64) -> io::Result<()> {
        if self.cut || boot != self.boot { Err(power_cut()) } else { Ok(()) }
    }

    pub(super) fn cut(&mut self) {
        self.cut = true;
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    pub(super) fn next_handle(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Runs a changing operation, unless the power goes now.
    fn change(&mut self, effect: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        match self.begin() {
            Step::Go => effect(self),
            Step::CutBefore => Err(power_cut()),
            Step::CutAfter => {
                let _ = effect(self);
                Err(power_cut())
            }
        }
    }

    fn begin(&mut self) -> Step {
        self.operations += 1;
        match self.cut_in.as_mut() {
            None => Step::Go,
            Some(left) if *left > 1 => {
                *left -= 1;
                Step::Go
            }
            Some(_) => {
                self.cut_in = None;
                self.cut = true;
                if self.rng.one_in(2) { Step::CutBefore } else { Step::CutAfter }
            }
        }
    }

    pub(super) fn lookup(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.names.values().map(|inode| self.len(*inode)).sum()
    }

    pub(super) fn left(&self) -> u64 {
        self.budget.map_or(u64::MAX, |budget| budget.saturating_sub(self.used_bytes()))
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<u64> {
        if self.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.numbers += 1;
        let inode = self.numbers;
        self.change(|disk| {
            if disk.left() == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.inodes.insert(inode, Inode::default());
            disk.names.insert(path.to_owned(), inode);
            disk.unsynced_names.push(NameChange::Add(path.to_owned(), inode));
            Ok(())
        })?;
        Ok(inode)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.lookup(from)?;
        self.change(|disk| {
            disk.names.remove(from);
            disk.names.insert(to.to_owned(), inode);
            disk.unsynced_names.push(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
            Ok(())
        })
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.lookup(path)?;
        self.change(|disk| {
            disk.names.remove(path);
            disk.unsynced_names.push(NameChange::Remove(path.to_owned()));
            Ok(())
        })
    }

    pub(super) fn list(&self, dir: &Path) -> Vec<String> {
        let inside = self.names.keys().filter(|path| path.parent() == Some(dir));
        inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect()
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.change(|disk| {
            let all = std::mem::take(&mut disk.unsynced_names);
            for change in all {
                if change.dir() == Some(dir) {
                    change.apply(&mut disk.durable_names);
                } else {
                    disk.unsynced_names.push(change);
                }
            }
            Ok(())
        })
    }

    pub(super) fn read_at(&self, inode: u64, buf: &mut [u8], offset: u64) -> usize {
        let Some(inode) = self.inodes.get(&inode) else { return 0 };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(inode.cached.len());
        let read = buf.len().min(inode.cached.len() - from);
        buf[..read].copy_from_slice(&inode.cached[from..from + read]);
        read
    }

    pub(super) fn write_at(&mut self, inode: u64, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(|disk| {
            let left = disk.left();
            let len = disk.len(inode);
            let end_max = len.saturating_add(left).max(len);
            let end = (offset + buf.len() as u64).min(end_max.max(offset));
            let fits = usize::try_from(end - offset).unwrap_or(usize::MAX);
            if let Some(inode) = disk.inodes.get_mut(&inode) {
                inode.write(&buf[..fits], offset as usize);
            }
            if fits < buf.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    pub(super) fn set_len(&mut self, inode: u64, len: u64) -> io::Result<()> {
        self.change(|disk| {
            if let Some(inode) = disk.inodes.get_mut(&inode) {
                inode.cached.resize(len as usize, 0);
                inode.dirty.retain(|page| page * PAGE_BYTES < len as usize);
            }
            Ok(())
        })
    }

    pub(super) fn len(&self, inode: u64) -> u64 {
        self.inodes.get(&inode).map_or(0, |inode| inode.cached.len() as u64)
    }

    pub(super) fn sync_data(&mut self, inode: u64) -> io::Result<()> {
        self.change(|disk| {
            let (skip, count) = &mut disk.failing_syncs;
            let fails = *skip == 0 && *count > 0;
            if *skip > 0 {
                *skip -= 1;
            } else if fails {
                *count -= 1;
            }
            let rng = &mut disk.rng;
            let Some(inode) = disk.inodes.get_mut(&inode) else { return Ok(()) };
            let dirty = std::mem::take(&mut inode.dirty);
            for page in dirty {
                if !fails || rng.one_in(2) {
                    inode.persist(page, PAGE_BYTES);
                }
            }
            if fails {
                return Err(io::Error::other("simulated sync failure"));
            }
            inode.durable.resize(inode.cached.len(), 0);
            Ok(())
        })
    }

    pub(super) fn try_lock(&mut self, inode: u64, handle: u64) -> bool {
        *self.locks.entry(inode).or_insert(handle) == handle
    }

    pub(super) fn unlock(&mut self, inode: u64, handle: u64) {
        if self.locks.get(&inode) == Some(&handle) {
            self.locks.remove(&inode);
        }
    }

    pub(super) fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.names.get(path)?;
        self.inodes.get(inode).map(|inode| inode.cached.clone())
    }

    pub(super) fn plant(&mut self, path: &Path, bytes: &[u8]) {
        self.numbers += 1;
        let inode = Inode { cached: bytes.to_vec(), durable: bytes.to_vec(), dirty: BTreeSet::new() };
        self.inodes.insert(self.numbers, inode);
        self.names.insert(path.to_owned(), self.numbers);
        self.durable_names.insert(path.to_owned(), self.numbers);
    }

    pub(super) fn flip_bit(&mut self, path: &Path, bit: u64) -> bool {
        let (at, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        let Some(inode) = self.names.get(path).and_then(|inode| self.inodes.get_mut(inode)) else {
            return false;
        };
        if at >= inode.cached.len() {
            return false;
        }
        inode.cached[at] ^= mask;
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= mask;
        }
        true
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.names.keys().cloned().collect()
    }

    pub(super) fn reboot(&mut self, loss: Loss) -> u64 {
        self.boot += 1;
        self.cut = false;
        self.cut_in = None;
        self.locks.clear();
        self.failing_syncs = (0, 0);
        if loss == Loss::Process {
            return self.boot;
        }
        let changes = std::mem::take(&mut self.unsynced_names);
        for change in survivors(changes, loss, &mut self.rng) {
            change.apply(&mut self.durable_names);
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
        for inode in self.inodes.values_mut() {
            inode.lose(loss, &mut self.rng);
        }
        self.boot
    }
}

fn power_cut() -> io::Error {
    io::Error::other("simulated power cut")
}

/// Which of the unsynced changes reached the disk, in their order.
fn survivors<T>(changes: Vec<T>, loss: Loss, rng: &mut Rng) -> Vec<T> {
    let mode = if loss == Loss::Unsynced { 0 } else { rng.below(4) };
    let keep = match mode {
        0 => 0,
        1 => changes.len(),
        _ => rng.below(changes.len() as u64 + 1) as usize,
    };
    let mut kept = Vec::new();
    for (at, change) in changes.into_iter().enumerate() {
        if if mode == 3 { rng.one_in(2) } else { at < keep } {
            kept.push(change);
        }
    }
    kept
}

impl NameChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => path.parent(),
        }
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Add(path, inode) => drop(names.insert(path, inode)),
            Self::Remove(path) => drop(names.remove(&path)),
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
        }
    }
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.cached.len() < end {
            self.cached.resize(end, 0);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / PAGE_BYTES..=(end - 1) / PAGE_BYTES);
        }
    }

    /// Copies the first `bytes` of a cached page to the disk.
    fn persist(&mut self, page: usize, bytes: usize) {
        let from = page * PAGE_BYTES;
        let to = (from + bytes).min(self.cached.len());
        if from >= to {
            return;
        }
        if self.durable.len() < to {
            self.durable.resize(to, 0);
        }
        self.durable[from..to].copy_from_slice(&self.cached[from..to]);
    }

    fn lose(&mut self, loss: Loss, rng: &mut Rng) {
        let synced_len = self.durable.len();
        let dirty: Vec<usize> = std::mem::take(&mut self.dirty).into_iter().collect();
        let torn_sectors =
            |rng: &mut Rng| rng.below((PAGE_BYTES / SECTOR_BYTES) as u64) as usize * SECTOR_BYTES;
        let kept = survivors(dirty, loss, rng);
        for page in kept {
            let bytes = if rng.one_in(4) { torn_sectors(rng) } else { PAGE_BYTES };
            self.persist(page, bytes);
        }
        if loss == Loss::Random && self.cached.len() != synced_len && rng.one_in(2) {
            // The length alone reached the disk: cut, or grown by zeros or stale bytes.
            let garbage = rng.one_in(4);
            let from = self.durable.len();
            self.durable.resize(self.cached.len(), 0);
            for byte in self.durable.iter_mut().skip(from).filter(|_| garbage) {
                *byte = rng.next_u64() as u8;
            }
        }
        self.cached = self.durable.clone();
    }
}
