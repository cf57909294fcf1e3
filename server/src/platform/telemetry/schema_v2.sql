-- telemetry.db, version 2. How far each shard of the memtable is written: 1 + 64 positions, u64 little-endian (memtable.rs).
-- NULL: all stand at `position`, which stays the oldest of them.
ALTER TABLE cursor ADD COLUMN marks BLOB;
