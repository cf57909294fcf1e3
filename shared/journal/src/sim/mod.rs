//! A file system in memory that fails as disks do, from a seed (feature `sim`).
//!
//! Bytes, lengths and names are durable only after their sync. [`SimFs::reboot`] then keeps the synced state
//! and, as the seed says, nothing, all, a prefix or any subset of the unsynced pages and directory entries, torn
//! at sector bounds or replaced by garbage where a file grew. [`SimFs::cut_after`] cuts the power inside any
//! operation. A failed sync marks pages clean that are not on the disk, as Linux does: a retried sync then
//! succeeds and the bytes are still lost. A full disk writes what fits and says `StorageFull`.

mod disk;

use crate::fs::{Fs, FsFile};
use disk::Disk;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A small seeded random generator (splitmix64); the same seed gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a reboot does to unsynced bytes and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The process died, the machine did not: the page cache stays, and stays unsynced.
    Process,
    /// The power was cut and all that was not synced is gone.
    Unsynced,
    /// The power was cut; of each file and each directory nothing, all, a prefix or a subset survives.
    Random,
}

/// The simulated file system. Clones share the disk; those from before a reboot fail.
#[derive(Clone)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
    boot: u64,
}

/// An open file of a [`SimFs`].
pub struct SimFile {
    fs: SimFs,
    inode: u64,
    handle: u64,
}

impl SimFs {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { disk: Arc::new(Mutex::new(Disk::new(seed))), boot: 0 }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.disk();
        disk.check(self.boot)?;
        Ok(disk)
    }

    /// Stops everything: each operation fails until [`SimFs::reboot`].
    pub fn cut(&self) {
        self.disk().cut();
    }

    /// Cuts the power inside the `operations`-th changing operation from now (1 = the next one).
    pub fn cut_after(&self, operations: u64) {
        self.disk().cut_in = Some(operations);
    }

    /// True after the power was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.disk().is_cut()
    }

    /// Starts again with what survived; this handle and its clones fail from now on.
    #[must_use]
    pub fn reboot(&self, loss: Loss) -> Self {
        let boot = self.disk().reboot(loss);
        Self { disk: Arc::clone(&self.disk), boot }
    }

    /// Bounds the bytes of all files; None lifts it.
    pub fn set_budget(&self, bytes: Option<u64>) {
        self.disk().budget = bytes;
    }

    /// Lets the next `skip` syncs of file bytes pass and fails the `count` that follow.
    pub fn fail_syncs(&self, skip: u32, count: u32) {
        self.disk().failing_syncs = (skip, count);
    }

    /// Changing operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.disk().used_bytes()
    }

    /// A file's bytes as a reader sees them.
    #[must_use]
    pub fn read_file(&self, path: &Path) -> Option<Vec<u8>> {
        self.disk().contents(path)
    }

    /// Puts a file on the disk, durably, past all faults.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) {
        self.disk().plant(path, bytes);
    }

    /// Flips one bit on the disk and in the cache; false where the file is shorter or missing.
    #[must_use]
    pub fn flip_bit(&self, path: &Path, bit: u64) -> bool {
        self.disk().flip_bit(path, bit)
    }

    /// The paths of all files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.disk().paths()
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let mut disk = self.alive()?;
        let inode = disk.lookup(path)?;
        Ok(SimFile { fs: self.clone(), inode, handle: disk.next_handle() })
    }
}

impl Fs for SimFs {
    type File = SimFile;

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        self.alive().map(|_| ())
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut disk = self.alive()?;
        let inode = disk.create(path)?;
        Ok(SimFile { fs: self.clone(), inode, handle: disk.next_handle() })
    }

    fn open_write(&self, path: &Path) -> io::Result<SimFile> {
        self.open(path)
    }

    fn open_read(&self, path: &Path) -> io::Result<SimFile> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive()?.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Ok(self.alive()?.list(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.alive()?.sync_dir(dir)
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.alive()?.left())
    }
}

impl FsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.fs.alive()?.read_at(self.inode, buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.fs.alive()?.write_at(self.inode, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fs.alive()?.sync_data(self.inode)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fs.alive()?.set_len(self.inode, len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.fs.alive()?.len(self.inode))
    }

    fn try_lock(&self) -> io::Result<bool> {
        Ok(self.fs.alive()?.try_lock(self.inode, self.handle))
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.fs.disk().unlock(self.inode, self.handle);
    }
}
