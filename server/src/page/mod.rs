//! The embedded read-only page at `/`, until the console comes.
