//! Configuration: file, environment and flags, in that order of growing priority.
