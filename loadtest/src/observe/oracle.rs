//! Judged later.
